"""Text in, batches of tokens out."""

__all__ = ["batches", "corpus", "inspection", "tokenizers"]

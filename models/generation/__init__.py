"""Writing text with a trained model, and measuring what it wrote."""

__all__ = ["continuations", "sampling"]

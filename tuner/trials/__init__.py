"""One trial: objective, checkpoints, decoding, provenance."""

__all__ = ["attachments", "objective"]

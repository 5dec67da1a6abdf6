"""Checkpoints and weights: where they are kept and what they are called."""

__all__ = ["store"]

"""Storage and names of checkpoints and weights."""

__all__ = ["layout", "store"]

"""Creating studies and steering them while they run."""

__all__ = ["create", "steering"]

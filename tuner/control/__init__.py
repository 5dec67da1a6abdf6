"""Creating studies, steering them while they run, and deleting them."""

__all__ = ["create", "removal", "steering"]

"""A study in one file, and back."""

__all__ = ["dump"]

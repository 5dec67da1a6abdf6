"""Backup of a study to one file, and its restoration."""

__all__ = ["dump"]

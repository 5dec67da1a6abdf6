"""Text from outside, made safe for a terminal and for Markdown."""

__all__ = ["markdown", "terminal"]

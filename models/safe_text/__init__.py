"""Makes untrusted text safe for a terminal and for Markdown."""

__all__ = ["markdown", "terminal"]

"""What the command line, Python and the web pages have in common: searching, and a study that is open."""

__all__ = ["api", "open_study", "search"]

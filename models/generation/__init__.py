"""Text generation with a trained model, and measures of the text."""

__all__ = ["continuations", "sampling"]

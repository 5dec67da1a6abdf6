"""What a study found: summaries, confirmation, export."""

__all__ = ["analysis", "confirmation", "decoding_plot", "export", "formats", "outcomes", "queries", "summary"]

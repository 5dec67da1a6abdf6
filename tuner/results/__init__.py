"""Results of a study: summaries, confirmation, export."""

__all__ = [
    "analysis",
    "companions",
    "confirmation",
    "decoding_plot",
    "export",
    "formats",
    "kept_runs",
    "outcomes",
    "queries",
    "records",
    "states",
    "summary",
]

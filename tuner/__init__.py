"""The search service: studies, workers, export."""

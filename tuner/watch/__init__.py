"""Views of a study: terminal, JSON, figures, report, notes, Prometheus."""

__all__ = ["html_report", "live", "notebook", "notes", "plots", "prometheus", "status_json", "tables"]

"""Views of a study: terminal, JSON, figures, report, notes, Prometheus."""

"""Run folders: what a training writes, and how it reports its progress and result."""

__all__ = ["progress", "rehearsal", "report", "reproducibility", "run", "seeds"]

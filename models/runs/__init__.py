"""Run folders: what a training leaves, and what it tells its reader."""

__all__ = ["progress", "rehearsal", "report", "reproducibility", "run", "seeds"]

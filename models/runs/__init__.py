"""Run folders: what a training leaves, and what it tells its reader."""

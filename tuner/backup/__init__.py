"""A study in one file, and back."""

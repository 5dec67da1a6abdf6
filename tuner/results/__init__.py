"""What a study found: summaries, confirmation, export."""

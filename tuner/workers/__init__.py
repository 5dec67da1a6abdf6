"""Worker processes and the supervisor that watches them."""

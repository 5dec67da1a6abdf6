"""Creating studies and steering them while they run."""

"""Text generators and their training; useful without the tuner."""

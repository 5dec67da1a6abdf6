"""What stands around Optuna's dashboard: the server, the lock on the door, and pages of our own."""

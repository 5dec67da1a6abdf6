"""Training: the loop, checkpoints, optimizers, metrics, several processes."""

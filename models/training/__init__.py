"""Training: the loop, checkpoints, optimizers, metrics, several processes."""

__all__ = ["checkpoint", "distributed", "failures", "loop", "metrics", "observer", "scoring", "stopping"]

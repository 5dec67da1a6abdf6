"""Training: the loop, checkpoints, optimizers, metrics, several processes."""

__all__ = ["checkpoint", "cuda_graphs", "distributed", "failures", "loop", "metrics", "observer", "scoring", "stopping"]

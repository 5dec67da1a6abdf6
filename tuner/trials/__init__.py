"""One trial: objective, checkpoints, decoding, provenance."""

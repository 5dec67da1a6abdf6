"""Bits per byte at each rung in single precision and as it is by default: speed must not buy another model.

python benchmarks/precision.py [--tokens 400000] [--seeds 3] [--threads 1]
"""

from __future__ import annotations

import argparse
import statistics

import torch
from machine import show

from models.config import Budget, Config, Corpus
from models.text.corpus import load_corpus
from models.training.loop import train

SHAPES = {
    "rnn 1 x 256": Config(architecture="rnn", batch_size=16),
    "lstm 1 x 256": Config(architecture="lstm", batch_size=16),
    "gru 1 x 256": Config(architecture="gru", batch_size=16),
    "transformer 4 x 128": Config(architecture="transformer", layers=4, hidden_size=128, heads=4, batch_size=12),
}
RUNGS = 4


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tokens", type=int, default=400_000)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=1)
    options = parser.parse_args()
    if options.seeds < 2:
        parser.error("--seeds: at least 2, whose spread is the measure")
    torch.set_num_threads(options.threads)
    corpus = load_corpus(Corpus(builtin="python-docs"), "character", 2048)
    rows = []
    for name, config in SHAPES.items():
        for precision in ("float32", "auto"):
            runs = [
                train(
                    config.model_copy(update={"precision": precision, "seed": seed, "dropout": 0.1}),
                    corpus,
                    Budget(tokens=options.tokens, rungs=RUNGS),
                )
                for seed in range(options.seeds)
            ]
            curves = [[evaluation.bits_per_byte for evaluation in run.evaluations] for run in runs]
            means = [statistics.mean(rung) for rung in zip(*curves, strict=True)]
            spread = statistics.stdev(curve[-1] for curve in curves)
            rungs = {f"rung {number}": mean for number, mean in enumerate(means, start=1)}
            speed = round(statistics.median(run.tokens_per_second for run in runs))
            row = {"shape": name, "precision": precision, **rungs, "spread of seeds at the end": spread}
            rows.append(row | {"tokens/s": speed})
    show(rows, tokens=options.tokens, seeds=options.seeds, threads=options.threads)


if __name__ == "__main__":
    main()

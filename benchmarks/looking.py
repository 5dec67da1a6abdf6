"""The part of a trial that goes into scoring its rungs, for the budgets of the studies that come with the tuner.

python benchmarks/looking.py [--threads 1] [--tokens 400000] [--rungs 9]
"""

from __future__ import annotations

import argparse
import time

import torch
from machine import show

from models.config import Budget, Config, Corpus
from models.text.corpus import load_corpus
from models.training.loop import Training

SIZES = {"hidden_size": 128, "batch_size": 16}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--tokens", type=int, default=400_000)
    parser.add_argument("--rungs", type=int, default=9)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    corpus = load_corpus(Corpus(builtin="python-docs"), "character", 2048)
    budget = Budget(tokens=options.tokens, rungs=options.rungs)
    rows = []
    for architecture in ("rnn", "lstm", "gru", "transformer"):
        training = Training(Config(architecture=architecture, **SIZES), corpus, budget, torch.device("cpu"))
        looked = 0.0
        while not training.finished:
            while not training.at_rung:
                training.take_step()
            start = time.perf_counter()
            training.evaluate()
            looked += time.perf_counter() - start
        share = looked / (looked + training.seconds)
        rows.append({"architecture": architecture, "training s": training.seconds, "rungs s": looked, "share": share})
    show(rows, threads=options.threads, tokens=options.tokens, rungs=options.rungs)


if __name__ == "__main__":
    main()

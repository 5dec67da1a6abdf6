"""A quarter of an hour of search on two cores, then 80 s of training with what it exported; several times over.

python benchmarks/headline.py tinyshakespeare.txt [--searches 3] [--hours 0.25] [--seconds 80] [--threads 2]
"""

from __future__ import annotations

import argparse
import json
import math
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from machine import show

from models import load

STUDY = Path(__file__).parent / "shakespeare.yaml"
SHOWN = ("architecture", "tokenizer", "vocabulary_size", "hidden_size", "batch_size", "learning_rate", "dropout")


def tuner(folder: Path, *arguments: object) -> None:
    places = ["--data-folder", folder / "postgres", "--artifacts", folder / "artifacts"]
    command = [sys.executable, "-m", "tuner", *arguments, *(places if arguments[0] == "run" else [])]
    subprocess.run([str(part) for part in command], cwd=folder, check=True, stdout=sys.stderr)


def search_and_train(text: Path, options: argparse.Namespace, seed: int) -> dict[str, Any]:
    """One search and one training; the nats per character of the held-out tenth that it came to."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        folder.chmod(0o755)  # as root, PostgreSQL runs as another user
        study = folder / f"shakespeare-{seed}.yaml"
        study.write_text(
            STUDY.read_text().replace(
                "name: shakespeare", f"name: shakespeare-{seed}\nsampler: {{type: tpe, seed: {seed}}}"
            )
        )
        start = time.monotonic()
        tuner(folder, "run", study, "--corpus", text, "--hours", options.hours, "--no-confirm", "-o", "best.yaml")
        searched = time.monotonic() - start
        tuner(folder, "train", "best.yaml", "-o", "run", "--seconds", options.seconds, "--threads", options.threads)
        lines = (folder / "run" / "metrics.jsonl").read_text().splitlines()
        last = json.loads(lines[-1])
        parameters = load(folder / "run").recipe.parameters
        found = {name: getattr(parameters, name) for name in SHOWN}
        return {
            "search": seed,
            "seconds": round(searched),
            **found,
            "tokens": last["tokens"],
            "nats per character": last["bits_per_byte"] * math.log(2),
        }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("text", type=Path)
    parser.add_argument("--searches", type=int, default=3)
    parser.add_argument("--hours", type=float, default=0.25)
    parser.add_argument("--seconds", type=float, default=80)
    parser.add_argument("--threads", type=int, default=2)
    options = parser.parse_args()
    rows = [search_and_train(options.text.resolve(), options, seed) for seed in range(options.searches)]
    show(rows, mean=statistics.mean(row["nats per character"] for row in rows))


if __name__ == "__main__":
    main()

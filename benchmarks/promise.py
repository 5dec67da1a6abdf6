"""What an export promises, kept or not: its value to the bit, fresh seeds, the test split; what confirming gains.

    python benchmarks/promise.py TEXT.txt

Three studies, on python-docs, markov and a text of yours. The best five of each are exported and trained again by
`tuner train`. The chosen one and the raw best are trained with seeds that no choice was made by; the difference of
their means on the test split is the regret (below 0: confirming gained).
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from statistics import fmean
from typing import Any

from machine import show

from models.reader import parse, plain

STUDY = """
name: {name}
corpus: {corpus}
trial: {{tokens: {tokens}, rungs: 4}}
budget: {{trials: {trials}}}
sampler: {{type: tpe, seed: 1}}
pruner: none
threads: 1
parameters:
  architecture: {{type: categorical, choices: [lstm, gru, transformer]}}
  learning_rate: {{type: float, low: 1e-3, high: 2e-2, log: true}}
  batch_size: {{type: categorical, choices: [8, 16]}}
  dropout: {{type: float, low: 0.0, high: 0.2}}
  hidden_size: {{type: int, low: 32, high: 96, step: 32}}
"""
INDEPENDENT = 1000
"""The first of the seeds that nothing was chosen by."""


class Place:
    """A folder with a database of its own, in which commands run."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        own = {"TUNER_DATA": str(folder / "data"), "TUNER_ARTIFACTS": str(folder / "artifacts"), "OMP_NUM_THREADS": "1"}
        self.environment = os.environ | own

    def tuner(self, *arguments: object) -> None:
        command = [sys.executable, "-P", "-m", "tuner", *map(str, arguments)]
        done = subprocess.run(command, cwd=self.folder, env=self.environment, capture_output=True, text=True)
        if done.returncode:
            sys.exit(f"{' '.join(command)}\n{done.stdout}{done.stderr}")

    def yaml(self, name: str) -> Any:
        return plain(parse((self.folder / name).read_text(), name))

    def results(self, run: str) -> list[Any]:
        """What the runs in a folder came to: one, or one for each seed."""
        return [json.loads(path.read_text()) for path in sorted((self.folder / run).rglob("result.json"))]


def kept(place: Place, name: str, corpus: str, wanted: argparse.Namespace) -> list[dict[str, Any]]:
    """Returns a row for each of the best trials of a study, the best one of the search first."""
    text = STUDY.format(name=name, corpus=corpus, tokens=wanted.tokens, trials=wanted.trials)
    (place.folder / f"{name}.yaml").write_text(text)
    place.tuner(
        "run", f"{name}.yaml", "-n", wanted.workers, "--devices", "cpu", "--no-confirm", "-o", f"{name}-raw.yaml"
    )
    place.tuner("export", name, "--top", wanted.top, "-o", f"{name}-best.yaml")
    team = ("-n", wanted.workers, "--devices", "cpu")
    place.tuner("confirm", name, "--top", wanted.top, "--seeds", wanted.seeds, *team)
    return [row(place, name, number) for number in range(1, wanted.top + 1)]


def row(place: Place, study: str, number: int) -> dict[str, Any]:
    """Trains an export again, and sets what it comes to beside what was promised and what confirming found."""
    raw = f"{study}-best-{number}.yaml"
    trial = place.yaml(raw)["provenance"]["trial"]
    place.tuner("train", raw, "-o", f"{study}-{number}", "--device", "cpu")
    (result,) = place.results(f"{study}-{number}")
    place.tuner("export", study, "--trial", trial, "-o", f"{study}-confirmed-{number}.yaml")
    told = place.yaml(f"{study}-confirmed-{number}.yaml")["provenance"]
    confirmed = told["confirmation"]
    return {
        "study": study,
        "trial": trial,
        "reported": told["value"],
        "retrained": result["validation"]["bits_per_byte"],
        "same bits": "yes" if told["value"] == result["validation"]["bits_per_byte"] else "no",
        "mean of fresh seeds": confirmed["mean"],
        "95 % ±": confirmed["high"] - confirmed["mean"],
        "parameters": confirmed["parameter_count"],
        "chosen": "yes" if confirmed["winner"] == trial else "",
        "test, own seed": result["test"]["bits_per_byte"],
    }


def regret(place: Place, study: str, rows: list[dict[str, Any]], seeds: int) -> dict[str, Any]:
    """Trains the chosen one and the raw best with seeds that decided nothing; returns how they differ."""
    chosen = next(number for number, one in enumerate(rows, start=1) if one["chosen"])
    means = {}
    for number in sorted({1, chosen}):
        place.tuner(
            *("train", f"{study}-best-{number}.yaml", "-o", f"{study}-{number}-fresh"),
            *("--device", "cpu", "--seed", INDEPENDENT, "--seeds", seeds),
        )
        means[number] = fmean(one["test"]["bits_per_byte"] for one in place.results(f"{study}-{number}-fresh"))
    return {
        "study": study,
        "raw best, test": means[1],
        "chosen, test": means[chosen],
        "regret": means[chosen] - means[1],
        "raw best, optimism": rows[0]["mean of fresh seeds"] - rows[0]["reported"],
        "parameters, raw best": rows[0]["parameters"],
        "parameters, chosen": rows[chosen - 1]["parameters"],
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("text", type=Path, help="a UTF-8 text file, the third corpus")
    parser.add_argument("--trials", type=int, default=8, help="of each study")
    parser.add_argument("--tokens", type=int, default=100_000, help="of each trial")
    parser.add_argument("--top", type=int, default=5)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--workers", type=int, default=2)
    wanted = parser.parse_args()
    corpora = {"docs": "{builtin: python-docs}", "markov": "{builtin: markov}"}
    corpora["text"] = json.dumps({"path": str(wanted.text.resolve())})
    folder = Path(tempfile.mkdtemp(prefix="promise-", dir="/tmp"))
    folder.chmod(0o755)
    place, start = Place(folder), time.monotonic()
    try:
        studies = {name: kept(place, name, corpus, wanted) for name, corpus in corpora.items()}
        regrets = [regret(place, name, rows, wanted.seeds) for name, rows in studies.items()]
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    rows = [one for rows in studies.values() for one in rows]
    show(regrets)
    same = sum(one["same bits"] == "yes" for one in rows)
    show(rows, same=f"{same} of {len(rows)}", seconds=time.monotonic() - start, options=vars(wanted) | {"text": "-"})
    sys.exit(0 if same == len(rows) else 1)


if __name__ == "__main__":
    main()

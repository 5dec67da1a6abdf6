"""How fast a large text is encoded, in how much memory, and how that compares with the library alone.

    python benchmarks/corpus.py [--gigabytes 5] [--rounds 2] [--kinds byte-pair character byte]

Each encoding runs in a process of its own. "encoding" is all that it does but learning the vocabulary: reading the text
twice, encoding, writing, checking. For byte pairs, encodings alternate with the library's `encode_batch` on the same
text, of which only the time inside that call counts. The disk needs five times the size of the text. Needs psutil.
"""

from __future__ import annotations

import argparse
import json
import random
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import psutil
from machine import show

from models import config
from models.text import large, tokenizers
from models.text.corpus import load_corpus

WORDS, BATCH = 200_000, 2_000_000
SYLLABLES = [first + vowel for first in (*"bdfgklmnprstvz", "ch", "sh", "th", "st", "tr") for vowel in "aeiou"]
ENDS = (".", ".", ".", ".", "?", ",\n", ".\n\n", " 17.")
DRAWN = 1_000_000
POLL_SECONDS = 0.05


def documents(seed: int) -> Iterator[str]:
    """Endless documents of some kilobytes: sentences of words whose frequencies follow Zipf's law."""
    dice, numbers = random.Random(seed), np.random.default_rng(seed)
    roots = ("".join(dice.choices(SYLLABLES, k=1 + dice.getrandbits(2))) for _ in range(WORDS))
    words = [root + dice.choice(["", "n", "s"]) for root in roots]
    limits = np.cumsum(1 / (np.arange(WORDS) + 2.7))
    while True:
        drawn = [words[one] for one in np.searchsorted(limits, numbers.random(DRAWN) * limits[-1]).tolist()]
        begun = 0
        while begun < DRAWN:
            sentences = []
            for _ in range(dice.randint(5, 80)):
                length = dice.randint(4, 25)
                sentences.append(" ".join(drawn[begun : begun + length]).capitalize() + dice.choice(ENDS))
                begun += length
            yield " ".join(sentences)


def generate(path: Path, size: int, seed: int) -> None:
    """Writes that many bytes of lines of JSON."""
    written = 0
    with path.open("w", encoding="utf-8") as file:
        for text in documents(seed):
            written += file.write(json.dumps({"text": text}) + "\n")
            if written >= size:
                return


def encode(path: Path, kind: str, cache: Path) -> dict[str, Any]:
    """Encodes a text as a study does, and tells the time."""
    learn, spent = large._learned, [0.0]

    def timed(*given: Any) -> Any:
        begun = time.perf_counter()
        made = learn(*given)
        spent[0] = time.perf_counter() - begun
        return made

    large._learned = timed  # type: ignore[assignment]
    begun = time.perf_counter()
    corpus = load_corpus(config.Corpus(path=str(path), field="text"), kind, 4096, cache)
    seconds = time.perf_counter() - begun
    return {"bytes": sum(corpus.bytes.values()), "seconds": seconds - spent[0], "learning": spent[0]}


def bare(path: Path, tokenizer: Path) -> dict[str, Any]:
    """Encodes the same text with the library alone, and keeps nothing."""
    library = tokenizers.load(tokenizer)._library  # type: ignore[attr-defined]
    size, seconds, batch, length = 0, 0.0, list[str](), 0
    with path.open(encoding="utf-8") as file:
        for line in file:
            batch.append(json.loads(line)["text"])
            length += len(batch[-1])
            if length >= BATCH:
                seconds, size = seconds + _timed(library, batch), size + sum(len(text.encode()) for text in batch)
                batch, length = [], 0
    return {"bytes": size, "seconds": seconds}


def _timed(library: Any, batch: list[str]) -> float:
    begun = time.perf_counter()
    library.encode_batch(batch)
    return time.perf_counter() - begun


def measured(*words: str) -> dict[str, Any]:
    """Runs a part of this benchmark, and adds the largest resident memory of its processes together."""
    command = subprocess.Popen([sys.executable, __file__, *words], stdout=subprocess.PIPE, text=True)
    process, peak = psutil.Process(command.pid), 0
    while command.poll() is None:
        with suppress(psutil.Error):
            family = [process, *process.children(recursive=True)]
            peak = max(peak, sum(one.memory_info().rss for one in family))
        time.sleep(POLL_SECONDS)
    if command.returncode:
        sys.exit(command.returncode)
    assert command.stdout is not None
    return {**json.loads(command.stdout.read()), "peak": peak}


def compare(path: Path, kind: str, rounds: int, folder: Path) -> dict[str, Any]:
    """Returns a row of the table: medians of the rounds, the largest peak."""
    ours, theirs = [], []
    for _ in range(rounds):
        shutil.rmtree(folder, ignore_errors=True)
        ours.append(measured("--encode", kind, str(path), str(folder)))
        if kind == "byte-pair":
            (tokenizer,) = folder.glob("*/tokenizer.json")
            theirs.append(measured("--bare", str(path), str(tokenizer)))
    speed, alone = (
        median(one["bytes"] / one["seconds"] / 1e6 for one in those) if those else None for those in (ours, theirs)
    )
    return {
        "tokenizer": kind,
        "learning s": median(one["learning"] for one in ours),
        "encoding MB/s": speed,
        "encode_batch MB/s": alone or "",
        "ratio": median(
            one["bytes"] / one["seconds"] / (other["bytes"] / other["seconds"])
            for one, other in zip(ours, theirs, strict=True)
        )
        if theirs
        else "",
        "peak MiB": max(one["peak"] for one in ours) // 2**20,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--gigabytes", type=float, default=5)
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--kinds", nargs="+", default=["byte-pair", "character", "byte"])
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--folder", type=Path, help="where to write; by default among temporary files")
    parser.add_argument("--encode", nargs=3, help=argparse.SUPPRESS)
    parser.add_argument("--bare", nargs=2, help=argparse.SUPPRESS)
    wanted = parser.parse_args()
    if wanted.encode:
        kind, path, cache = wanted.encode
        print(json.dumps(encode(Path(path), kind, Path(cache))))
    elif wanted.bare:
        print(json.dumps(bare(*map(Path, wanted.bare))))
    else:
        with tempfile.TemporaryDirectory(dir=wanted.folder) as folder:
            path = Path(folder, "text.jsonl")
            generate(path, round(wanted.gigabytes * 1e9), wanted.seed)
            rows = [compare(path, kind, wanted.rounds, Path(folder, "cache")) for kind in wanted.kinds]
            show(rows, gigabytes=wanted.gigabytes)


if __name__ == "__main__":
    main()

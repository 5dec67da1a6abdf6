"""Encodes text that does not fit in memory: in parallel, and in parts from which an interrupted encoding goes on."""

from __future__ import annotations

import hashlib
import json
import shutil
from collections import deque
from collections.abc import Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import asdict, dataclass
from itertools import groupby
from operator import itemgetter
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from models.errors import RunError
from models.files import written_whole
from models.text import tokenizers
from models.text.shared_work import Meter
from models.text.streams import BREAK, SAMPLE, SPLITS, Stream, blocks_of, encoded, without
from models.text.tokenizers import Tokenizer

BLOCK = 2_000_000
"""Characters that a thread encodes at a time."""

PART = 64_000_000
"""Characters from which on what is encoded becomes a file that an interruption does not lose."""

THREADS = 3
"""Byte pairs are found by as many threads of their library as there are cores; these keep them busy."""

SAMPLED = ("word", "byte-pair")
"""Kinds of vocabularies that are learned from a sample, where a text is larger than that."""


@dataclass(frozen=True)
class Part:
    """A file of tokens of a split, what it holds, and how much of the text that was."""

    split: str
    file: str
    sha256: str
    length: int
    """In characters with the breaks between documents; the next ones are without."""
    characters: int
    bytes: int


@dataclass(frozen=True)
class _Encoded:
    tokens: npt.NDArray[np.integer[Any]]
    length: int
    characters: int
    bytes: int


def sample_of(kind: str, stream: Stream) -> int | None:
    """How many characters of a text a vocabulary is learned from; None for all."""
    return SAMPLE if kind in SAMPLED and stream.length("train") > SAMPLE else None


def encode(stream: Stream, kind: str, vocabulary_size: int, folder: Path, meter: Meter) -> tuple[Tokenizer, list[Part]]:
    """Learns a tokenizer and encodes a text to files in `folder`, or goes on with those that are there."""
    folder.mkdir(parents=True, exist_ok=True)
    tokenizer, parts = _found(folder) or (_learned(stream, kind, vocabulary_size, folder, meter), [])
    meter.begin(f"encoding in {kind} tokens", sum(map(stream.length, SPLITS)))
    for split, sections in groupby(stream.by_split(), key=itemgetter(0)):
        done = sum(part.length for part in parts if part.split == split)
        pieces = without(map(itemgetter(1), sections), done)
        for made in _gathered(_in_order(tokenizer, meter.passing(blocks_of(pieces, BLOCK)))):
            parts.append(_written(folder, split, len(parts), made))
            _note(folder, parts)
    return tokenizer, parts


def _learned(stream: Stream, kind: str, vocabulary_size: int, folder: Path, meter: Meter) -> Tokenizer:
    characters = sample_of(kind, stream)
    meter.begin(f"learning the {kind} vocabulary", characters or stream.length("train"))
    sample = meter.passing(stream.sample(characters)) if kind != "byte" else iter(())
    documents = (document for stretch in sample for document in stretch.split(BREAK) if document)
    tokenizer = tokenizers.learn(kind, documents, vocabulary_size)
    with written_whole(folder / "tokenizer.json") as draft:
        tokenizers.save(tokenizer, draft)
    _note(folder, [])
    return tokenizer


def _in_order(tokenizer: Tokenizer, blocks: Iterable[str]) -> Iterator[_Encoded]:
    """Encodes blocks in several threads, with few of them in memory."""
    with ThreadPoolExecutor(THREADS) as pool:
        begun: deque[Future[_Encoded]] = deque()
        for block in blocks:
            begun.append(pool.submit(_encoded, tokenizer, block))
            if len(begun) > THREADS:
                yield begun.popleft().result()
        while begun:
            yield begun.popleft().result()


def _encoded(tokenizer: Tokenizer, block: str) -> _Encoded:
    tokens = tokenizer.encode_documents(block.split(BREAK)).astype(dtype_of(tokenizer))
    breaks = block.count(BREAK)
    return _Encoded(tokens, len(block), len(block) - breaks, len(encoded(block)) - breaks * len(encoded(BREAK)))


def dtype_of(tokenizer: Tokenizer) -> Any:
    """Returns the smallest kind of number for the ids of a tokenizer."""
    return next(kind for kind in (np.uint8, np.uint16, np.int32) if tokenizer.end_of_text <= np.iinfo(kind).max)


def _gathered(blocks: Iterable[_Encoded]) -> Iterator[_Encoded]:
    held: list[_Encoded] = []
    for block in blocks:
        held.append(block)
        if sum(one.length for one in held) >= PART:
            yield _together(held)
            held = []
    if held:
        yield _together(held)


def _together(held: list[_Encoded]) -> _Encoded:
    tokens = np.concatenate([one.tokens for one in held])
    sizes = ([one.length, one.characters, one.bytes] for one in held)
    return _Encoded(tokens, *map(sum, zip(*sizes, strict=True)))


# Parts: files of tokens, and a list of those that are complete.


def _written(folder: Path, split: str, number: int, made: _Encoded) -> Part:
    name = f"{number:05}.tokens"
    content = made.tokens.data
    with written_whole(folder / name) as draft:
        draft.write_bytes(content)
    return Part(split, name, hashlib.sha256(content).hexdigest(), made.length, made.characters, made.bytes)


def _note(folder: Path, parts: list[Part]) -> None:
    noted = {"tokenizer": checksum(folder / "tokenizer.json"), "parts": list(map(asdict, parts))}
    with written_whole(folder / "parts.json") as draft:
        draft.write_text(json.dumps(noted) + "\n", encoding="utf-8")


def _found(folder: Path) -> tuple[Tokenizer, list[Part]] | None:
    """What an interrupted encoding left: its tokenizer, and its parts up to the first that is damaged."""
    try:
        noted = json.loads((folder / "parts.json").read_text(encoding="utf-8"))
        if noted["tokenizer"] != checksum(folder / "tokenizer.json"):
            return None
        tokenizer, parts = tokenizers.load(folder / "tokenizer.json"), []
        for part in (Part(**one) for one in noted["parts"]):
            if not (folder / part.file).is_file() or checksum(folder / part.file) != part.sha256:
                break
            parts.append(part)
        return tokenizer, parts
    except (OSError, ValueError, KeyError, TypeError, RunError):
        return None


def sizes_of(parts: list[Part]) -> dict[str, dict[str, int]]:
    """The bytes and the characters of each split, without breaks."""
    of = {split: [part for part in parts if part.split == split] for split in SPLITS}
    return {
        "bytes": {split: sum(part.bytes for part in those) for split, those in of.items()},
        "characters": {split: sum(part.characters for part in those) for split, those in of.items()},
    }


def join(folder: Path, parts: list[Part], tokenizer: Tokenizer, to: Path) -> None:
    """Writes the tokens of each split to a file of their own, as numpy does."""
    dtype = np.dtype(dtype_of(tokenizer))
    for split in SPLITS:
        files = [folder / part.file for part in parts if part.split == split]
        tokens = sum(file.stat().st_size for file in files) // dtype.itemsize
        header = {"descr": np.lib.format.dtype_to_descr(dtype), "fortran_order": False, "shape": (tokens,)}
        with (to / f"{split}.npy").open("wb") as file:
            np.lib.format.write_array_header_1_0(file, header)
            for one in files:
                with one.open("rb") as part:
                    shutil.copyfileobj(part, file, 2**20)


def checksum(path: Path) -> str:
    """Returns the SHA-256 of a file."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()

"""Looks at a corpus before it is trained on: what it holds, what each tokenizer makes of it, what is there twice."""

from __future__ import annotations

import hashlib
import re
import unicodedata
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from models import config
from models.text import tokenizers
from models.text.corpus import BREAK, SPLITS, bytes_of, characters_of, parts_of

SAMPLE = 20_000_000
"""Characters of a text that tokenizers are learned on and tried on, in pieces from all of it; scripts likewise."""

PIECES = 100

PARAGRAPH = 100
"""Characters from which on a paragraph counts as one that should not be there twice."""


@dataclass(frozen=True)
class Duplicates:
    """Documents, or long paragraphs of a single one, that say what an earlier one says."""

    units: str
    count: int
    of: int
    share: float
    """Of all characters."""
    across_splits: int
    """How many of them are held out, while the first is trained on."""


@dataclass(frozen=True)
class Tokenized:
    """What a tokenizer makes of a text; of a long one, an estimate from a sample."""

    kind: str
    vocabulary_size: int
    train_tokens: int
    bytes_per_token: float


@dataclass(frozen=True)
class Inspection:
    """What is in a corpus. `scripts` has the share of each script among the letters, the largest first."""

    name: str
    files: str
    documents: int
    bytes: int
    characters: dict[str, int]
    """Of each split."""
    scripts: dict[str, float]
    duplicates: Duplicates
    longest_line: int
    """In characters."""
    is_sampled: bool
    tokenizers: list[Tokenized]


def inspect(source: config.Corpus, kinds: Iterable[tuple[str, int]]) -> Inspection:
    """Returns what is in a corpus, and what these tokenizers, with the sizes of their vocabularies, make of it.

    Raises CorpusError as `load_corpus` does.
    """
    read, parts = parts_of(source)
    sampled = _sample(parts["train"])
    sizes, characters = ({split: of(part) for split, part in parts.items()} for of in (bytes_of, characters_of))
    return Inspection(
        name=read.name,
        files=read.files,
        documents=read.text.count(BREAK) + 1,
        bytes=sum(sizes.values()),
        characters=characters,
        scripts=_scripts(sampled),
        duplicates=_duplicates(_once(parts) if source.weights else parts),
        longest_line=max(map(len, re.split(f"[\n{BREAK}]", read.text))),
        is_sampled=sum(map(len, sampled)) < characters["train"],
        tokenizers=[_tokenized(kind, size, sampled, sizes["train"]) for kind, size in kinds],
    )


def _sample(text: str) -> list[str]:
    """Documents of a text; of a long one, pieces of SAMPLE characters together, from all of it."""
    if len(text) <= SAMPLE:
        return [document for document in text.split(BREAK) if document]
    length, stride = SAMPLE // PIECES, len(text) // PIECES
    pieces = (text[start : start + length] for start in range(0, stride * PIECES, stride))
    return [document for piece in pieces for document in piece.split(BREAK) if document]


def _tokenized(kind: str, size: int, documents: list[str], train_bytes: int) -> Tokenized:
    tokenizer = tokenizers.learn(kind, documents, size)
    tokens = sum(len(tokenizer.encode(block)) for document in documents for block in tokenizers.blocks(document))
    sampled_bytes = sum(len(document.encode()) for document in documents)
    per_token = sampled_bytes / tokens
    return Tokenized(kind, tokenizer.vocabulary_size, round(train_bytes / per_token), per_token)


def _scripts(documents: list[str]) -> dict[str, float]:
    counts = Counter(character for document in documents for character in document)
    letters: Counter[str] = Counter()
    for character, count in counts.items():
        if character.isalpha():
            letters[_script(character)] += count
    total = sum(letters.values())
    return {script: count / total for script, count in letters.most_common()}


def _script(letter: str) -> str:
    """The script of a letter by its name in Unicode: `GREEK SMALL LETTER ALPHA` is Greek."""
    first = unicodedata.name(letter, "UNKNOWN").partition(" ")[0].partition("-")[0]
    return "Chinese characters" if first == "CJK" else first.capitalize()


def _once(parts: dict[str, str]) -> dict[str, str]:
    """The splits of a mixture, without what its weights repeat."""
    return parts | {"train": BREAK.join(dict.fromkeys(parts["train"].split(BREAK)))}


def _duplicates(parts: dict[str, str]) -> Duplicates:
    several = any(BREAK in part for part in parts.values())
    first_in: dict[bytes, str] = {}
    count = of = repeated = across = 0
    for split in SPLITS:
        for unit in _units(parts[split], several):
            of += 1
            key = hashlib.blake2b(unit.encode(), digest_size=16).digest()
            if key in first_in:
                count, repeated = count + 1, repeated + len(unit)
                across += split != "train" and first_in[key] == "train"
            else:
                first_in[key] = split
    share = repeated / sum(map(len, parts.values()))
    return Duplicates("documents" if several else "long paragraphs", count, of, share, across)


def _units(part: str, several: bool) -> Iterator[str]:
    if several:
        yield from (document.strip() for document in part.split(BREAK) if document.strip())
    else:
        paragraphs = (one.strip() for one in re.split(r"\n\s*\n", part))
        yield from (one for one in paragraphs if len(one) >= PARAGRAPH)

"""Text that need not fit in memory: read piece by piece, split, sampled, and cut into blocks to encode."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass

from models.errors import CorpusError

SPLITS = ("train", "validation", "test")
BREAK = "\ud800"
"""Stands between documents until they are encoded: a lone surrogate, which no well-formed text contains."""

LARGE = 50_000_000
"""Characters up to which a text is kept in memory."""

SAMPLE = 500_000_000
"""Characters of a train split that words and byte pairs are learned from, in stretches from all of it."""

STRETCH = 1_000_000

Section = tuple[str, str]
"""A piece of text, after the name of what it is a piece of."""


@dataclass(frozen=True, eq=False)
class Stream:
    """A text with its breaks that is read anew by each call of `pieces`, and where its splits lie."""

    name: str
    fingerprint: str
    places: dict[str, slice]
    pieces: Callable[[], Iterator[str]]
    files: str = ""

    def by_split(self) -> Iterator[Section]:
        """Yields the text of the splits, one after the other. Raises CorpusError if it is another one than it was."""
        digest, begin = hashlib.sha256(), 0
        for piece in self.pieces():
            digest.update(encoded(piece))
            for split, place in self.places.items():
                if part := piece[max(place.start - begin, 0) : max(place.stop - begin, 0)]:
                    yield split, part
            begin += len(piece)
        if self.fingerprint != f"sha256:{digest.hexdigest()}":
            raise CorpusError(f"corpus {self.name}: the text changed while it was read; start again when it is written")

    def length(self, split: str) -> int:
        """The characters of a split, its breaks included."""
        return int(self.places[split].stop - self.places[split].start)

    def sample(self, characters: int | None) -> Iterator[str]:
        """Yields about `characters` of the train split, in stretches from all of it, or all; the same at each call."""
        pieces = (part for split, part in self.by_split() if split == "train")
        total = self.length("train")
        if characters is None:
            yield from blocks_of(pieces, STRETCH)
            return
        for number, stretch in enumerate(_stretches(pieces)):
            if number * characters // total < (number + 1) * characters // total:
                yield stretch


def encoded(text: str) -> bytes:
    """Returns the bytes of a text with its breaks, of which a fingerprint is made."""
    return text.encode(errors="surrogatepass")


def joined(documents: Iterable[Iterable[str]]) -> Iterator[str]:
    """Yields the pieces of documents, with a break before each that has text but the first."""
    is_first = True
    for document in documents:
        is_inside = False
        for piece in filter(None, document):
            yield piece if is_first or is_inside else BREAK + piece
            is_first, is_inside = False, True


def gathered(sections: Iterable[Section]) -> Iterator[Section]:
    """Puts small pieces of the same section together."""
    held: list[str] = []
    name, length = "", 0
    for section, piece in sections:
        if held and (section != name or length >= STRETCH):
            yield name, "".join(held)
            held, length = [], 0
        name = section
        held.append(piece)
        length += len(piece)
    if held:
        yield name, "".join(held)


def without(pieces: Iterable[str], characters: int) -> Iterator[str]:
    """Leaves out the first characters of a text."""
    for piece in pieces:
        if left := piece[characters:]:
            yield left
        characters = max(0, characters - len(piece))


def blocks_of(pieces: Iterable[str], characters: int) -> Iterator[str]:
    """Cuts a text into blocks of at least that length, where no word or byte pair spans the border.

    A block that begins or ends with a break has a document without text there, so that the blocks' tokens, one after
    the other, are those of the text.
    """
    rest = ""
    for piece in pieces:
        rest += piece
        cut = _last_border(rest) if len(rest) >= characters else 0
        if cut:
            yield rest[:cut]
            rest = rest[cut:]
    if rest:
        yield rest


def _stretches(pieces: Iterable[str]) -> Iterator[str]:
    """Cuts a text into stretches of equal length."""
    rest = ""
    for piece in pieces:
        rest += piece
        whole = len(rest) - len(rest) % STRETCH
        yield from (rest[begin : begin + STRETCH] for begin in range(0, whole, STRETCH))
        rest = rest[whole:]
    if rest:
        yield rest


def _last_border(text: str) -> int:
    """Where the last document or line begins, or else the last word; 0 if there is none."""
    line = max(text.rfind(BREAK, 1), _last_between(text, "\n") + 1)
    return line if line > 0 else max(0, _last_between(text, " "))


def _last_between(text: str, space: str) -> int:
    """Where `space` stands for the last time with other than space on both sides; -1 if nowhere."""
    end = len(text) - 1
    while (at := text.rfind(space, 1, end)) > 0 and (text[at - 1].isspace() or text[at + 1].isspace()):
        end = at
    return at

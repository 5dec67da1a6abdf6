"""Mixes texts in proportion to weights: documents of all of them in turn."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import cycle

from models.errors import CorpusError
from models.text.streams import BREAK

STRETCH = 5_000
"""Characters of a longer document that follow each other before it is another text's turn."""

MOST_PASSES = 100
"""How often a text may be there, before a mixture is refused: it would be little else."""


def mixed(texts: Sequence[str], weights: Sequence[float]) -> str:
    """Returns a text in which each text has its share, until all were there; small ones are there several times.

    `weights` are positive. Shares are right up to a document. Raises CorpusError for a text that would be there more
    than MOST_PASSES times.
    """
    length = max(len(text) / weight for text, weight in zip(texts, weights, strict=True))
    for number, (text, weight) in enumerate(zip(texts, weights, strict=True)):
        if weight * length > MOST_PASSES * len(text):
            times = weight * length / max(len(text), 1)
            raise CorpusError(
                f"corpus.weights[{number}]: its text would be there {times:,.0f} times in a pass over the others; "
                f"lower its weight, or give more text (at most {MOST_PASSES} times)"
            )
    return BREAK.join(_in_turn([cycle(list(_stretches(text))) for text in texts], weights, length))


def sampled(texts: Sequence[str], weights: Sequence[float]) -> str:
    """Returns a text in which each text has its share and nothing is there twice: beginnings of all but one."""
    length = min(len(text) / weight for text, weight in zip(texts, weights, strict=True))
    return BREAK.join(_in_turn([_stretches(text) for text in texts], weights, length))


def _in_turn(pieces: Sequence[Iterator[str]], weights: Sequence[float], length: float) -> Iterator[str]:
    """Yields pieces, the next one always of the text that is most behind its share, until all are long enough."""
    taken = [0.0] * len(pieces)
    while min(taken) < length:
        behind = taken.index(min(taken))
        piece = next(pieces[behind], None)
        if piece is None:  # breaks between documents count in its length
            return
        taken[behind] += (len(piece) + 1) / weights[behind]
        yield piece


def _stretches(text: str) -> Iterator[str]:
    for document in filter(None, text.split(BREAK)):
        start = 0
        while len(document) - start > 2 * STRETCH:
            line = document.rfind("\n", start + STRETCH, start + 2 * STRETCH) + 1
            end = line or start + STRETCH
            yield document[start:end]
            start = end
        yield document[start:]

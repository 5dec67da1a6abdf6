"""Mixtures of texts: each has its share in training and in what is held out, and nothing held out is trained on."""

from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from models.config import Corpus, resolve_path
from models.errors import CorpusError
from models.shorthand import corpus_meant
from models.text.corpus import load_corpus, parts_of
from models.text.inspection import inspect
from models.text.mixture import STRETCH, mixed, sampled
from models.text.streams import BREAK


def documents(letter: str, count: int, length: int = 9) -> str:
    return BREAK.join(letter * length for _ in range(count))


def share(text: str, letter: str) -> float:
    return text.count(letter) / (len(text) - text.count(BREAK))


@pytest.fixture
def corpus(tmp_path: Path) -> Corpus:
    (tmp_path / "a.txt").write_text("".join(f"aaa {number}\n" for number in range(20_000)))
    (tmp_path / "b.jsonl").write_text("".join(f'{{"text": "bbb {number}"}}\n' for number in range(9000)))
    paths = [str(tmp_path / "a.txt"), str(tmp_path / "b.jsonl")]
    return Corpus(path=paths, weights=[3, 1], field="text", split=(0.8, 0.1, 0.1))


@given(st.lists(st.tuples(st.integers(5, 60), st.floats(0.5, 4)), min_size=2, max_size=4))
def test_each_text_has_its_share_and_all_of_it_is_there(made: list[tuple[int, float]]) -> None:
    letters = "abcd"[: len(made)]
    texts = [documents(letter, count) for letter, (count, _) in zip(letters, made, strict=True)]
    weights = [weight for _, weight in made]
    text = mixed(texts, weights)
    taken = [text.count(letter) / weight for letter, weight in zip(letters, weights, strict=True)]
    assert max(taken) - min(taken) <= 10 / min(weights)
    assert all(text.count(letter) >= one.count(letter) for letter, one in zip(letters, texts, strict=True))
    once = sampled(texts, weights)
    assert all(once.count(letter) <= one.count(letter) for letter, one in zip(letters, texts, strict=True))
    taken = [once.count(letter) / weight for letter, weight in zip(letters, weights, strict=True)]
    assert max(taken) - min(taken) <= 10 / min(weights)


def test_texts_of_one_document_take_turns_at_the_ends_of_lines() -> None:
    line = "a" * 99 + "\n"
    text = mixed([line * 2000, "b" * (10 * STRETCH)], [1, 1])
    pieces = text.split(BREAK)
    assert all(piece.endswith("\n") for piece in pieces if piece.startswith("a"))
    assert {piece[0] for piece in pieces[:2]} == {"a", "b"}
    assert "".join(piece for piece in pieces if piece[0] == "a").startswith(line * 2000)


def test_a_weight_that_would_repeat_a_text_for_ever_is_refused() -> None:
    with pytest.raises(CorpusError, match=r"corpus.weights\[0\]: its text would be there 1,\d\d\d times"):
        mixed(["short", "long" * 1000], [0.6, 0.4])


def test_a_corpus_is_a_mixture_in_every_split(corpus: Corpus) -> None:
    source, parts = parts_of(corpus)
    assert source.files == "a mixture of 2 texts"
    for split, text in parts.items():
        ofa = sum(len(piece) for piece in text.split(BREAK) if "a" in piece)
        ofb = sum(len(piece) for piece in text.split(BREAK) if "b" in piece)
        assert ofa / (ofa + ofb) == pytest.approx(0.75, abs=0.04), split
    held_out = {piece for piece in parts["validation"].split(BREAK) if "b" in piece}
    assert not held_out & set(parts["train"].split(BREAK))
    assert parts_of(corpus)[0].text == source.text
    loaded = load_corpus(corpus, "character", 300)
    assert load_corpus(corpus.model_copy(update={"fingerprint": loaded.fingerprint}), "character", 300).name == (
        "a.txt, b.jsonl"
    )


def test_what_weights_repeat_is_not_called_a_duplicate(corpus: Corpus) -> None:
    found = inspect(corpus, [("byte", 300)])
    assert (found.duplicates.count, found.duplicates.across_splits) == (0, 0)


def test_a_validation_file_of_its_own_stays_as_it_is(corpus: Corpus, tmp_path: Path) -> None:
    (tmp_path / "own.jsonl").write_text('{"text": "held out"}\n')
    own = corpus.model_copy(update={"validation": str(tmp_path / "own.jsonl")})
    _, parts = parts_of(own)
    assert parts["validation"] == "held out"
    assert "aaa 19999" in parts["train"]
    assert parts["test"] == ""


def test_the_short_form_names_each_text_with_its_weight(tmp_path: Path) -> None:
    meant = corpus_meant([{"path": "a.txt", "weight": 0.7}, {"path": "b.txt", "weight": 0.3}])
    assert meant == {"path": ["a.txt", "b.txt"], "weights": [0.7, 0.3]}
    assert resolve_path(Corpus(**meant), tmp_path).weights == [0.7, 0.3]


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"path": "a.txt", "weights": [1.0]}, "weights are for a path that lists two texts or more"),
        ({"path": ["a.txt", "b.txt"], "weights": [1.0]}, "there are 1 weights for 2 paths; give one for each"),
        ({"path": ["a.txt", "b.txt"], "weights": [1.0, 0.0]}, "greater than 0"),
        ({"builtin": "markov", "weights": [1.0, 2.0]}, "weights are for a path that lists two texts or more"),
    ],
)
def test_weights_that_cannot_be_are_refused(given: dict[str, Any], said: str) -> None:
    with pytest.raises(ValidationError, match=said):
        Corpus(**given)

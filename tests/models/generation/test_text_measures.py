"""The measures of text: each by its definition on small examples, and their laws on any."""

import math
import random

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from models.generation.text_measures import jensen_shannon, measures, quality_and_diversity, text_divergence


def walk(letters: int, seed: int, texts: int = 40, length: int = 64) -> list[str]:
    """Texts of a source in which each letter is followed by few others."""
    dice = random.Random(seed)
    source = random.Random(9)
    follow = [[source.randrange(letters) for _ in range(3)] for _ in range(letters)]
    written = []
    for _ in range(texts):
        state = dice.randrange(letters)
        line = []
        for _ in range(length):
            state = dice.choice(follow[state])
            line.append(chr(97 + state))
        written.append("".join(line))
    return written


@given(counts=st.lists(st.tuples(st.integers(0, 9), st.integers(0, 9)), min_size=1, max_size=8))
def test_jensen_shannon_is_symmetric_bounded_and_nothing_for_equals(counts: list[tuple[int, int]]) -> None:
    left, right = (np.array(column, dtype=float) + 1e-9 for column in zip(*counts, strict=True))
    assert jensen_shannon(left, right) == pytest.approx(jensen_shannon(right, left), abs=1e-12)
    assert -1e-9 <= jensen_shannon(left, right) <= 1 + 1e-9
    assert jensen_shannon(left, 3 * left) == pytest.approx(0, abs=1e-9)


def test_jensen_shannon_by_hand() -> None:
    assert jensen_shannon(np.array([1.0, 0]), np.array([0, 1.0])) == pytest.approx(1)
    half = -(0.75 * math.log2(0.75) + 0.25 * math.log2(0.25)) - 0.5
    assert jensen_shannon(np.array([1.0, 0]), np.array([2.0, 2.0])) == pytest.approx(half)


def test_divergence_by_hand() -> None:
    """A model that knows one letter, twice, and people who write two, always the same."""
    human = ["ab"] * 4
    letters = jensen_shannon(np.array([2.0, 0]), np.array([1.0, 1]))
    pairs = 1.0  # texts of two characters have no longer n-grams
    assert text_divergence(["aa", "aa"], human, 2) == pytest.approx((letters + pairs) / 2)
    # One that writes as differently as it can is no closer, but its own halves are as far from each other.
    letters = (jensen_shannon(np.array([2.0, 0]), np.array([1.0, 1])) * 2) / 2 - 1 / 2
    assert text_divergence(["aa", "bb"], human, 2) == pytest.approx((letters + 1 - 1 / 2) / 2)


@given(st.integers(0, 1000))
@settings(max_examples=8, deadline=None)
def test_no_model_is_closer_than_one_that_writes_as_people_do(seed: int) -> None:
    def mean(letters: int, texts: int) -> float:
        found = [
            text_divergence(
                walk(letters, seed + 10 * turn, texts), walk(12, seed + turn + 7777) + walk(12, seed + turn + 8888), 64
            )
            for turn in range(6)
        ]
        return float(np.mean(found))

    assert mean(12, 40) == pytest.approx(0, abs=0.03)
    assert min(mean(11, 40), mean(13, 40)) > mean(12, 40) + 0.05


def test_human_text_is_as_different_as_human_text() -> None:
    found = [text_divergence(walk(12, seed), walk(12, seed + 100) + walk(12, seed + 200), 64) for seed in range(8)]
    assert np.mean(found) == pytest.approx(0, abs=0.01)
    stranger = text_divergence(walk(11, 1), walk(12, 2) + walk(12, 3), 64)
    assert stranger > 0.1
    assert text_divergence(walk(12, 1)[:1] * 40, walk(12, 2) + walk(12, 3), 64) > 0.05  # one text, over and over


@given(texts=st.lists(st.text(max_size=9), min_size=2, max_size=6))
@settings(max_examples=40, deadline=None)
def test_divergence_of_any_texts_is_bounded(texts: list[str]) -> None:
    human = ["the wall", "on the", "a mat, a", "cat sat."] * 3
    assert -1 <= text_divergence(texts, human, 8) <= 1


def test_missing_text_counts_as_a_difference() -> None:
    human = walk(6, 1) + walk(6, 2)
    whole = text_divergence(walk(6, 3), human, 64)
    assert text_divergence([text[:32] for text in walk(6, 3)], human, 64) > whole + 0.1
    assert text_divergence([""] * 40, human, 64) > 0.5


def test_measures_of_the_same_text_and_of_another() -> None:
    human = ["the cat sat on the mat and slept", "a dog ran over the long green hill", "we went home at noon, by boat."]
    same = measures(human, human)
    assert same["bleu"] == pytest.approx(100)
    assert same["rouge_l"] == pytest.approx(1)
    other = measures(["zzz yyy xxx www vvv", "qqq ppp", "ooo nnn mmm lll"], human)
    assert other["bleu"] < 1
    assert other["rouge_l"] == 0


def test_measures_by_hand() -> None:
    found = measures(["a b a b a b", "a b c d e f"], ["a x a x a x", "a b c d e f"])
    assert found["distinct_1"] == pytest.approx(6 / 12)
    assert found["distinct_2"] == pytest.approx(len({"ab", "ba", "bc", "cd", "de", "ef"}) / 10)
    assert found["repetition"] == pytest.approx(1 - (2 + 3) / 6)
    assert found["rouge_l"] == pytest.approx((0.5 + 1) / 2)


def test_zipf_is_the_slope_of_frequency_over_rank() -> None:
    words = [f"w{rank}" for rank in range(1, 40) for _ in range(round(4000 / rank**1.3))]
    assert measures([" ".join(words)], ["a b"])["zipf"] == pytest.approx(1.3, abs=0.02)


def test_text_that_repeats_itself_shows() -> None:
    human = walk(20, 5, texts=12)
    varied, dull = ([" ".join(text) for text in texts] for texts in (walk(20, 6, texts=12), ["abcdefgh" * 8] * 12))
    spaced = [" ".join(text) for text in human]
    assert measures(dull, spaced)["repetition"] > measures(varied, spaced)["repetition"] + 0.5
    assert quality_and_diversity(dull, spaced)["self_bleu"] == pytest.approx(100)
    assert quality_and_diversity(varied, spaced)["self_bleu"] < 90


def test_text_without_spaces_is_measured_by_characters() -> None:
    human = walk(12, 1, texts=4)
    assert measures(human, human)["bleu"] == pytest.approx(100)
    assert 0 < measures(walk(12, 2, texts=4), human)["rouge_l"] < 1


@pytest.mark.parametrize("texts", [["", ""], ["one", ""], [" ", "\n"]])
def test_hardly_any_text_is_no_error(texts: list[str]) -> None:
    found = measures(texts, ["some words here", "and there"])
    assert all(math.isfinite(value) for value in found.values())

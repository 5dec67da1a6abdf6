"""Held-out text as prompts and what follows, and what a model writes after them."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from models.config import Config
from models.generation.continuations import LENGTH, Continuations
from models.nn.network import build
from models.text.tokenizers import learn

TEXT = "".join(f"On day {number} the wall fell {number % 7} times, naïvely. " for number in range(120))
every_kind = pytest.mark.parametrize("kind", ["byte", "character", "word", "byte-pair"])


def places(kind: str, text: str = TEXT) -> Continuations:
    tokenizer = learn(kind, TEXT, 400)
    return Continuations.of(tokenizer, tokenizer.encode(text), len(text))


@every_kind
def test_texts_follow_their_prompts_and_do_not_meet(kind: str) -> None:
    found = places(kind)
    assert len(found) >= 10
    at = 0
    pieces = zip(found.prompts, found.human, found.others, strict=True)
    for prompt, human, other in list(pieces)[:-1]:  # the last one may end with the text
        before = found.tokenizer.decode(prompt.numpy()).lstrip("\ufffd")
        assert before + human in TEXT
        assert len(human) == len(other) == found.length == LENGTH
        assert TEXT.index(human, max(0, at - LENGTH // 4)) >= at - LENGTH // 4  # dense text may reach over a little
        at = TEXT.index(human, max(0, at - LENGTH // 4)) + LENGTH
        at = TEXT.index(other, at - LENGTH // 2) + LENGTH


@every_kind
def test_of_a_long_text_only_what_is_compared_is_decoded(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """With characters that the vocabulary does not hold: eight tokens each."""
    text = (TEXT + "\U0001f469 \U0001f680" * 60) * 60
    decoded: list[int] = []
    tokenizer = learn(kind, TEXT, 400)
    own = type(tokenizer).decode
    monkeypatch.setattr(type(tokenizer), "decode", lambda self, ids: (decoded.append(len(ids)), own(self, ids))[1])
    found = Continuations.of(tokenizer, tokenizer.encode(text), len(text), most=8)
    assert sum(decoded) < len(tokenizer.encode(text)) / 2
    whole = Continuations.of(tokenizer, tokenizer.encode(text), len(text), most=8, most_for_character=len(text))
    assert whole.all == found.all


@every_kind
@given(length=st.integers(2, 700))
@settings(max_examples=25, deadline=None)
def test_short_text_gives_shorter_texts(kind: str, length: int) -> None:
    tokenizer = learn(kind, TEXT, 400)
    text = TEXT[:length]
    if len(tokenizer.encode(text)) < 2:
        return
    found = Continuations.of(tokenizer, tokenizer.encode(text), len(text))
    assert len(found) >= 1
    assert found.tokens >= 1
    assert -1 <= found.divergence(found.others) <= 1


@every_kind
def test_a_model_writes_enough_for_a_text(kind: str) -> None:
    found = places(kind).some(6)
    torch.manual_seed(0)
    model = build(Config(hidden_size=8), found.tokenizer.vocabulary_size)
    looks: list[None] = []
    configs = [Config(), Config(temperature=0.5)]
    texts = found.written(model, configs, seed=3, on_tokens=lambda: looks.append(None))
    assert [len(each) for each in texts] == [6, 6]
    assert texts[0] != texts[1]
    assert texts == found.written(model, configs, seed=3)
    assert texts[1] == found.written(model, configs[1:], seed=3)[0] != found.written(model, configs[1:], seed=4)[0]
    assert looks


def test_what_is_asked_in_between_may_end_it() -> None:
    found = places("character").some(4)

    def stop() -> None:
        raise KeyboardInterrupt

    model = build(Config(hidden_size=8), found.tokenizer.vocabulary_size)
    with pytest.raises(KeyboardInterrupt):
        found.written(model, [Config()], 0, stop)


def test_some_are_spread_evenly() -> None:
    found = places("character")
    few = found.some(3)
    assert few.human == [found.human[0], found.human[round((len(found) - 1) / 2)], found.human[-1]]
    assert np.array_equal(few.prompts[-1], found.prompts[-1])
    assert len(found.some(10_000)) == len(found)

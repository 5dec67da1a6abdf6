"""Scores: each held-out token counts once, with the context that is promised, as if it were read one by one."""

import math
from collections.abc import Callable
from dataclasses import replace
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from models.config import Budget, Config
from models.nn.network import build
from models.text.corpus import EncodedCorpus
from models.training import metrics
from models.training.checkpoint import weights
from models.training.loop import Training, train
from models.training.metrics import LANE, PIECE, WARM_UP, HeldOut, Score, evaluate, evaluate_part, pieces_of

V = 7


class Guess(nn.Module):
    """Predicts each token from the one before it, by a table; remembers how it was called."""

    def __init__(self, table: Tensor, carries_state: bool) -> None:
        super().__init__()
        self.table, self.carries_state = nn.Parameter(table), carries_state
        self.calls: list[tuple[int, int]] = []

    def forward(self, tokens: Tensor, state: Any = None) -> tuple[Tensor, Any]:
        assert not self.training
        self.calls.append(tuple(tokens.shape))  # type: ignore[arg-type]
        return self.table[tokens], tokens[:, -1:] if self.carries_state else None


def held_out(before: int, length: int, seed: int = 0) -> HeldOut:
    random = np.random.default_rng(seed)
    return HeldOut(
        random.integers(V, size=before).astype(np.uint8), random.integers(V, size=length).astype(np.uint8), 3
    )


lengths = st.integers(1, 60) | st.sampled_from([LANE - 1, LANE, 2 * LANE - 1, 2 * LANE, 2 * LANE + 1, 5 * LANE + 77])
befores = st.integers(1, 30) | st.sampled_from([WARM_UP, WARM_UP + 1, WARM_UP + 5])
any_text = given(before=befores, length=lengths, window=st.integers(1, 20) | st.just(64), carries_state=st.booleans())


@any_text
@settings(max_examples=60, deadline=None)
def test_a_guess_at_random_costs_the_logarithm_of_the_choice(
    before: int, length: int, window: int, carries_state: bool
) -> None:
    score = evaluate(Guess(torch.zeros(V, V), carries_state), held_out(before, length), V, window)
    assert score.nats_per_token == pytest.approx(math.log(V), rel=1e-6)
    assert score.bits_per_byte == pytest.approx(length * math.log2(V) / 3, rel=1e-6)
    assert score.perplexity == pytest.approx(V, rel=1e-6)


@any_text
@settings(max_examples=60, deadline=None)
def test_every_token_counts_once(before: int, length: int, window: int, carries_state: bool) -> None:
    """Each pair of neighbours has a price of its own, so that none can stand for another."""
    table = torch.randn(V, V, generator=torch.Generator().manual_seed(1))
    text = held_out(before, length)
    told = np.concatenate([text.before[-1:], text.tokens[:-1]])
    price = -table.log_softmax(-1)[told.astype(np.int64), text.tokens.astype(np.int64)].sum().item()
    score = evaluate(Guess(table, carries_state), text, V, window)
    assert score.nats_per_token * length == pytest.approx(price, rel=1e-5)


@pytest.mark.parametrize(("carries_state", "length"), [(True, LANE), (False, 8)])
@given(stride=st.integers(1, 40))
def test_with_a_stride_every_nth_piece_counts(carries_state: bool, length: int, stride: int) -> None:
    table = torch.randn(V, V, generator=torch.Generator().manual_seed(1))
    text = held_out(WARM_UP + 1, 5 * LANE)
    told = np.concatenate([text.before[-1:], text.tokens[:-1]])
    prices = -table.log_softmax(-1)[told.astype(np.int64), text.tokens.astype(np.int64)].numpy()
    read = prices[np.arange(len(prices)) // length % stride == 0]
    score = evaluate(Guess(table, carries_state), text, V, 16, stride=stride)
    assert score.nats_per_token == pytest.approx(read.mean(), rel=1e-5)
    whole = evaluate(Guess(table, carries_state), text, V, 16)
    ratio = whole.bits_per_byte / whole.nats_per_token
    assert score.bits_per_byte / score.nats_per_token == pytest.approx(ratio)


@given(tokens=st.integers(1, 50_000), most=st.integers(1, 60_000), more=st.integers(0, 20_000))
@settings(max_examples=60, deadline=None)
def test_a_part_is_spread_over_the_text_and_lies_within_a_larger_one(tokens: int, most: int, more: int) -> None:
    pieces = pieces_of(tokens, most)
    assert {piece.start for piece in pieces} <= {piece.start for piece in pieces_of(tokens, most + more)}
    assert sum(piece.stop - piece.start for piece in pieces) <= max(most, PIECE)
    assert all(0 <= piece.start < piece.stop <= tokens for piece in pieces)
    widest = 2 * tokens / len(pieces) + 2 * PIECE
    places = [0, *(piece.start for piece in pieces), tokens]
    assert max(after - before for before, after in pairwise(places)) <= widest


@pytest.mark.parametrize("carries_state", [True, False])
@pytest.mark.parametrize("before", [1, WARM_UP + 5])
@given(most=st.integers(1, 12_000), window=st.integers(1, 20) | st.sampled_from([64, 3000]))
@settings(max_examples=30, deadline=None)
def test_each_token_of_a_part_counts_once_and_so_do_its_bytes(
    carries_state: bool, before: int, most: int, window: int
) -> None:
    table = torch.randn(V, V, generator=torch.Generator().manual_seed(1))
    text = replace(held_out(before, 20 * PIECE + 77), token_bytes=np.array([1, 2, 3, 4, 0.5, 0.5, 0]))
    told = np.concatenate([text.before[-1:], text.tokens[:-1]])
    prices = -table.log_softmax(-1)[told.astype(np.int64), text.tokens.astype(np.int64)].numpy()
    read = np.concatenate([np.arange(piece.start, piece.stop) for piece in pieces_of(len(text.tokens), most)])
    score = evaluate_part(Guess(table, carries_state), text, V, window, most)
    assert score.nats_per_token == pytest.approx(prices[read].mean(), rel=1e-5)
    assert text.token_bytes is not None
    text_bytes = text.token_bytes[text.tokens[read]].sum()
    assert score.bits_per_byte == pytest.approx(prices[read].sum() / math.log(2) / text_bytes, rel=1e-5)


@torch.no_grad()
@pytest.mark.parametrize("architecture", ["lstm", "transformer"])
def test_a_part_is_read_with_the_context_that_the_whole_is(architecture: str) -> None:
    model, text = lively(architecture=architecture, sequence_length=16), held_out(WARM_UP + 1, 4 * PIECE)
    told = np.concatenate([text.before, text.tokens])
    last = HeldOut(told[: len(text.before) + 2 * PIECE], text.tokens[2 * PIECE : 3 * PIECE], 3)
    first = HeldOut(text.before, text.tokens[:PIECE], 3)
    expected = (one.nats_per_token for one in (evaluate(model, part, V, 16) for part in (first, last)))
    assert evaluate_part(model, text, V, 16, 2 * PIECE).nats_per_token == pytest.approx(sum(expected) / 2, rel=1e-5)


def test_few_logits_are_held_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    text = held_out(WARM_UP + 1, 5 * LANE)
    for carries_state in (True, False):
        whole = evaluate(Guess(torch.eye(V), carries_state), text, V, 16)
        for limit in (1, 5000):
            monkeypatch.setattr(metrics, "LOGITS", limit)
            model = Guess(torch.eye(V), carries_state)
            assert evaluate(model, text, V, 16).nats_per_token == pytest.approx(whole.nats_per_token)
            least = 5 if carries_state else 16  # lanes, or one window
            assert all(rows * length * V <= max(limit, least * V) for rows, length in model.calls)
        monkeypatch.undo()


def test_a_score_does_not_hang_on_anything_but_weights_and_text() -> None:
    torch.manual_seed(0)
    model = build(Config(hidden_size=8, dropout=0.5), V).train()
    text = held_out(300, 100)
    before = {name: weight.clone() for name, weight in weights(model).items()}
    first = evaluate(model, text, V, 8)
    torch.rand(1)
    assert evaluate(model, text, V, 8) == first
    assert model.training
    assert evaluate(model.eval(), text, V, 8) == first
    assert not model.training
    assert all(torch.equal(before[name], weight) and weight.grad is None for name, weight in weights(model).items())


# As if the text were read one token at a time.


def surprise(logits: Tensor, token: int) -> float:
    return -logits.log_softmax(-1)[token].item()


@torch.no_grad()
def one_pass(model: nn.Module, text: HeldOut, warm_up: int) -> float:
    """Nats for each token when the text is read once, token by token, after the last `warm_up` before it."""
    told = np.concatenate([text.before, text.tokens])[len(text.before) - warm_up - 1 :]
    state, nats = None, 0.0
    for place, (token, following) in enumerate(pairwise(told)):
        logits, state = model(torch.tensor([[int(token)]]), state)
        nats += surprise(logits[0, 0], int(following)) if place >= warm_up else 0.0
    return nats / len(text.tokens)


@torch.no_grad()
def in_windows(model: nn.Module, text: HeldOut, window: int) -> float:
    """Nats for each token in windows that overlap by half, of which what stands in the second half counts."""
    told = np.concatenate([text.before, text.tokens]).astype(np.int64)
    first, stride = len(text.before), window - window // 2
    nats = 0.0
    for place in range(len(text.tokens)):
        start = first - 1 + place // stride * stride - min(window // 2, first - 1)
        logits, _ = model(torch.from_numpy(told[None, start : first + place]), None)
        nats += surprise(logits[0, -1], int(told[first + place]))
    return nats / len(text.tokens)


def lively(**given: Any) -> nn.Module:
    torch.manual_seed(0)
    model = build(Config(**{"hidden_size": 16, "heads": 2} | given), V).eval()
    for parameter in model.parameters():
        parameter.data += 0.3 * torch.randn_like(parameter)
    return model


@pytest.mark.parametrize("architecture", ["rnn", "lstm", "gru"])
@pytest.mark.parametrize("before", [1, 40, WARM_UP + 1, WARM_UP + 50])
def test_a_short_text_is_read_in_one_pass(architecture: str, before: int) -> None:
    model, text = lively(architecture=architecture), held_out(before, 300)
    expected = one_pass(model, text, min(before - 1, WARM_UP))
    assert evaluate(model, text, V, 8).nats_per_token == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("positions", ["rotary", "sinusoidal"])
@pytest.mark.parametrize("window", [1, 2, 3, 8, 16])
@pytest.mark.parametrize(("before", "length"), [(1, 5), (4, 50), (20, 61)])
def test_a_transformer_reads_windows_that_overlap_by_half(
    positions: str, window: int, before: int, length: int
) -> None:
    model = lively(architecture="transformer", positions=positions, sequence_length=window)
    text = held_out(before, length)
    expected = in_windows(model, text, window)
    assert evaluate(model, text, V, window).nats_per_token == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("architecture", ["rnn", "lstm", "gru"])
def test_lanes_are_as_good_as_one_pass(architecture: str, markov: EncodedCorpus) -> None:
    """A trained model reads a text of four lanes in parallel; measured, they differ by a hundred-millionth."""
    config = Config(architecture=architecture, hidden_size=32, learning_rate=1e-2)
    trained = train(config, markov, Budget(tokens=30_000, rungs=1)).model
    text = HeldOut(markov.train[-WARM_UP - 1 :], markov.validation[: 4 * LANE], 4 * LANE)
    score = evaluate(trained, text, markov.tokenizer.vocabulary_size, 64)
    assert score.nats_per_token == pytest.approx(one_pass(trained, text, WARM_UP), rel=1e-6)


# Bits per byte.


@pytest.mark.parametrize("kind", ["byte", "character", "word", "byte-pair"])
def test_bits_per_byte_are_those_of_the_text_whatever_its_tokens(
    kind: str, corpus_of: Callable[..., EncodedCorpus]
) -> None:
    corpus = corpus_of("naïve 世界 👩‍🚀 text\n" * 200, kind, (0.8, 0.2, 0.0))
    text_bytes = len(corpus.tokenizer.decode(corpus.validation).encode())
    assert text_bytes == corpus.bytes["validation"]
    config = Config(hidden_size=8, sequence_length=8, batch_size=2)
    running = Training(config, corpus, Budget(tokens=16), torch.device("cpu"))
    for parameter in running.model.parameters():
        parameter.data.zero_()
    score = running.evaluate()
    guessing = len(corpus.validation) * math.log2(corpus.tokenizer.vocabulary_size) / text_bytes
    assert score.bits_per_byte == pytest.approx(guessing)
    assert score.nats_per_token == pytest.approx(math.log(corpus.tokenizer.vocabulary_size))


def test_two_spellings_of_the_same_prediction_score_the_same() -> None:
    """Text of é and ü, half of each: a bit a character, however many tokens that takes."""
    characters = np.array([0, 1, 1, 0] * 50)
    by_character = HeldOut(characters[:1], characters, 400)
    halves = np.stack([np.full(200, 2), characters], axis=1).ravel()  # the byte both share, then the one of its own
    by_byte = HeldOut(halves[1:2], halves, 400)
    sure, torn = [-1e9, -1e9, 0.0], [0.0, 0.0, -1e9]
    first = evaluate(Guess(torch.tensor([torn, torn, torn]), True), by_character, 3, 8)
    second = evaluate(Guess(torch.tensor([sure, sure, torn]), True), by_byte, 3, 8)
    assert first.bits_per_byte == pytest.approx(second.bits_per_byte) == pytest.approx(0.5)
    assert first.nats_per_token == pytest.approx(2 * second.nats_per_token)


def test_a_hopeless_score_is_a_score() -> None:
    score = Score.of(nats=1e6, tokens=1000, text_bytes=1000)
    assert score.perplexity == math.inf
    assert score.bits_per_byte == pytest.approx(1000 / math.log(2))


# A generator without a state.


class Second(nn.Module):
    """Predicts each token from the two before it, by a table, and remembers nothing."""

    def __init__(self, carries_state: bool) -> None:
        super().__init__()
        self.carries_state = carries_state
        self.table = nn.Parameter(torch.randn(V, V, V, generator=torch.Generator().manual_seed(2)))

    def forward(self, tokens: Tensor, state: None = None) -> tuple[Tensor, None]:
        assert state is None
        before = nn.functional.pad(tokens[:, :-1], (1, 0))
        return self.table[before, tokens], None


@pytest.mark.parametrize("carries_state", [False, True])
@pytest.mark.parametrize("length", [50, 3 * LANE])
def test_without_a_state_a_text_is_scored_as_it_would_be_written(carries_state: bool, length: int) -> None:
    """Each token is predicted from what stands before it, wherever the text was cut to be read."""
    model, text = Second(carries_state), held_out(300, length)
    told = torch.from_numpy(np.concatenate([text.before, text.tokens]).astype(np.int64))[None, -length - 2 :]
    following = model(told[:, :-1])[0][0, 1:].log_softmax(-1)
    expected = -following.gather(1, told[0, 2:, None]).mean().item()
    assert evaluate(model, text, V, 16).nats_per_token == pytest.approx(expected, rel=1e-5)

"""Training: repeatable to the bit, stopped and resumed without a trace, within its budget, and as good as can be."""

import math
import os
import signal
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import cache
from itertools import count
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from models.config import Budget, Config
from models.errors import CorpusError, DeviceError
from models.nn.network import build
from models.text.batches import Streams, Windows
from models.text.corpus import EncodedCorpus
from models.training import loop, metrics, optimizers, scoring
from models.training.checkpoint import BadCheckpoint, read_checkpoint, weights, write_checkpoint
from models.training.loop import Diverged, Evaluation, Trained, Training, train, usable_device
from models.training.metrics import evaluate, evaluate_part, pieces_of
from models.training.observer import TrainingObserver
from models.training.optimizers import build_optimizers, relative_learning_rate

ARCHITECTURES = ("rnn", "lstm", "gru", "transformer")
OPTIMIZERS = {"adamw": 2e-2, "adam": 2e-2, "sgd": 0.5, "rmsprop": 3e-3, "muon": 2e-2}
CPU = torch.device("cpu")


def small(**given: Any) -> Config:
    """A configuration whose step takes a millisecond: 32 tokens."""
    values = {"hidden_size": 12, "heads": 2, "sequence_length": 8, "batch_size": 4, "learning_rate": 1e-2}
    return Config(**values | given)


def steps(count: int, rungs: int = 4) -> Budget:
    return Budget(tokens=32 * count, rungs=rungs)


def timeless(evaluations: list[Evaluation]) -> list[Evaluation]:
    return [replace(evaluation, seconds=0.0) for evaluation in evaluations]


def assert_same(one: Trained, other: Trained) -> None:
    """To the last bit."""
    assert timeless(one.evaluations) == timeless(other.evaluations)
    assert (one.best.rung, one.tokens) == (other.best.rung, other.tokens)
    ours, theirs = weights(one.model), weights(other.model)
    assert ours.keys() == theirs.keys()
    for name in ours:
        assert torch.equal(ours[name], theirs[name]), name


@pytest.mark.parametrize("sent", [signal.SIGCONT, None], ids=["stopped", "slow"])
def test_time_in_which_the_process_was_stopped_is_not_training(
    rhyme: EncodedCorpus, monkeypatch: pytest.MonkeyPatch, sent: signal.Signals | None
) -> None:
    """Ctrl-Z for an hour, in the third of four steps; what a process hears of it is that it goes on."""
    now = [0.0]

    def clock() -> float:
        return now[0]

    learn = Training._move

    def move(running: Training, batch: Any) -> Tensor:
        now[0] += 1.0
        if running.step == 2:
            now[0] += 3600
            if sent is not None:
                os.kill(os.getpid(), sent)
        return learn(running, batch)

    monkeypatch.setattr(Training, "_move", move)
    before = signal.getsignal(signal.SIGCONT)
    assert train(small(), rhyme, steps(4), clock=clock).seconds == 4.0 + (0 if sent else 3600)
    assert signal.getsignal(signal.SIGCONT) == before


# The same again.


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_the_same_seed_gives_the_same_bits(architecture: str, rhyme: EncodedCorpus) -> None:
    config = small(architecture=architecture, layers=2, dropout=0.2, optimizer="muon")
    first = train(config, rhyme, steps(20))
    torch.manual_seed(123)
    assert_same(train(config, rhyme, steps(20)), first)
    other = train(config.model_copy(update={"seed": 1}), rhyme, steps(20))
    assert other.best.bits_per_byte != first.best.bits_per_byte


class Following(TrainingObserver):
    """Does what it is given as `on_step`, `on_evaluation` ..."""

    def __init__(self, **methods: Callable[[Any], None]) -> None:
        vars(self).update(methods)


def test_a_looker_on_changes_nothing(rhyme: EncodedCorpus) -> None:
    def look(running: Training) -> None:
        torch.rand(3)
        evaluate(running.model, running.held_out, running.vocabulary_size, 8)

    config = small(architecture="transformer")
    assert_same(train(config, rhyme, steps(8), observer=Following(on_step=look)), train(config, rhyme, steps(8)))


# Stopped and resumed.


class Stop(Exception):
    pass


RUNS: dict[str, dict[str, Any]] = {
    "lstm, its state carried": {"architecture": "lstm", "layers": 2, "dropout": 0.3},
    "rnn, momentum": {"architecture": "rnn", "optimizer": "sgd", "learning_rate": 0.1, "dropout": 0.1},
    "gru, rmsprop": {"architecture": "gru", "optimizer": "rmsprop", "learning_rate": 1e-3},
    "transformer, muon": {"architecture": "transformer", "optimizer": "muon", "dropout": 0.3},
    "tied transformer, adam": {"architecture": "transformer", "optimizer": "adam", "tied_embeddings": True},
    "lstm, patience": {  # its first rung is its best, its third its last
        "architecture": "lstm",
        "patience": 2,
        "learning_rate": 3.0,
        "schedule": "constant",
        "gradient_clip": 0,
    },
    "lstm, half precision": {"architecture": "lstm", "precision": "bfloat16", "dropout": 0.1},
    "transformer, half precision": {"architecture": "transformer", "precision": "bfloat16", "dropout": 0.1},
    "gru, half precision": {"architecture": "gru", "precision": "bfloat16", "layers": 2, "dropout": 0.1},
    "rnn, half precision": {"architecture": "rnn", "precision": "bfloat16"},
    "short epochs": {"architecture": "gru", "batch_size": 64, "sequence_length": 32},
}


def budget_of(name: str) -> Budget:
    config = small(**RUNS[name])
    return Budget(tokens=14 * config.batch_size * config.sequence_length, rungs=5)


@pytest.fixture(scope="module")
def undisturbed(rhyme: EncodedCorpus) -> Callable[[str], Trained]:
    return cache(lambda name: train(small(**RUNS[name]), rhyme, budget_of(name)))


def train_with_stops(config: Config, corpus: EncodedCorpus, budget: Budget, stops: set[int], path: Path) -> Trained:
    """Trains with a stop after each of those steps, in each case in a training of its own."""
    path.unlink(missing_ok=True)

    def look(running: Training) -> None:
        if running.step in stops:
            stops.remove(running.step)
            running.save(path)
            raise Stop

    while True:
        try:
            return train(
                config,
                corpus,
                budget,
                observer=Following(on_step=look),
                checkpoints=[path] if path.exists() else [],
            )
        except Stop:
            torch.manual_seed(99)  # another process knows nothing of this one's random state


@pytest.mark.parametrize("name", RUNS)
@given(stops=st.sets(st.integers(1, 14), min_size=1, max_size=3))
@settings(max_examples=8, deadline=None)
def test_a_run_that_was_stopped_ends_as_if_it_was_not(
    name: str,
    stops: set[int],
    rhyme: EncodedCorpus,
    undisturbed: Callable[[str], Trained],
    tmp_path_factory: pytest.TempPathFactory,
) -> None:
    path = tmp_path_factory.getbasetemp() / "checkpoint.safetensors"
    assert_same(train_with_stops(small(**RUNS[name]), rhyme, budget_of(name), stops, path), undisturbed(name))


def test_a_run_saved_at_a_rung_tells_of_it_and_does_not_repeat_it(rhyme: EncodedCorpus, tmp_path: Path) -> None:
    for evaluated in (2, 4):
        first = Training(small(), rhyme, steps(8), CPU)
        while len(first.evaluations) < evaluated:
            first.evaluate() if first.at_rung else first.take_step()
        first.save(tmp_path / "checkpoint")
        again: list[Evaluation] = []
        trained = train(
            small(),
            rhyme,
            steps(8),
            observer=Following(on_evaluation=again.append),
            checkpoints=[tmp_path / "checkpoint"],
        )
        assert [evaluation.rung for evaluation in again] == [1, 2, 3, 4]
        assert again[:evaluated] == first.evaluations
        assert_same(trained, train(small(), rhyme, steps(8)))


@pytest.fixture
def checkpoint(rhyme: EncodedCorpus, tmp_path: Path) -> Path:
    """Of small() after three of its eight steps."""
    begun = Training(small(), rhyme, steps(8), CPU)
    for _ in range(3):
        begun.take_step()
    begun.save(tmp_path / "checkpoint")
    return tmp_path / "checkpoint"


@given(data=st.data())
@settings(max_examples=60, deadline=None)
def test_a_damaged_checkpoint_is_never_read(
    data: Any, rhyme: EncodedCorpus, tmp_path_factory: pytest.TempPathFactory
) -> None:
    path = tmp_path_factory.getbasetemp() / "damaged"
    Training(small(hidden_size=2), rhyme, steps(8), CPU).save(path)
    content = bytearray(path.read_bytes())
    place = data.draw(st.integers(0, len(content) - 1) | st.integers(0, 2000))
    if data.draw(st.booleans()):
        content[place] ^= data.draw(st.integers(1, 255))
    else:
        del content[place:]
    path.write_bytes(content)
    with pytest.raises(BadCheckpoint, match="damaged"):
        read_checkpoint(path)


def test_a_checkpoint_of_another_kind_of_number_is_damaged(checkpoint: Path) -> None:
    checkpoint.write_bytes(checkpoint.read_bytes().replace(b'"F32"', b'"I32"'))
    with pytest.raises(BadCheckpoint, match="damaged"):
        read_checkpoint(checkpoint)


@pytest.mark.parametrize("content", [None, b"", b"{}", bytes(8), b"\xff" * 16, b"\x02\0\0\0\0\0\0\0{}"])
def test_what_is_no_checkpoint_is_warned_of_and_ignored(
    content: bytes | None, rhyme: EncodedCorpus, tmp_path: Path
) -> None:
    path = tmp_path / "checkpoint"
    if content is not None:
        path.write_bytes(content)
    with pytest.warns(UserWarning, match=f"checkpoint ignored: {path}"):
        trained = train(small(), rhyme, steps(8), checkpoints=[path])
    assert_same(trained, train(small(), rhyme, steps(8)))


def test_a_checkpoint_of_another_run_is_warned_of_and_ignored(
    checkpoint: Path, rhyme: EncodedCorpus, corpus_of: Callable[..., EncodedCorpus]
) -> None:
    text = rhyme.tokenizer.decode(np.concatenate([rhyme.train, rhyme.validation, rhyme.test]))
    others: list[tuple[str, Config, EncodedCorpus, Budget]] = [
        ("config", small(learning_rate=2e-2), rhyme, steps(8)),
        ("config", small(hidden_size=8), rhyme, steps(8)),
        ("budget", small(), rhyme, steps(9)),
        ("budget", small(), rhyme, steps(8, rungs=2)),
        ("corpus", small(), corpus_of(text + "!"), steps(8)),
        ("corpus", small(), corpus_of(text, split=(0.7, 0.2, 0.1)), steps(8)),
    ]
    for named, config, corpus, budget in others:
        with pytest.warns(UserWarning, match=f"checkpoint ignored: .*another {named}"):
            trained = train(config, corpus, budget, checkpoints=[checkpoint])
        assert_same(trained, train(config, corpus, budget))
    tensors, known = read_checkpoint(checkpoint)
    write_checkpoint(checkpoint, tensors, known | {"format": loop.CHECKPOINT_FORMAT + 1})
    with pytest.warns(UserWarning, match=r"checkpoint ignored: .*another format"):
        train(small(), rhyme, steps(8), checkpoints=[checkpoint])


def facts(**changes: Any) -> Callable[[dict[str, Tensor], dict[str, Any]], None]:
    return lambda tensors, known: known.update(changes)


def without(prefix: str) -> Callable[[dict[str, Tensor], dict[str, Any]], None]:
    def change(tensors: dict[str, Tensor], known: dict[str, Any]) -> None:
        for name in [name for name in tensors if name.startswith(prefix)]:
            del tensors[name]

    return change


@pytest.mark.parametrize(
    "change",
    [
        facts(evaluations=[{}]),
        facts(evaluations=3),
        without("random.cpu"),
        without("loss_sum"),
        without("state.0"),
        lambda tensors, known: known.pop("step"),
        lambda tensors, known: tensors.update({"random.cpu": torch.zeros(3)}),
        lambda tensors, known: tensors.update({"optimizer.0.x": torch.zeros(3)}),
        lambda tensors, known: tensors.update({"optimizer.0.0.exp_avg": torch.zeros(3)}),
    ],
)
def test_a_checkpoint_that_is_whole_and_holds_something_else_changes_nothing(
    checkpoint: Path, rhyme: EncodedCorpus, change: Callable[[dict[str, Tensor], dict[str, Any]], Any]
) -> None:
    """Such as one that somebody wrote by hand, with a digest that is right."""
    tensors, known = read_checkpoint(checkpoint)
    change(tensors, known)
    write_checkpoint(checkpoint, tensors, known)
    with pytest.warns(UserWarning, match=r"checkpoint ignored: .*holds something else"):
        trained = train(small(), rhyme, steps(8), checkpoints=[checkpoint])
    assert_same(trained, train(small(), rhyme, steps(8)))


def too_large(path: Path) -> None:
    with path.open("wb") as file:
        file.truncate(2**40)


@pytest.mark.parametrize("make", [os.mkfifo, Path.mkdir, too_large])
def test_a_checkpoint_that_is_no_file_or_far_too_large_is_passed_over(
    rhyme: EncodedCorpus, tmp_path: Path, make: Callable[[Path], Any]
) -> None:
    path = tmp_path / "checkpoint"
    make(path)
    with pytest.warns(UserWarning, match=r"checkpoint ignored: .*not readable as a checkpoint \(it (is no file|has)"):
        train(small(), rhyme, steps(8), checkpoints=[path])


def test_the_first_sound_checkpoint_is_used(checkpoint: Path, rhyme: EncodedCorpus, tmp_path: Path) -> None:
    (tmp_path / "damaged").write_bytes(checkpoint.read_bytes()[:-1])
    seen: list[int] = []
    with pytest.warns(UserWarning, match="damaged") as warned:
        train(
            small(),
            rhyme,
            steps(8),
            observer=Following(on_step=lambda running: seen.append(running.step)),
            checkpoints=[tmp_path / "damaged", checkpoint, tmp_path / "damaged"],
        )
    assert len(warned) == 1
    assert seen == [4, 5, 6, 7, 8]


def test_saving_leaves_one_file_and_the_run_as_it_was(checkpoint: Path, rhyme: EncodedCorpus) -> None:
    trained = train(small(), rhyme, steps(8), observer=Following(on_step=lambda running: running.save(checkpoint)))
    assert [path.name for path in checkpoint.parent.iterdir()] == ["checkpoint"]
    assert_same(trained, train(small(), rhyme, steps(8)))


OWN = """
from typing import NamedTuple
import torch
from torch import Tensor, nn

class Memory(NamedTuple):
    last: Tensor
    same: Tensor
    more: list

class Own(nn.Module):
    carries_state = True

    def __init__(self, config, vocabulary_size):
        super().__init__()
        self.embedding = nn.Embedding(vocabulary_size, config.hidden_size)
        self.logits = nn.Linear(2 * config.hidden_size, vocabulary_size)
        self.register_buffer("steps", torch.zeros((), dtype=torch.long))

    def forward(self, tokens, state=None):
        self.steps += int(self.training)
        hidden = self.embedding(tokens)
        before = hidden.new_zeros(len(tokens), 1, hidden.size(2)) if state is None else state.last
        hidden = torch.cat([hidden, torch.cat([before, hidden[:, :-1]], dim=1)], dim=2)
        last = hidden[:, -1:, : self.embedding.embedding_dim]
        return self.logits(hidden), Memory(last, last, [None, (last[0], tokens[:, -1])])
"""


@pytest.mark.parametrize("carries_state", [True, False])
def test_a_state_is_carried_to_the_end_of_an_epoch(
    carries_state: bool, rhyme: EncodedCorpus, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.syspath_prepend(tmp_path)
    (tmp_path / "own_seen.py").write_text(OWN, encoding="utf-8")
    import own_seen  # type: ignore[import-not-found]

    given: list[Any] = []
    returned: list[Any] = []

    class Seen(own_seen.Own):  # type: ignore[misc]
        def forward(self, tokens: Tensor, state: Any = None) -> Any:
            logits, left = super().forward(tokens, state)
            given.append(state)
            returned.append(left)
            return logits, left

    Seen.carries_state = carries_state
    monkeypatch.setattr(own_seen, "Own", Seen)
    running = Training(small(architecture="own_seen:Own", batch_size=16, sequence_length=64), rhyme, steps(1), CPU)
    epoch_steps = running.batches.steps
    assert epoch_steps > 1
    for _ in range(3 * epoch_steps):
        running.take_step()
    for number, state in enumerate(given):
        if number % epoch_steps == 0 or not carries_state:
            assert state is None
        else:
            assert not state.last.requires_grad
            assert torch.equal(state.last, returned[number - 1].last)


def test_a_generator_of_ones_own_resumes_with_whatever_state_it_has(
    rhyme: EncodedCorpus, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.syspath_prepend(tmp_path)
    (tmp_path / "own_state.py").write_text(OWN, encoding="utf-8")
    config = small(architecture="own_state:Own")
    undisturbed = train(config, rhyme, steps(8))
    assert weights(undisturbed.model)["steps"] == 8
    assert_same(train_with_stops(config, rhyme, steps(8), {2, 5}, tmp_path / "checkpoint"), undisturbed)


def test_a_checkpoint_of_a_generator_that_changed_is_ignored(
    rhyme: EncodedCorpus, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.syspath_prepend(tmp_path)
    (tmp_path / "own_changed.py").write_text(OWN, encoding="utf-8")
    config = small(architecture="own_changed:Own")
    begun = Training(config, rhyme, steps(8), CPU)
    begun.take_step()
    begun.save(tmp_path / "checkpoint")
    import own_changed  # type: ignore[import-not-found]

    class Wider(own_changed.Own):  # type: ignore[misc]
        def __init__(self, config: Config, vocabulary_size: int) -> None:
            super().__init__(config.model_copy(update={"hidden_size": 13}), vocabulary_size)

    monkeypatch.setattr(own_changed, "Own", Wider)
    with pytest.warns(UserWarning, match=r"checkpoint ignored: .*weights of another model: embedding\.weight, logits"):
        trained = train(config, rhyme, steps(8), checkpoints=[tmp_path / "checkpoint"])
    assert_same(trained, train(config, rhyme, steps(8)))


# Pieces of a batch.


def close(one: Trained, other: Trained) -> None:
    """But for rounding."""
    for ours, theirs in zip(one.evaluations, other.evaluations, strict=True):
        assert ours.training_loss == pytest.approx(theirs.training_loss, rel=1e-5)
        assert ours.bits_per_byte == pytest.approx(theirs.bits_per_byte, rel=1e-5)


PIECES: dict[str, dict[str, Any]] = {
    "lstm": {"architecture": "lstm", "layers": 2},
    "gru": {"architecture": "gru", "gradient_clip": 0.1},
    "transformer": {"architecture": "transformer", "optimizer": "muon"},
}


@pytest.mark.parametrize("micro_batch", [1, 3, 4, 99])
@pytest.mark.parametrize("name", PIECES)
def test_a_batch_in_pieces_trains_as_a_whole_one(name: str, micro_batch: int, rhyme: EncodedCorpus) -> None:
    """Batches of four: in fours, in three and one, in one piece."""
    config = small(**PIECES[name], precision="float32")
    whole = train(config, rhyme, steps(20))
    split = train(config, rhyme, steps(20), micro_batch=micro_batch)
    (close if micro_batch < 4 else assert_same)(split, whole)


@pytest.mark.parametrize("name", PIECES)
def test_a_run_goes_on_in_other_pieces(name: str, rhyme: EncodedCorpus, tmp_path: Path) -> None:
    """Its checkpoint holds the carried state of the whole batch."""
    config, pieces = small(**PIECES[name], precision="float32"), iter([None, 3, 1, 2])
    running = Training(config, rhyme, steps(8), CPU, next(pieces))
    while not running.finished:
        running.take_step()
        if running.at_rung:
            running.evaluate()
            running.save(tmp_path / "checkpoint")
            running = Training(config, rhyme, steps(8), CPU, next(pieces, None))
            running.load(tmp_path / "checkpoint")
    close(running.result(), train(config, rhyme, steps(8)))


def test_pieces_need_less_memory_at_a_time(rhyme: EncodedCorpus) -> None:
    read: list[int] = []
    running = Training(small(), rhyme, steps(8), CPU, 3)
    running.model.register_forward_pre_hook(lambda model, given: read.append(len(given[0])))
    running.take_step()
    assert read == [3, 1]


# Within the budget.


@given(
    batch_size=st.integers(1, 7),
    sequence_length=st.integers(1, 9),
    tokens=st.integers(1, 600),
    rungs=st.integers(1, 12),
)
@settings(max_examples=30, deadline=None)
def test_a_budget_in_tokens_is_spent_to_the_last_whole_step(
    batch_size: int, sequence_length: int, tokens: int, rungs: int, rhyme: EncodedCorpus
) -> None:
    config = small(architecture="rnn", hidden_size=2, batch_size=batch_size, sequence_length=sequence_length)
    brief = replace(rhyme, validation=rhyme.validation[:20])
    taken: list[int] = []
    trained = train(
        config,
        brief,
        Budget(tokens=tokens, rungs=rungs),
        observer=Following(on_step=lambda running: taken.append(running.tokens)),
    )
    step = batch_size * sequence_length
    total = max(1, tokens // step)  # no run is shorter than a step
    assert taken == [step * number for number in range(1, total + 1)]
    assert trained.tokens == taken[-1]
    assert [evaluation.rung for evaluation in trained.evaluations] == list(range(1, rungs + 1))
    assert [evaluation.tokens for evaluation in trained.evaluations] == [
        step * math.ceil(total * rung / rungs) for rung in range(1, rungs + 1)
    ]
    assert all(math.isfinite(evaluation.training_loss) for evaluation in trained.evaluations)


def slow_clock(seconds: float) -> Callable[[], float]:
    """A clock on which each step takes so many seconds."""
    ticks = count()
    return lambda: next(ticks) * seconds


@pytest.mark.parametrize(
    ("step_seconds", "steps_at_rungs"),
    [(1.0, [3, 5, 8, 10]), (2.5, [1, 2, 3, 4]), (3.0, [1, 2, 3, 4]), (6.0, [1, 1, 2, 2]), (99.0, [1, 1, 1, 1])],
)
def test_a_budget_in_seconds_ends_with_the_first_step_beyond_it(
    step_seconds: float, steps_at_rungs: list[int], rhyme: EncodedCorpus
) -> None:
    trained = train(small(), rhyme, Budget(seconds=10, rungs=4), clock=slow_clock(step_seconds))
    assert [evaluation.tokens // 32 for evaluation in trained.evaluations] == steps_at_rungs
    assert trained.seconds == step_seconds * steps_at_rungs[-1]
    assert trained.tokens_per_second == pytest.approx(32 / step_seconds)
    assert all(math.isfinite(evaluation.training_loss) for evaluation in trained.evaluations)


def test_the_training_loss_is_the_mean_since_the_last_rung(
    rhyme: EncodedCorpus, monkeypatch: pytest.MonkeyPatch
) -> None:
    losses: list[float] = []
    note = Training._note_loss

    def noted(running: Training, loss: Tensor) -> None:
        losses.append(loss.item())
        note(running, loss)

    monkeypatch.setattr(Training, "_note_loss", noted)
    trained = train(small(), rhyme, steps(10, rungs=3))
    means = [np.mean(losses[start:end]) for start, end in [(0, 4), (4, 7), (7, 10)]]
    assert [evaluation.training_loss for evaluation in trained.evaluations] == pytest.approx(means)


def test_the_test_split_is_scored_once_and_only_if_that_is_asked_for(
    rhyme: EncodedCorpus, monkeypatch: pytest.MonkeyPatch
) -> None:
    scored: list[int] = []
    score = Training.score
    monkeypatch.setattr(
        Training, "score", lambda running, *text: scored.append(text[0] is running.test) or score(running, *text)
    )
    assert train(small(), rhyme, steps(8)).test is None
    assert sum(scored) == 0
    trained = train(small(), rhyme, steps(8), test=True)
    assert sum(scored) == 1
    assert trained.test is not None
    assert trained.test.bits_per_byte == pytest.approx(trained.best.bits_per_byte, rel=0.1)
    assert train(small(), replace(rhyme, test=rhyme.test[:0]), steps(8), test=True).test is None


def test_a_corpus_without_room_is_refused(rhyme: EncodedCorpus) -> None:
    with pytest.raises(CorpusError, match="batch_size 4000"):
        train(small(batch_size=4000), rhyme, steps(8))


@pytest.mark.parametrize("name", ["", "gpu", "cuda:-1", "mps", "meta", "xpu", "cuda:99"])
def test_a_device_that_is_not_there_is_refused(name: str) -> None:
    with pytest.raises(DeviceError, match=f"device {name}: .*use cpu"):
        usable_device(name)
    assert usable_device("cpu") == CPU
    assert usable_device("auto").type in ("cpu", "cuda")


def test_held_out_text_is_read_where_it_stands(rhyme: EncodedCorpus) -> None:
    for length, told in ((8, 256), (300, 300)):
        held_out = Training(small(sequence_length=length), rhyme, steps(8), CPU).held_out
        assert len(held_out.before) == told + 1
        text = np.concatenate([rhyme.train, rhyme.validation])
        assert np.array_equal(
            np.concatenate([held_out.before, held_out.tokens]), text[-len(rhyme.validation) - told - 1 :]
        )
        assert held_out.text_bytes == rhyme.bytes["validation"]


# How the weights move.

SCHEDULES = ("constant", "linear", "exponential", "cosine")


@given(
    schedule=st.sampled_from(SCHEDULES),
    warmup=st.floats(0, 1),
    end=st.floats(1e-6, 1),
    places=st.lists(st.floats(0, 1), min_size=2, max_size=20),
)
def test_the_learning_rate_rises_in_warm_up_and_then_falls(
    schedule: Any, warmup: float, end: float, places: list[float]
) -> None:
    config = Config(schedule=schedule, warmup=warmup, final_learning_rate=end)
    rates = [relative_learning_rate(config, place) for place in sorted(places)]
    rising = [rate for rate, place in zip(rates, sorted(places), strict=True) if place < warmup]
    falling = rates[len(rising) :]
    assert rising == pytest.approx([place / warmup for place in sorted(places)[: len(rising)]])
    assert falling == sorted(falling, reverse=True) or falling == pytest.approx(sorted(falling, reverse=True))
    assert all(0 <= rate <= 1 + 1e-12 for rate in rates)
    assert relative_learning_rate(config, warmup) == pytest.approx(1)
    if warmup < 1:
        assert relative_learning_rate(config, 1) == pytest.approx(1 if schedule == "constant" else end)


@pytest.mark.parametrize(
    ("schedule", "halfway"), [("constant", 1), ("linear", 0.505), ("exponential", 0.1), ("cosine", 0.505)]
)
def test_half_way_down(schedule: Any, halfway: float) -> None:
    config = Config(schedule=schedule, warmup=0.2, final_learning_rate=0.01)
    assert relative_learning_rate(config, 0.6) == pytest.approx(halfway)


def learning_rates(
    config: Config, corpus: EncodedCorpus, budget: Budget, clock: Callable[[], float] = time.perf_counter
) -> list[float]:
    rates: list[float] = []
    train(
        config,
        corpus,
        budget,
        observer=Following(on_step=lambda running: rates.append(running.optimizers[-1].param_groups[-1]["lr"])),
        clock=clock,
    )
    return rates


def test_the_optimizer_gets_the_scheduled_learning_rate(rhyme: EncodedCorpus) -> None:
    config = small(optimizer="muon", schedule="linear", warmup=0.4, final_learning_rate=0.5)
    expected = [
        0.0025,
        0.005,
        0.0075,
        0.01,
        0.01 * 11 / 12,
        0.01 * 10 / 12,
        0.0075,
        0.01 * 8 / 12,
        0.01 * 7 / 12,
        0.005,
    ]
    assert learning_rates(config, rhyme, steps(10)) == pytest.approx(expected)
    assert learning_rates(config, rhyme, Budget(seconds=10), slow_clock(1.0)) == pytest.approx([0.0001, *expected[:-1]])


def after_steps(config: Config, corpus: EncodedCorpus, count: int = 1) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """The weights before and after a few steps at a constant learning rate."""
    running = Training(config.model_copy(update={"schedule": "constant", "warmup": 0.0}), corpus, steps(8), CPU)
    before = {name: weight.clone() for name, weight in weights(running.model).items()}
    for _ in range(count):
        running.take_step()
    return before, weights(running.model)


def moved(config: Config, corpus: EncodedCorpus) -> float:
    before, after = after_steps(config, corpus)
    return math.sqrt(sum(float((after[name] - before[name]).square().sum()) for name in before))


def test_a_gradient_is_clipped_to_its_norm(rhyme: EncodedCorpus) -> None:
    sgd = {"optimizer": "sgd", "momentum": 0.0, "weight_decay": 0.0, "learning_rate": 1.0}
    free = moved(small(**sgd, gradient_clip=0.0), rhyme)
    assert moved(small(**sgd, gradient_clip=free / 2), rhyme) == pytest.approx(free / 2, rel=1e-3)
    assert moved(small(**sgd, gradient_clip=free * 2), rhyme) == pytest.approx(free)


@pytest.mark.parametrize(
    ("optimizer", "expected"),
    [
        ("adamw", [{"betas": (0.8, 0.7)}]),
        ("adam", [{"betas": (0.8, 0.7)}]),
        ("sgd", [{"momentum": 0.6}]),
        ("rmsprop", [{"momentum": 0.6}]),
        ("muon", [{"momentum": 0.6}, {"betas": (0.8, 0.7)}]),
    ],
)
def test_the_optimizer_gets_its_knobs(optimizer: Any, expected: list[dict[str, Any]], rhyme: EncodedCorpus) -> None:
    config = small(optimizer=optimizer, beta1=0.8, beta2=0.7, momentum=0.6)
    running = Training(config, rhyme, steps(8), CPU)
    for found, wanted in zip(running.optimizers, expected, strict=True):
        for group in found.param_groups:
            assert {name: group[name] for name in wanted} == wanted
    held = [id(weight) for found in running.optimizers for group in found.param_groups for weight in group["params"]]
    assert sorted(held) == sorted(id(weight) for weight in running.model.parameters())  # each once


class Bare(nn.Module):
    """A generator whose two ends are bare matrices, one on either side."""

    def __init__(self, size: int) -> None:
        super().__init__()
        self.first = nn.Parameter(torch.zeros(size, 8))
        self.hidden = nn.Parameter(torch.zeros(8, 8))
        self.last = nn.Parameter(torch.zeros(8, size))


def muon_moves(model: nn.Module, size: int) -> set[str]:
    names = {id(weight): name for name, weight in model.named_parameters()}
    first, *_ = build_optimizers(small(optimizer="muon"), model, size)
    return {names[id(weight)] for group in first.param_groups for weight in group["params"]}


@pytest.mark.parametrize("size", [64, 48, 16, 100])  # four, three times and once the hidden size, and neither
@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_muon_moves_what_is_between_embedding_and_logits_whatever_its_size(
    architecture: str, tied: bool, size: int
) -> None:
    config = Config(architecture=architecture, hidden_size=16, tied_embeddings=tied, sequence_length=8, heads=2)
    model = build(config, size)
    matrices = {name for name, weight in model.named_parameters() if weight.dim() == 2}
    assert muon_moves(model, size) == matrices - {"embedding.weight", "head.logits.weight"}


@pytest.mark.parametrize("size", [8, 11])
def test_muon_leaves_the_ends_of_ones_own_generator_alone(size: int) -> None:
    assert muon_moves(Bare(size), size) == {"hidden"}
    assert muon_moves(nn.Sequential(nn.Embedding(size, 8), nn.Linear(8, 8), nn.Linear(8, size)), size) == {"1.weight"}


def test_a_checkpoint_whose_optimizer_moved_other_weights_is_ignored(
    rhyme: EncodedCorpus, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = small(optimizer="muon")
    with monkeypatch.context() as before:
        before.setattr(optimizers, "embeddings_and_logits", lambda model, size: list(model.parameters()))
        older = Training(config, rhyme, steps(8), CPU)
        older.take_step()
        older.save(tmp_path / "checkpoint")
    with pytest.warns(UserWarning, match="checkpoint ignored: .*its optimizer moved other weights"):
        trained = train(config, rhyme, steps(8), checkpoints=[tmp_path / "checkpoint"])
    assert_same(trained, train(config, rhyme, steps(8)))


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
@pytest.mark.parametrize("architecture", ["lstm", "transformer"])
def test_weight_decay_pulls_at_matrices_alone(optimizer: str, architecture: str, rhyme: EncodedCorpus) -> None:
    config = small(optimizer=optimizer, architecture=architecture, gradient_clip=0.0, weight_decay=0.0)
    before, free = after_steps(config, rhyme)
    _, pulled = after_steps(config.model_copy(update={"weight_decay": 1.0}), rhyme)
    for name in free:
        assert torch.equal(free[name], pulled[name]) == (free[name].dim() < 2), name
    pulls = sum(float(((free[name] - pulled[name]) * before[name]).sum()) for name in free)
    assert pulls > 0  # towards zero


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_every_optimizer_learns(optimizer: str, architecture: str, rhyme: EncodedCorpus) -> None:
    rate = OPTIMIZERS[optimizer] * (0.2 if optimizer == "rmsprop" and architecture == "transformer" else 1)
    config = small(optimizer=optimizer, architecture=architecture, learning_rate=rate, hidden_size=32)
    trained = train(config, rhyme, steps(120, rungs=2))
    guessing = math.log2(rhyme.tokenizer.vocabulary_size)
    assert trained.evaluations[-1].bits_per_byte < trained.evaluations[0].bits_per_byte < guessing
    assert trained.evaluations[-1].bits_per_byte < 0.7 * guessing


def test_half_precision_learns_as_well(rhyme: EncodedCorpus) -> None:
    for architecture in ARCHITECTURES:
        full, half = (
            train(small(architecture=architecture, precision=precision), rhyme, steps(60)).best.bits_per_byte
            for precision in ("float32", "bfloat16")
        )
        assert full != half
        assert half == pytest.approx(full, rel=0.02)


@pytest.mark.parametrize("rungs", [1, 100])
def test_a_loss_that_is_no_number_ends_the_run(rungs: int, rhyme: EncodedCorpus) -> None:
    config = small(architecture="transformer", optimizer="sgd", learning_rate=100, gradient_clip=0.0, warmup=0.0)
    taken: list[int] = []
    with pytest.raises(Diverged, match=r"after \d+ steps"):
        train(config, rhyme, steps(500, rungs), observer=Following(on_step=lambda running: taken.append(running.step)))
    assert len(taken) < 120


# Early stopping.


@pytest.fixture(scope="module")
def misleading(corpus_of: Callable[..., EncodedCorpus]) -> EncodedCorpus:
    """What is learned from its train split is wrong of its validation split."""
    random = np.random.default_rng(0)
    return corpus_of("".join(random.choice(list("abcd"), 800)) + "abcd" * 100, split=(0.667, 0.3, 0.033))


def test_patience_stops_early_and_keeps_the_best(misleading: EncodedCorpus) -> None:
    config = small(hidden_size=32, learning_rate=3e-2, precision="float32")
    patient = train(config.model_copy(update={"patience": 3}), misleading, steps(200, rungs=20))
    endless = train(config, misleading, steps(200, rungs=20))
    scores = [evaluation.bits_per_byte for evaluation in patient.evaluations]
    assert len(scores) < 20
    assert patient.best.rung == len(scores) - 3 == 1 + int(np.argmin(scores))
    assert patient.tokens == patient.evaluations[-1].tokens
    assert again(patient, misleading) == patient.best.bits_per_byte == min(scores)
    assert timeless(endless.evaluations)[: len(scores)] == timeless(patient.evaluations)
    assert again(endless, misleading) == endless.best.bits_per_byte == endless.evaluations[-1].bits_per_byte


def again(trained: Trained, corpus: EncodedCorpus) -> float:
    running = Training(small(), corpus, steps(8), CPU)
    return evaluate(trained.model, running.held_out, running.vocabulary_size, 8).bits_per_byte


@pytest.mark.parametrize("architecture", ["lstm", "transformer"])
def test_looking_at_a_run_costs_a_tenth_of_it_and_its_end_is_scored_on_all_of_the_text(
    architecture: str, rhyme: EncodedCorpus, monkeypatch: pytest.MonkeyPatch
) -> None:
    read: list[int] = []

    def looked(*run: Any) -> Any:
        read.append(run[5])
        return evaluate(*run)

    monkeypatch.setattr(scoring, "evaluate", looked)
    monkeypatch.setattr(scoring, "FEWEST_SCORED", 8)  # the text is short
    monkeypatch.setattr(metrics, "LANE", 8)
    config, budget = small(architecture=architecture, precision="float32"), steps(200, rungs=9)
    trained = train(config, rhyme, budget)
    held_out = Training(config, rhyme, budget, CPU).held_out
    whole = len(held_out.tokens) * (1 if architecture == "lstm" else 2) / 3
    assert read[-1] == 1
    assert max(read) > 1
    assert sum(whole / every for every in read) <= 0.1 * 32 * 200
    assert again(trained, rhyme) == trained.evaluations[-1].bits_per_byte
    read.clear()
    train(config.model_copy(update={"patience": 8}), rhyme, budget)
    assert set(read) == {1}


@pytest.mark.parametrize("patience", [0, 8])
@pytest.mark.parametrize("budget", [{"tokens": 12_800}, {"seconds": 400.0}])
@pytest.mark.parametrize("architecture", ["lstm", "transformer"])
def test_no_rung_of_a_trial_costs_more_than_its_share_of_a_long_text(
    architecture: str,
    budget: dict[str, Any],
    patience: int,
    markov: EncodedCorpus,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    scored: list[int] = []

    def looked(*run: Any) -> Any:
        scored.append(run[4])
        return evaluate_part(*run)

    clock = slow_clock(1.0)  # 32 tokens
    monkeypatch.setattr(scoring, "evaluate_part", looked)
    monkeypatch.setattr(scoring, "FEWEST_SCORED", 1)
    monkeypatch.setattr(scoring, "FEWEST_AT_LAST", 1024)
    config = small(architecture=architecture, patience=patience, precision="float32")
    trial = Budget(**budget, rungs=4)
    trained = train(config, markov, trial, whole=False, clock=clock)
    assert len(scored) == 4
    assert sum(scored) * 2 / 2.5 <= (0.1 + 0.2) * 12_800
    assert scored[-1] * 2 / 2.5 <= 0.2 * 12_800
    assert trained.part == pytest.approx(sum(p.stop - p.start for p in pieces_of(20_000, scored[-1])) / 20_000)
    scored.clear()
    whole = train(config, markov, trial, clock=clock)
    assert len(scored) == (0 if patience else 3)
    assert whole.part == 1
    assert again(whole, markov) == whole.evaluations[-1].bits_per_byte


def test_all_of_a_text_that_is_cheap_to_read_is_read(markov: EncodedCorpus) -> None:
    """Half of a trial's text to train on: a fifth of its work."""
    budget = Budget(tokens=80_000, rungs=2)
    first, second = (train(small(batch_size=32), markov, budget, whole=whole) for whole in (True, False))
    assert second.part == 1
    assert [one.bits_per_byte for one in first.evaluations] == [one.bits_per_byte for one in second.evaluations]


# The order of the text.

Deal = Iterator[tuple[np.ndarray[Any, Any], np.ndarray[Any, Any], bool]]


def epoch(batches: Streams | Windows, number: int) -> Deal:
    for position in range(batches.steps):
        batch = batches.take(number * batches.steps + position)
        yield batch.inputs.numpy(), batch.targets.numpy(), batch.at_start


sizes = st.tuples(st.integers(1, 6), st.integers(1, 9)).flatmap(
    lambda sizes: st.tuples(st.just(sizes), st.integers(sizes[0] * (sizes[1] + 1), sizes[0] * (sizes[1] + 1) + 200))
)


@pytest.mark.parametrize("kind", [Streams, Windows])
@given(sizes=sizes, seed=st.integers(0, 9), number=st.integers(0, 2))
def test_an_epoch_reads_the_text_once(
    kind: type[Streams | Windows], sizes: tuple[tuple[int, int], int], seed: int, number: int
) -> None:
    (batch_size, length), text_length = sizes
    config = Config(batch_size=batch_size, sequence_length=length, seed=seed)
    batches = kind(np.arange(text_length), config, CPU)  # each token is its own place
    read: list[int] = []
    for inputs, targets, _ in epoch(batches, number):
        assert inputs.shape == targets.shape == (batch_size, length)
        assert np.array_equal(targets, (inputs + 1) % text_length)
        assert np.array_equal(inputs[:, 1:], targets[:, :-1])
        read += inputs.ravel().tolist()
    assert len(read) == len(set(read)) == batches.steps * batch_size * length
    assert text_length - 1 - len(read) < batch_size * length  # what is left would not make a step


@given(sizes=sizes, number=st.integers(0, 2))
def test_streams_go_on_where_they_stopped(sizes: tuple[tuple[int, int], int], number: int) -> None:
    (batch_size, length), text_length = sizes
    batches = Streams(np.arange(text_length), Config(batch_size=batch_size, sequence_length=length), CPU)
    last = None
    for inputs, targets, at_start in epoch(batches, number):
        assert at_start == (last is None)
        assert last is None or np.array_equal(inputs[:, 0], last)
        last = targets[:, -1]


@pytest.mark.parametrize("kind", [Streams, Windows])
@given(order=st.permutations(range(12)), seed=st.integers(0, 9))
def test_any_step_can_be_redone(kind: type[Streams | Windows], order: list[int], seed: int) -> None:
    config = Config(batch_size=3, sequence_length=4, seed=seed)
    text = np.arange(50)  # an epoch has four steps
    in_order = kind(text, config, CPU)
    expected = [in_order.take(step) for step in range(12)]
    batches = kind(text, config, CPU)
    for step in order:
        assert torch.equal(batches.take(step).inputs, expected[step].inputs)


@pytest.mark.parametrize("kind", [Streams, Windows])
def test_every_epoch_and_every_seed_cuts_the_text_elsewhere(kind: type[Streams | Windows]) -> None:
    text = np.arange(2000)
    first = [
        kind(text, Config(batch_size=3, sequence_length=40, seed=seed), CPU).take(16 * number).inputs[0, 0].item() % 40
        for seed in range(4)
        for number in range(4)
    ]
    assert len(set(first)) > 8


def test_windows_come_in_another_order_each_epoch() -> None:
    batches = Windows(np.arange(2000), Config(batch_size=1, sequence_length=10), CPU)
    orders = [[int(inputs[0, 0]) // 10 for inputs, _, _ in epoch(batches, number)] for number in range(2)]
    assert orders[0] != sorted(orders[0])
    assert orders[0] != orders[1]


# As good as can be.

LUCK = 20 / math.log(2)
"""Bits on a whole text: the odds against a model that has not seen it being so much better than its source are e^20."""


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_a_known_source_is_learned_almost_entirely(architecture: str, markov: EncodedCorpus) -> None:
    assert markov.split_entropy is not None
    entropy = markov.split_entropy["validation"]
    sizes: dict[str, Any] = {"hidden_size": 64, "sequence_length": 16, "batch_size": 16}
    config = Config(architecture=architecture, optimizer="muon", learning_rate=3e-2, **sizes)
    trained = train(config, markov, Budget(tokens=120_000, rungs=4))
    for evaluation in trained.evaluations:
        assert evaluation.bits_per_byte > entropy - LUCK / len(markov.validation)
    assert trained.best.bits_per_byte < 1.1 * entropy  # who looks back once only comes to 1.6

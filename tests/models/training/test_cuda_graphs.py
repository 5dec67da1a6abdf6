"""Captured steps: on a stand-in for the GPU, the same training to the bit; on a GPU, one that goes on, too."""

from __future__ import annotations

import math
import re
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from models.config import Budget, Config
from models.text.batches import Batch
from models.text.corpus import EncodedCorpus
from models.training import cuda_graphs
from models.training import loop as training
from models.training.distributed import ALONE
from models.training.failures import OutOfMemoryInCapture
from models.training.loop import Training, train
from models.training.observer import TrainingObserver
from models.training.optimizers import build_optimizers
from tests.models.training.test_loop import ARCHITECTURES, assert_same, small

CPU, CUDA = torch.device("cpu"), torch.device("cuda")
BUDGET = Budget(tokens=24 * 16 * 32, rungs=3)  # the rhyme has seven steps: some start anew
RUNS: dict[str, Any] = {
    **{name: {"architecture": name} for name in ARCHITECTURES},
    "two layers, dropout": {"layers": 2, "dropout": 0.2, "optimizer": "adam"},
    "half precision": {"precision": "bfloat16", "dropout": 0.1},
}


def config_of(name: str) -> Config:
    return small(**RUNS[name], batch_size=16, sequence_length=32)


class StandIn:
    """Does what a CUDA graph does, on a CPU: what is captured is computed at each replay, with the same tensors."""

    last: Training
    replays = 0

    def replay(self) -> None:
        StandIn.replays += 1
        captured = self.last.captured
        assert captured is not None
        self.last.states = list(captured.states)
        captured.loss.copy_(captured.step(captured.batch))
        captured._keep_states()


@contextmanager
def capture(graph: StandIn, stream: object) -> Iterator[None]:
    """Undoes what was computed: on a GPU nothing is."""
    captured = StandIn.last.captured
    assert captured is not None
    moments = [
        each for optimizer in StandIn.last.optimizers for state in optimizer.state.values() for each in state.values()
    ]
    tensors = [each.detach() for each in (*StandIn.last.parameters, *moments, *cuda_graphs.flat(captured.states))]
    values, random = [each.clone() for each in tensors], torch.get_rng_state()
    yield
    for tensor, value in zip(tensors, values, strict=True):
        tensor.copy_(value)
    torch.set_rng_state(random)


@pytest.fixture
def stand_in(monkeypatch: pytest.MonkeyPatch) -> None:
    stream = SimpleNamespace(wait_stream=lambda other: None)
    monkeypatch.setattr(torch.cuda, "Stream", lambda device: stream)
    monkeypatch.setattr(torch.cuda, "current_stream", lambda: stream)
    monkeypatch.setattr(torch.cuda, "stream", lambda stream: nullcontext())
    monkeypatch.setattr(torch.cuda, "CUDAGraph", StandIn)
    monkeypatch.setattr(torch.cuda, "graph", capture)
    monkeypatch.setattr(cuda_graphs, "is_supported", lambda *run: True)
    monkeypatch.setattr(cuda_graphs, "SLOWER", math.inf)  # here a captured step computes as much
    monkeypatch.setattr(cuda_graphs.Captured, "__init__", seen(cuda_graphs.Captured.__init__))


def seen(make: object) -> object:
    def made(self: cuda_graphs.Captured, training: Training, *more: object) -> None:
        StandIn.last, StandIn.replays = training, 0
        make(self, training, *more)  # type: ignore[operator]

    return made


@pytest.mark.parametrize("name", RUNS)
def test_captured_steps_train_the_same_model(
    name: str, rhyme: EncodedCorpus, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    with pytest.MonkeyPatch.context() as patch:  # a learning rate in a tensor is rounded
        patch.setattr(training, "build_optimizers", lambda *run: build_optimizers(*run[:3], captured=True))  # type: ignore[misc]
        plain = train(config_of(name), rhyme, BUDGET)
    request.getfixturevalue("stand_in")
    assert_same(train(config_of(name), rhyme, BUDGET), plain)
    assert StandIn.replays > 3

    class Stop(Exception):
        pass

    class Stopping(TrainingObserver):
        def on_step(self, training: Training) -> None:
            if training.step == 12:
                training.save(tmp_path / "checkpoint")
                raise Stop

    with pytest.raises(Stop):
        train(config_of(name), rhyme, BUDGET, observer=Stopping())
    assert_same(train(config_of(name), rhyme, BUDGET, checkpoints=[tmp_path / "checkpoint"]), plain)


@contextmanager
def refused(graph: object, stream: object) -> Iterator[None]:
    with capture(StandIn(), stream):
        yield
    raise RuntimeError("CUDA error: operation not permitted when stream is capturing")


class Wrong(StandIn):
    """Computes a step that moves a weight too far."""

    def replay(self) -> None:
        super().replay()
        with torch.no_grad():
            self.last.parameters[0].add_(1e-3)


@pytest.mark.parametrize(
    ("place", "bad", "said"),
    [
        ((torch.cuda, "graph"), refused, "CUDA error: operation not permitted when stream is capturing"),
        ((torch.cuda, "CUDAGraph"), Wrong, "they move the weights elsewhere"),
        ((cuda_graphs, "SLOWER"), 0.0, "they take .* ms instead of"),
    ],
    ids=["refused", "wrong", "slower"],
)
@pytest.mark.parametrize("name", ["lstm", "two layers, dropout"])
def test_a_graph_that_cannot_be_used_is_said_once_and_the_training_is_the_same(
    name: str,
    place: tuple[object, str],
    bad: object,
    said: str,
    stand_in: None,
    rhyme: EncodedCorpus,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    wanted = train(config_of(name), rhyme, BUDGET)
    assert not caplog.records
    monkeypatch.setattr(*place, bad)
    assert_same(train(config_of(name), rhyme, BUDGET), wanted)
    (record,) = caplog.records
    assert re.fullmatch(
        f"steps are not captured as CUDA graphs: {said}.*; the training goes on without", record.message
    )


@pytest.mark.parametrize("masked", [False, True])
def test_memory_that_runs_out_in_a_capture_is_said_as_such(
    stand_in: None, rhyme: EncodedCorpus, monkeypatch: pytest.MonkeyPatch, masked: bool
) -> None:
    @contextmanager
    def fill(graph: object, stream: object) -> Iterator[None]:
        try:
            yield
            raise torch.OutOfMemoryError("CUDA out of memory")
        finally:
            if masked:  # what the end of a capture says when it was broken off
                raise RuntimeError("CUDA error: operation failed due to a previous error during capture")

    monkeypatch.setattr(torch.cuda, "graph", fill)
    with pytest.raises(OutOfMemoryInCapture, match="while a training step was captured"):
        train(config_of("lstm"), rhyme, BUDGET)


def test_steps_are_captured_where_that_is_possible(monkeypatch: pytest.MonkeyPatch) -> None:
    model = torch.nn.Linear(2, 2)
    assert cuda_graphs.is_supported(small(), CUDA, ALONE, model)
    assert not cuda_graphs.is_supported(small(), CPU, ALONE, model)
    assert not cuda_graphs.is_supported(small(), CUDA, ALONE, torch.nn.Linear(2**13, 2**13 + 1, device="meta"))
    for other in ({"optimizer": "muon"}, {"optimizer": "sgd"}, {"architecture": "mine:Own"}):
        assert not cuda_graphs.is_supported(small(**other), CUDA, ALONE, model)
    monkeypatch.setenv(cuda_graphs.SWITCH, "0")
    assert not cuda_graphs.is_supported(small(), CUDA, ALONE, model)


needs_a_gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")


@needs_a_gpu
@pytest.mark.parametrize("name", RUNS)
def test_on_a_gpu_captured_steps_train_the_same_model(
    name: str, rhyme: EncodedCorpus, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    budget = Budget(tokens=200 * 16 * 32, rungs=4)
    captured = train(config_of(name), rhyme, budget, device="cuda")
    assert not caplog.records
    monkeypatch.setenv(cuda_graphs.SWITCH, "0")
    assert_same(train(config_of(name), rhyme, budget, device="cuda"), captured)


@needs_a_gpu
def test_on_a_gpu_a_capture_that_fails_leaves_the_training_as_it_was(
    rhyme: EncodedCorpus, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    wanted = train(config_of("two layers, dropout"), rhyme, BUDGET, device="cuda")
    move = Training._move

    def looking(self: Training, batch: Batch) -> torch.Tensor:
        loss = move(self, batch)
        loss.item()  # which nothing that is captured may do
        return loss

    monkeypatch.setattr(Training, "_move", looking)
    assert_same(train(config_of("two layers, dropout"), rhyme, BUDGET, device="cuda"), wanted)
    assert "steps are not captured as CUDA graphs" in caplog.text

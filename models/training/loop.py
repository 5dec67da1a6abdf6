"""The one training loop: train(config, corpus, budget, ...)."""

from __future__ import annotations

import math
import time
import warnings
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from models.config import Budget, Config
from models.errors import DeviceError
from models.files import optional, reason
from models.nn.network import State, build
from models.nn.precision import autocast, set_precision
from models.text.batches import Batch, Streams, Windows
from models.text.corpus import EncodedCorpus, require_room
from models.training import cuda_graphs, snapshot
from models.training.checkpoint import (
    BadCheckpoint,
    detached,
    load_weights,
    read_checkpoint,
    under,
    weights,
    write_checkpoint,
)
from models.training.distributed import ALONE, Team
from models.training.metrics import HeldOut, Score
from models.training.observer import UNOBSERVED, TrainingObserver
from models.training.optimizers import build_optimizers, relative_learning_rate, set_learning_rate
from models.training.scoring import EvaluationPlan, Scorer, held_out
from models.training.stopwatch import Lap, noticing_stops

CHECKPOINT_FORMAT = 1

MOST_FOLD, MOST_MORE = 16, 2**30
"""Bytes of the largest checkpoint that is read: a multiple of the weights', and a constant for carried states."""


class Diverged(Exception):
    """The loss is no longer a finite number; a smaller learning_rate or gradient_clip helps."""


@dataclass(frozen=True)
class Evaluation:
    """What is known of a run at one rung. `tokens` and `seconds` count training alone."""

    rung: int
    tokens: int
    seconds: float
    training_loss: float
    bits_per_byte: float
    nats_per_token: float
    perplexity: float


@dataclass(frozen=True)
class Trained:
    """A finished run: the model as it is kept, what it took, and its score on the test split if that was asked for.

    `precision` is the number format its products had.
    """

    model: nn.Module
    evaluations: list[Evaluation]
    best: Evaluation
    tokens: int
    seconds: float
    test: Score | None = None
    precision: str = "float32"
    part: float = 1.0
    """The part of the validation split that the last rung read."""

    @property
    def tokens_per_second(self) -> float:
        return self.tokens / self.seconds if self.seconds else 0.0


def train(
    config: Config,
    corpus: EncodedCorpus,
    budget: Budget,
    *,
    device: str = "cpu",
    observer: TrainingObserver = UNOBSERVED,
    checkpoints: Sequence[Path] = (),
    micro_batch: int | None = None,
    team: Team = ALONE,
    test: bool = False,
    whole: bool = True,
    clock: Callable[[], float] = time.perf_counter,
) -> Trained:
    """Trains the generator that `config` describes until its budget is spent or it stops improving.

    The run goes on from the first of `checkpoints` that is sound, to the bit on a CPU with a budget in tokens. With
    `patience` the best weights are kept, otherwise the last.

    `micro_batch` is the most sequences that are read at a time: the gradients of a larger batch add up piece by
    piece, and are those of the whole but for rounding. The processes of a `team` share each batch evenly. With
    `test` the test split is scored once, at the end. The last rung reads all of the validation split, unless `whole`
    is false and that would cost more than LAST. Seconds are those of `clock`.

    Raises CorpusError when the corpus is too small, DeviceError when the device is not there, and Diverged when
    the loss is not finite. A checkpoint that cannot be used is a warning, and the run starts over.
    """
    require_room(corpus, config.batch_size, config.sequence_length)
    usable = usable_device(device)
    training = _begun(
        checkpoints,
        lambda: Training(config, corpus, budget, usable, micro_batch, team, whole, observer, clock),
    )
    for evaluation in training.evaluations:
        observer.on_evaluation(evaluation)
    with noticing_stops():
        while not training.finished:
            while not training.at_rung:
                training.take_step()
                observer.on_step(training)
            observer.on_evaluation(training.evaluate())
    trained = training.result()
    observer.on_trained(trained)
    if test:
        # In a team all take part in scoring: a process that fails must end, or the others wait for it.
        with optional("the test split is not scored") if team.size == 1 else nullcontext():
            trained = replace(trained, test=training.test_score())
    return trained


def _begun(checkpoints: Sequence[Path], begin: Callable[[], Training]) -> Training:
    """A training that goes on from the first checkpoint that can be used; says which cannot."""
    training = begin()
    for path in checkpoints:
        try:
            training.load(path)
            break
        except BadCheckpoint as error:
            warnings.warn(f"checkpoint ignored: {error}", stacklevel=3)
            training = begin()  # a part of it may have been taken over
    return training


class Training:
    """One run in progress: all that a checkpoint holds, and how it moves on by a step."""

    def __init__(
        self,
        config: Config,
        corpus: EncodedCorpus,
        budget: Budget,
        device: torch.device,
        micro_batch: int | None = None,
        team: Team = ALONE,
        whole: bool = True,
        observer: TrainingObserver = UNOBSERVED,
        clock: Callable[[], float] = time.perf_counter,
    ) -> None:
        torch.manual_seed(config.seed)
        self.config, self.budget, self.device, self.team = config, budget, device, team
        self.tokenizer = corpus.tokenizer
        self.vocabulary_size = corpus.tokenizer.vocabulary_size
        self.model = build(config, self.vocabulary_size).to(device)
        self.half, self.precision = set_precision(self.model, config, device)
        self.carries_state = getattr(self.model, "carries_state", False)
        captured = cuda_graphs.is_supported(config, device, team, self.model)
        self.optimizers = list(build_optimizers(config, self.model, self.vocabulary_size, captured))
        self.captured = cuda_graphs.Captured(self, self._move) if captured else None
        self.parameters = [parameter for parameter in self.model.parameters() if parameter.requires_grad]
        team.broadcast(weights(self.model).values())
        rows = team.rows(config.batch_size)
        self.batches = (Streams if self.carries_state else Windows)(corpus.train, config, device, rows)
        self.rows = rows.stop - rows.start
        self.piece = min(micro_batch or self.rows, self.rows)
        self.held_out, self.test = (held_out(corpus, split, config.sequence_length) for split in ("validation", "test"))
        self.plan = EvaluationPlan(config, budget, self.carries_state, self.held_out, whole)
        self.scorer = Scorer(self.model, config, self.vocabulary_size, self.half, team)
        self.observer, self.clock = observer, clock
        self.corpus = [corpus.fingerprint, len(corpus.train), len(corpus.validation)]
        self.total_steps = max(1, (budget.tokens or 0) // (config.batch_size * config.sequence_length))
        self.step, self.seconds = 0, 0.0
        # A piece of the batch always holds the same streams, so each goes on with a state of its own.
        self.states: list[State] = [None] * -(-self.rows // self.piece)
        self.loss_sum = torch.zeros((), device=device, dtype=torch.float64)
        self.loss_steps = 0
        self.evaluations: list[Evaluation] = []
        self.best_weights: dict[str, Tensor] | None = None
        self.model.train()
        self._draw_apart()

    @property
    def tokens(self) -> int:
        """Training tokens read so far."""
        return self.step * self.config.batch_size * self.config.sequence_length

    @property
    def progress(self) -> float:
        """The part of the budget that is spent, 0 to 1."""
        if self.budget.seconds is not None:
            return min(self.seconds / self.budget.seconds, 1.0)
        return self.step / self.total_steps

    @property
    def at_rung(self) -> bool:
        """Whether the part of the budget before the next evaluation is spent."""
        rungs = self.budget.rungs
        if self.budget.seconds is not None:
            return self.seconds * rungs >= self.budget.seconds * (len(self.evaluations) + 1)
        return self.step * rungs >= self.total_steps * (len(self.evaluations) + 1)

    @property
    def steps_next(self) -> bool:
        """Whether a step comes next, not an evaluation nor the end."""
        return not (self.at_rung or self.finished)

    @property
    def finished(self) -> bool:
        return len(self.evaluations) == self.budget.rungs or self._stalled

    @property
    def best(self) -> Evaluation:
        return min(self.evaluations, key=lambda evaluation: evaluation.bits_per_byte)

    @property
    def _stalled(self) -> bool:
        patience = self.config.patience
        return bool(patience and self.evaluations and self.evaluations[-1].rung - self.best.rung >= patience)

    def take_step(self) -> None:
        """Reads one batch and moves the weights once."""
        lap, usual = Lap(self.clock), self.seconds / max(self.step, 1)
        batch = self.batches.take(self.step)
        self._set_learning_rate()
        self._note_loss((self.captured or self._move)(batch))
        self.step += 1
        self._note_seconds(lap.seconds(usual))

    def _move(self, batch: Batch) -> Tensor:
        """Moves the weights once and returns the mean loss of this process's rows, all without looking at a number."""
        loss = self._add_gradients(batch)
        if self.config.gradient_clip:
            nn.utils.clip_grad_norm_(self.parameters, self.config.gradient_clip)
        for optimizer in self.optimizers:
            optimizer.step()
            optimizer.zero_grad()
        return loss

    def _add_gradients(self, batch: Batch) -> Tensor:
        """Adds up the gradients of a batch, piece by piece, and returns the mean loss of this process's rows."""
        pieces = list(zip(*(torch.split(each, self.piece) for each in batch[:2]), strict=True))
        losses = []
        for number, (inputs, targets) in enumerate(pieces):
            state = None if batch.at_start else self.states[number]
            loss, state = self._loss(inputs, targets, state)
            loss = loss * (len(inputs) / self.rows)
            loss.backward()
            self.states[number] = detached(state) if self.carries_state else None
            losses.append(loss.detach())
        self.team.all_reduce_mean(parameter.grad for parameter in self.parameters)
        return torch.stack(losses).sum()

    def _loss(self, inputs: Tensor, targets: Tensor, state: State) -> tuple[Tensor, State]:
        with autocast(self.device, self.half):
            logits, state = self.model(inputs, state)
            return functional.cross_entropy(logits.flatten(0, 1), targets.flatten()), state

    def evaluate(self) -> Evaluation:
        """Scores the validation split and starts the next rung."""
        self._catch_up()
        self._require_finite()
        score = self._look()
        training_loss = self.team.total(self.recent_loss) / self.team.size
        if not math.isfinite(score.bits_per_byte):
            raise Diverged(f"the validation loss is {score.nats_per_token} after {self.step} steps")
        evaluation = Evaluation(
            len(self.evaluations) + 1, self.tokens, round(self.seconds, 3), training_loss, **asdict(score)
        )
        self.evaluations.append(evaluation)
        self.loss_sum.zero_()
        self.loss_steps = 0
        if self.config.patience and self.best is evaluation:
            self.best_weights = {name: weight.clone() for name, weight in weights(self.model).items()}
        return evaluation

    def _look(self) -> Score:
        """Scores as much of the validation split as the next rung may cost."""
        stride, most = self.plan.reading(len(self.evaluations) + 1, self._tokens_expected)
        if most is None:
            return self.score(self.held_out, stride)
        return self.scorer.score_part(self.held_out, most, self._on_batch)

    @property
    def _tokens_expected(self) -> float:
        """Tokens that the whole run trains on; of a budget in seconds, at the speed so far."""
        if self.budget.seconds is not None and self.seconds:
            return self.tokens / self.seconds * self.budget.seconds
        return float(self.budget.tokens or 0)

    def score(self, text: HeldOut, stride: int = 1) -> Score:
        """Scores a held-out text, or every `stride`-th piece of it, with the weights as they are now."""
        return self.scorer.score(text, stride, self._on_batch)

    def _on_batch(self) -> None:
        self.observer.on_scoring_batch(self)

    def result(self) -> Trained:
        """Returns the finished run, its model holding the weights that are kept."""
        if self.best_weights is not None:
            load_weights(self.model, self.best_weights)
        best = self.best if self.config.patience else self.evaluations[-1]
        return Trained(
            self.model.eval(),
            self.evaluations,
            best,
            self.tokens,
            self.seconds,
            precision=self.precision,
            part=self.plan.part(self._tokens_expected),
        )

    def test_score(self) -> Score | None:
        """Scores the test split; None without one."""
        return self.score(self.test) if len(self.test.tokens) else None

    def save(self, path: Path) -> None:
        """Writes a checkpoint beside `path` and puts it in place in one move; a team calls it together."""
        tensors = snapshot.tensors_of(self)
        if self.team.is_main_process:
            write_checkpoint(path, tensors, self._facts())

    def load(self, path: Path) -> None:
        """Goes on from a checkpoint of the same run; raises BadCheckpoint, after which this training is of no use."""
        own_bytes = sum(tensor.numel() * tensor.element_size() for tensor in weights(self.model).values())
        tensors, facts = read_checkpoint(path, MOST_FOLD * own_bytes + MOST_MORE)
        own = {name: value for name, value in self._facts().items() if name in ("format", "config", "budget", "corpus")}
        for name, value in own.items():
            if facts.get(name) != value:
                raise BadCheckpoint(f"{path}: written for another {name}")
        if self.config.optimizer == "muon" and not snapshot.are_moments_of(self.optimizers, tensors):
            raise BadCheckpoint(f"{path}: its optimizer moved other weights")
        try:
            load_weights(self.model, under("model.", tensors))
        except ValueError as error:
            raise BadCheckpoint(f"{path}: {error}") from error
        try:
            snapshot.restore(self, tensors)
            self._take_up(facts)
        except (ArithmeticError, AttributeError, LookupError, RuntimeError, TypeError, ValueError) as error:
            raise BadCheckpoint(f"{path}: holds something else than this training ({reason(error)})") from error

    def _facts(self) -> dict[str, Any]:
        return {
            "format": [CHECKPOINT_FORMAT, torch.__version__],
            "config": self.config.model_dump(),
            "budget": self.budget.model_dump(),
            "corpus": self.corpus,
            "step": self.step,
            "seconds": self.seconds,
            "loss_steps": self.loss_steps,
            "evaluations": [asdict(evaluation) for evaluation in self.evaluations],
        }

    def _take_up(self, facts: dict[str, Any]) -> None:
        self.step, self.seconds, self.loss_steps = facts["step"], facts["seconds"], facts["loss_steps"]
        self.evaluations = [Evaluation(**evaluation) for evaluation in facts["evaluations"]]
        self._draw_apart()

    def _draw_apart(self) -> None:
        """Lets each process drop other activations; the leader's are those of a run of one process."""
        if not self.team.is_main_process:
            torch.manual_seed(hash((self.config.seed, self.team.rank, self.step)))

    def _set_learning_rate(self) -> None:
        # The schedule looks at the end of the step that is to be taken, so that the first one moves; how many seconds
        # a step takes is known of none beforehand, but the first may move a little, too.
        ahead = (self.step + 1) / self.total_steps
        if self.budget.seconds is not None:
            ahead = self.progress or self.config.warmup / 100
        rate = self.config.learning_rate * relative_learning_rate(self.config, ahead)
        for optimizer in self.optimizers:
            set_learning_rate(optimizer, rate)

    def _note_seconds(self, passed: float) -> None:
        self.seconds += passed
        if self.budget.seconds is not None:  # what is spent decides what comes next, so all must agree on it
            self.seconds = self.team.numbers(self.seconds)[0]

    def _catch_up(self) -> None:
        """Counts what a GPU still had to do when its last step was launched."""
        if self.device.type == "cuda":
            lap = Lap(self.clock)
            self.synchronize()
            self._note_seconds(lap.seconds(0.0))

    def synchronize(self) -> None:
        """Waits until a GPU has done what it was given."""
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)

    def _note_loss(self, loss: Tensor) -> None:
        self.loss_sum += loss
        self.loss_steps += 1
        if self.step % 50 == 49:  # looking at the number makes a GPU wait, so not at every step
            self._require_finite()

    @property
    def recent_loss(self) -> float:
        """The mean training loss of this process since the last rung; that of the rung before if one step passed both.

        In nats per token.
        """
        if self.loss_steps:
            return self.loss_sum.item() / self.loss_steps
        return self.evaluations[-1].training_loss if self.evaluations else math.nan

    def _require_finite(self) -> None:
        if not math.isfinite(self.team.total(self.loss_sum.item())):
            raise Diverged(f"the training loss is no longer finite after {self.step} steps")


def usable_device(name: str) -> torch.device:
    """Returns the device of that name; auto is the GPU if there is one. Raises DeviceError."""
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        device: torch.device | None = torch.device(name)
    except RuntimeError:
        device = None
    if device is None or device.type not in ("cpu", "cuda"):
        raise DeviceError(f"device {name}: no such kind; use cpu, cuda or cuda:0")
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        raise DeviceError(f"device {name}: this machine has {torch.cuda.device_count()} CUDA devices; use cpu")
    return device

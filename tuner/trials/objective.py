"""trial -> Config -> train -> value; the only place where the tuner calls training."""

from __future__ import annotations

import json
import logging
import shutil
import statistics
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch

from models.config import Config, Recipe
from models.files import optional, reason
from models.generation.sampling import BLANK, uniform_noise, write
from models.nn.memory import training_bytes
from models.nn.network import build, parameter_count
from models.runs.run import append_metrics, with_facts, write_model, write_start
from models.text import corpus as corpora
from models.text.corpus import EncodedCorpus
from models.training.failures import lost_device
from models.training.loop import Evaluation, Trained, Training, train
from models.training.observer import RunObserver, TrainingObserver
from models.training.stopping import Stopped
from tuner.artifacts.layout import SAMPLES_FILE
from tuner.artifacts.store import Artifacts
from tuner.errors import StudyError
from tuner.study.definition import Study
from tuner.study.limits import DoesNotFit
from tuner.trials.checkpoints import Checkpoints
from tuner.trials.decoding import Decoded, calibrate, decode
from tuner.trials.provenance import origin

logger = logging.getLogger(__name__)

TIMED_TOKENS = 32


class Pruned(Exception):
    """The trial is weaker than others at the same rung."""


@dataclass(frozen=True)
class Outcome:
    """What a completed trial is worth, and what is stored with it."""

    values: list[float]
    config: Config
    facts: dict[str, Any]
    samples: list[dict[str, str]]
    attachment: str | None


class TrialObserver(RunObserver):
    """Follows a trial: its training, then the texts that its model writes."""

    def on_writing(self) -> None:
        """Is called before texts are written, and every few tokens of them."""


class _Keeper(TrainingObserver):
    """Saves the checkpoints of a trial, and lets an observer follow and stop it."""

    def __init__(self, checkpoints: Checkpoints, seconds: float, observer: TrialObserver) -> None:
        self.checkpoints, self.seconds, self.observer = checkpoints, seconds, observer
        self.training: Training | None = None
        self.raised: Exception | None = None
        """What the observer ended the writing with, which is no fault of the writing."""

    def on_step(self, training: Training) -> None:
        self.training = training
        self._save_if_due()
        self.observer.on_step(training)
        self._stop_if_requested()

    def on_scoring_batch(self, training: Training) -> None:
        self.training = training
        self._save_if_due()
        self.observer.on_scoring_batch(training)
        self._stop_if_requested()

    def on_evaluation(self, evaluation: Evaluation) -> None:
        self.observer.on_evaluation(evaluation)

    def on_writing(self) -> None:
        try:
            self._save_if_due()
            self.observer.on_writing()
            self._stop_if_requested()
        except Exception as error:
            self.raised = error
            raise

    def _save_if_due(self) -> None:
        if self.training is not None and self.checkpoints.age > self.seconds:
            self.checkpoints.save(self.training)

    def _stop_if_requested(self) -> None:
        if self.observer.stop_requested():
            if self.training is not None:  # else the last checkpoint was its end
                self.checkpoints.save(self.training)
            raise Stopped


class Objective:
    """Trains the configurations of one study on one device."""

    def __init__(
        self,
        study: Study,
        fingerprint: str,
        device: str,
        artifacts: Artifacts,
        checkpoint_seconds: float = 30.0,
    ) -> None:
        self.on_progress: Callable[[str], None] = lambda text: None
        self.study, self.fingerprint, self.device, self.artifacts = study, fingerprint, device, artifacts
        self.checkpoint_seconds = checkpoint_seconds
        self._corpora: dict[tuple[str, int], EncodedCorpus] = {}

    def corpus(self, config: Config) -> EncodedCorpus:
        """Returns the study's text in the tokens of `config`; raises StudyError when the text is another one."""
        key = (config.tokenizer, config.vocabulary_size)
        if key not in self._corpora:
            found = corpora.load_corpus(self.study.corpus, *key, on_progress=self.on_progress)
            if found.fingerprint != self.fingerprint:
                raise StudyError(
                    f"the corpus {found.name} differs from the one study {self.study.name} searches on: "
                    f"{found.fingerprint} here, {self.fingerprint} there; give the same text"
                )
            self._corpora[key] = found
        return self._corpora[key]

    def __call__(
        self,
        number: int,
        attempt: int,
        config: Config,
        observer: TrialObserver,
    ) -> Outcome:
        """Trains a trial from its last checkpoint, if there is one, and writes its run folder.

        What the observer raises ends the trial; Stopped, once it is saved, where the observer asks for that.
        """
        corpus = self.corpus(config)
        _reset_peak_memory(self.device)
        checkpoints = Checkpoints(self.artifacts, number, attempt)
        keeper = _Keeper(checkpoints, self.checkpoint_seconds, observer)
        trained = train(
            config,
            corpus,
            self.study.trial,
            device=self.device,
            observer=keeper,
            checkpoints=checkpoints.newest_first(),
            whole=self.study.confirms is not None,
        )
        keeper.on_writing()
        decoded = self._decode(trained, corpus, config, keeper)
        attachment = None
        # Neither a full disk nor anything else that goes wrong from here on takes a trial's result away.
        try:
            self._write_run(number, decoded, corpus, trained)
        except Exception as error:
            self.forget_run(number)
            logger.warning(
                "the weights of trial %d are not kept: %s (%s)", number, reason(error), self.artifacts.folder
            )
        with optional(f"the samples of trial {number} are not kept for the dashboard", logger.warning):
            attachment = self.artifacts.attach(jsonl(decoded.samples).encode())
        values = [trained.best.bits_per_byte, decoded.divergence][: len(self.study.objectives)]
        facts = self._facts(config, corpus, trained) | decoded.facts
        return Outcome(values, decoded.config, facts, decoded.samples, attachment)  # type: ignore[arg-type]

    def _decode(
        self,
        trained: Trained,
        corpus: EncodedCorpus,
        config: Config,
        keeper: _Keeper,
    ) -> Decoded:
        cost = (trained.tokens, trained.seconds)
        space = self.study.space
        required = len(self.study.objectives) > 1
        try:
            return decode(trained.model, corpus, config, space, self.study.decoding, cost, required, keeper.on_writing)
        except Exception as error:
            if required or error is keeper.raised or lost_device(error):
                raise
            kind = type(error).__name__
            logger.warning("no texts were written (%s: %s); calibrated without", kind, reason(error))
        with optional("the temperature is not calibrated", logger.warning):
            config = calibrate(trained.model, corpus, config, space)
        return Decoded(config, None, {}, [])

    def require_fit(self, config: Config) -> None:
        """Raises DoesNotFit when `config` needs more than the study's limits; trains nothing to find out.

        The text is read and encoded here, if it has not been: before anything is timed, for that takes what it takes.
        """
        limits, corpus = self.study.limits, self.corpus(config)
        needs = {name: self._need(name, config, corpus) for name in limits.given()}
        known = {name: need for name, need in needs.items() if need is not None}
        if limits.violations(known):
            raise DoesNotFit(limits, known)

    def _need(self, limit: str, config: Config, corpus: EncodedCorpus) -> float | None:
        """What `config` needs of one thing that is limited; None where only training it would tell."""
        if limit == "milliseconds_per_token":
            return self._milliseconds_per_token(config, corpus)
        size = corpus.tokenizer.vocabulary_size
        if limit == "parameters":
            return parameter_count(config, size)
        estimate = training_bytes(config, size, self.device)
        own = 0 if self.device.startswith("cuda") else memory_in_use()
        return None if estimate is None else own + estimate

    def _milliseconds_per_token(self, config: Config, corpus: EncodedCorpus) -> float:
        """The median of some tokens written by an untrained model, which takes as long as a trained one."""
        model = build(config, corpus.tokenizer.vocabulary_size).to(self.device)
        times = [time.perf_counter()]
        blank = torch.full((1, 1 + TIMED_TOKENS), BLANK)
        blank[0, 0] = corpus.tokenizer.end_of_text
        plain = Config(sequence_length=config.sequence_length)
        for _ in write(model, blank, torch.ones(1, dtype=torch.int64), uniform_noise(0, 1, TIMED_TOKENS), plain):
            times.append(time.perf_counter())
        return 1000 * statistics.median(after - before for before, after in pairwise(times))

    def forget(self, number: int, attempts: int) -> None:
        """Deletes the checkpoints of a trial that ended in that attempt."""
        Checkpoints(self.artifacts, number, attempts).delete()

    def forget_run(self, number: int) -> None:
        """Deletes the run of a completed trial."""
        self.artifacts.remove_run(number)

    def recipe(self, config: Config) -> Recipe:
        """Returns all that one run of `config` needs."""
        corpus = self.study.corpus.model_copy(update={"fingerprint": self.fingerprint})
        return with_facts(Recipe(corpus=corpus, trial=self.study.trial, parameters=config), self.fingerprint)

    def _write_run(self, number: int, decoded: Decoded, corpus: EncodedCorpus, trained: Trained) -> None:
        folder = self.artifacts.run_folder(number)
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
        write_start(folder, self.recipe(decoded.config), corpus.tokenizer)
        (folder / SAMPLES_FILE).write_text(jsonl(decoded.samples), encoding="utf-8")
        for evaluation in trained.evaluations:
            append_metrics(folder, evaluation)
        write_model(folder, trained.model)
        self.artifacts.share_run(number)

    def _facts(self, config: Config, corpus: EncodedCorpus, trained: Trained) -> dict[str, Any]:
        return {
            "tokens_per_second": round(trained.tokens_per_second),
            "tokens": trained.tokens,
            "training_seconds": round(trained.seconds, 2),
            "parameter_count": sum(parameter.numel() for parameter in trained.model.parameters()),
            "peak_memory_bytes": peak_memory(self.device),
            "threads": torch.get_num_threads(),
            "device": self.device,
            **origin(corpus.tokenizer, self.device, trained.precision),
            **({"validation_part": round(trained.part, 4)} if trained.part < 1 else {}),
        }


def jsonl(records: list[dict[str, str]]) -> str:
    return "".join(json.dumps(record, ensure_ascii=False) + "\n" for record in records)


def peak_memory(device: str) -> int | None:
    """Returns the most memory in use since the trial began, in bytes: the GPU's, or the process's own.

    Of a GPU it is what torch's allocator has reserved, for that is what others cannot have.
    """
    if device.startswith("cuda"):
        return int(torch.cuda.max_memory_reserved(device))
    return _of_process("VmHWM")


def is_crowded(device: str) -> bool:
    """Whether others hold more of a GPU's memory than this process does."""
    if not device.startswith("cuda"):
        return False
    try:
        free, total = torch.cuda.mem_get_info(device)
    except RuntimeError:  # a device that does not answer
        return False
    own = torch.cuda.memory_reserved(device)
    return bool(total - free - own > own)


def release_memory(device: str) -> None:
    """Gives back the part of a GPU's memory that torch keeps for later: a neighbour may need it now."""
    if device.startswith("cuda"):
        with suppress(RuntimeError):  # a device that is lost keeps it until the process ends
            torch.cuda.empty_cache()


def memory_in_use() -> int:
    """Returns the memory of this process, in bytes; 0 where the system does not tell."""
    return _of_process("VmRSS") or 0


def _of_process(what: str) -> int | None:
    try:
        lines = Path("/proc/self/status").read_text().splitlines()
    except OSError:
        return None
    return next((int(line.split()[1]) * 1024 for line in lines if line.startswith(what)), None)


def _reset_peak_memory(device: str) -> None:
    if device.startswith("cuda"):
        torch.cuda.init()  # type: ignore[no-untyped-call]  # the first trial comes before anything is on the GPU
        torch.cuda.reset_peak_memory_stats(device)
        return
    with suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5")  # Linux: the high-water mark starts again from here

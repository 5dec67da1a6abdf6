"""A run folder: everything that a training writes, and the text generator that can be loaded from it."""

from __future__ import annotations

import json
import logging
import math
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import nn

from models.config import ARCHITECTURES, SCHEMA, Budget, Config, Recipe, flat, resolve_path
from models.errors import ChangedCorpusError, ConfigError, RunError, UserError
from models.files import optional, reason, require_plain, sweep, written_whole
from models.generation import sampling
from models.nn.network import build, build_shapes, generator_class
from models.nn.precision import set_precision
from models.reader import dump, parse, read_text, require_schema, validate
from models.runs.rehearsal import rehearse_apart
from models.runs.report import CARD, PICTURE, RESULT, SAMPLES_PAGE, write_report, write_result
from models.runs.tensorboard import EVENTS, board, require_tensorboard
from models.shorthand import advice, write_out
from models.text import tokenizers
from models.text.corpus import EncodedCorpus, load_corpus, require_room
from models.text.tokenizers import Tokenizer
from models.training.checkpoint import as_written, load_weights, require_finite, require_weights, weights, write_tensors
from models.training.distributed import ALONE, FailedElsewhere, Team
from models.training.loop import Diverged, Evaluation, Trained, Training, train, usable_device
from models.training.metrics import HeldOut, Score
from models.training.observer import UNOBSERVED, RunObserver, TrainingObserver
from models.training.scoring import Scorer, held_out
from models.training.stopping import Stopped

logger = logging.getLogger(__name__)

CONFIG, TOKENIZER, MODEL, METRICS = "config.yaml", "tokenizer.json", "model.safetensors", "metrics.jsonl"
CHECKPOINT = "checkpoint.safetensors"
OF_A_TRIAL = ("samples.jsonl", "decoding.svg")
"""What the run folder of a study's trial has besides."""

OWN = (CONFIG, TOKENIZER, MODEL, METRICS, CHECKPOINT, RESULT, SAMPLES_PAGE, CARD, PICTURE, *OF_A_TRIAL)
DRAFTS = tuple(f".{name}" for name in OWN)
"""How the names of files begin that are still being written."""

CHECKPOINT_SECONDS = 60.0
LARGEST_CONFIG = 2**20
"""Bytes of the largest configuration that a run folder may hold."""


def read_recipe(path: Path) -> Recipe:
    """Returns the recipe in a YAML or JSON file; a relative corpus path counts from that file's folder."""
    document = parse(read_text(path), str(path))
    require_schema(document, str(path), SCHEMA)
    parameters = document.get("parameters")
    searched = isinstance(parameters, dict) and any(
        isinstance(value, dict | list) for name, value in parameters.items() if name != "own"
    )
    if searched or not document.keys().isdisjoint(("budget", "sampler", "pruner")):
        raise ConfigError(
            f"{path}: describes a study, not one configuration; "
            f"search with `tuner run {path}`, and train what it exports"
        )
    write_out(document, Recipe)
    recipe = validate(document, str(path), Recipe, advice=advice)
    return recipe.model_copy(update={"corpus": resolve_path(recipe.corpus, path.parent)})


def train_run(
    recipe: Recipe,
    folder: Path,
    *,
    device: str = "auto",
    resume: bool = False,
    force: bool = False,
    allow_changed_corpus: bool = False,
    tensorboard: bool = False,
    team: Team = ALONE,
    observer: RunObserver = UNOBSERVED,
    checkpoint_seconds: float = CHECKPOINT_SECONDS,
) -> Trained:
    """Trains `recipe` into a run folder, with a checkpoint there every `checkpoint_seconds`.

    Raises RunError when the folder is in the way (`force` replaces a run, `resume` goes on with the same one) or the
    loss diverges, and Stopped when `observer` asked for it; what else a user can do wrong is found before the folder is
    touched. A `team` trains one run together: its main process writes the folder, and each process has an
    observer.
    """
    if recipe.threads:
        torch.set_num_threads(recipe.threads)
    corpus = team.main_process_first(lambda: _checked(recipe, device, allow_changed_corpus, tensorboard, team))
    if team.is_main_process and corpus.files:
        logger.info("corpus %s: %s", corpus.name, corpus.files)
    recipe = with_facts(recipe, corpus.fingerprint)
    checkpoint = folder / CHECKPOINT
    team.main_process_only(lambda: _prepare(folder, recipe, corpus.tokenizer, resume, force))
    try:
        trained = train(
            recipe.parameters,
            corpus,
            recipe.trial,
            device=device,
            observer=_Keeper(folder, tensorboard, team, observer, checkpoint_seconds),
            checkpoints=[checkpoint] if checkpoint.exists() else [],
            micro_batch=recipe.micro_batch,
            team=team,
            test=True,
        )
    except Diverged as error:
        if not team.is_main_process:
            raise FailedElsewhere from error
        raise RunError(f"{folder}: {error}; a smaller learning_rate or gradient_clip helps") from error
    if team.is_main_process:
        write_report(folder, recipe, corpus, trained, team.size)
        sweep(folder)
    return trained


class _Keeper(TrainingObserver):
    """Keeps a run's folder up to date while it is trained, and lets an observer follow and stop it."""

    def __init__(
        self, folder: Path, tensorboard: bool, team: Team, observer: RunObserver, checkpoint_seconds: float
    ) -> None:
        self.folder, self.team, self.observer = folder, team, observer
        self.checkpoint_seconds = checkpoint_seconds
        self.checkpoint = folder / CHECKPOINT
        self.records = _records(folder, tensorboard) if team.is_main_process else {}
        self.saved = time.monotonic()

    def on_step(self, training: Training) -> None:
        if self.team.any(time.monotonic() - self.saved > self.checkpoint_seconds):
            self._save(training)
        self.observer.on_step(training)
        if self.team.any(self.observer.stop_requested()):
            self._save(training)
            raise Stopped

    def on_scoring_batch(self, training: Training) -> None:
        self.observer.on_scoring_batch(training)

    def on_evaluation(self, evaluation: Evaluation) -> None:
        for name, record in self.records.items():
            with optional(f"{self.folder}: rung {evaluation.rung} is not in {name}"):
                record(evaluation)
        self.observer.on_evaluation(evaluation)

    def on_trained(self, trained: Trained) -> None:
        if self.team.is_main_process:
            _write_end(self.folder, trained)
            self.checkpoint.unlink(missing_ok=True)
        self.observer.on_trained(trained)

    def _save(self, training: Training) -> None:
        try:
            training.save(self.checkpoint)
            logger.debug("checkpoint at step %d", training.step)
        except OSError as error:
            warnings.warn(f"{self.checkpoint} is not written: {reason(error)}; training goes on", stacklevel=2)
        self.saved = time.monotonic()


def _write_end(folder: Path, trained: Trained) -> None:
    """Writes what a run is for: its metrics, whatever became of them on the way, its weights, and what they score."""
    try:
        _write_whole(folder / METRICS, "".join(map(_line, trained.evaluations)))
        write_model(folder, trained.model)
    except OSError as error:
        raise RunError(
            f"{folder}: the trained model cannot be written ({reason(error)}); make room or make it writable, then "
            "go on with --resume"
        ) from error
    write_result(folder, trained)


def _checked(recipe: Recipe, device: str, allow_changed_corpus: bool, tensorboard: bool, team: Team) -> EncodedCorpus:
    """Returns the corpus; raises what a user has to know before a run begins."""
    usable_device(device)
    generator_class(recipe.parameters)
    team.rows(recipe.parameters.batch_size)
    if tensorboard:
        require_tensorboard()
    corpus = _corpus(recipe, allow_changed_corpus)
    require_room(corpus, recipe.parameters.batch_size, recipe.parameters.sequence_length)
    if recipe.parameters.architecture not in ARCHITECTURES:
        rehearse_apart([recipe.parameters], corpus.tokenizer.vocabulary_size)
    return corpus


def _corpus(recipe: Recipe, allow_changed: bool) -> EncodedCorpus:
    source, config = recipe.corpus, recipe.parameters
    try:
        return load_corpus(source, config.tokenizer, config.vocabulary_size)
    except ChangedCorpusError as error:
        if not allow_changed:
            raise ChangedCorpusError(f"{error}, or go on with it by --allow-changed-corpus") from error
    source_now = source.model_copy(update={"fingerprint": None})
    corpus = load_corpus(source_now, config.tokenizer, config.vocabulary_size)
    warnings.warn(
        f"corpus {corpus.name}: the text is {corpus.fingerprint}, not {source.fingerprint} that the configuration "
        "was made for; its scores do not compare",
        stacklevel=2,
    )
    return corpus


def _records(folder: Path, tensorboard: bool) -> dict[str, Callable[[Evaluation], None]]:
    """Where each evaluation is written: metrics.jsonl, and TensorBoard if it is asked for."""
    shown = {"TensorBoard": board(folder)} if tensorboard else {}
    return {METRICS: lambda evaluation: append_metrics(folder, evaluation), **shown}


def with_facts(recipe: Recipe, fingerprint: str) -> Recipe:
    """Returns the recipe with what repeats it to the bit: the text's fingerprint and the number of threads."""
    corpus = recipe.corpus.model_copy(update={"fingerprint": fingerprint})
    return recipe.model_copy(update={"corpus": corpus, "threads": recipe.threads or torch.get_num_threads()})


def write_start(folder: Path, recipe: Recipe, tokenizer: Tokenizer) -> None:
    """Writes what is known before a run: its configuration and its vocabulary."""
    header = f"Train it again: tuner train {CONFIG} -o NEW-RUN"
    values = {"schema": SCHEMA, **recipe.model_dump(mode="json", exclude_none=True, exclude={"parameters"})}
    values["parameters"] = recipe.parameters.model_dump(mode="json")
    _write_whole(folder / CONFIG, dump(values, header))
    tokenizers.save(tokenizer, folder / TOKENIZER)


def append_metrics(folder: Path, evaluation: Evaluation) -> None:
    """Adds a line to metrics.jsonl; rungs that are run again after a checkpoint replace their old lines."""
    path = folder / METRICS
    lines = path.read_text(encoding="utf-8", errors="replace").splitlines() if path.exists() else []
    earlier = [f"{line}\n" for line in lines if _rung(line) < evaluation.rung]
    _write_whole(path, "".join([*earlier, _line(evaluation)]))


def _line(evaluation: Evaluation) -> str:
    return json.dumps(asdict(evaluation)) + "\n"


def _rung(line: str) -> float:
    """The rung that a line of metrics.jsonl is of; a damaged one is of none, and is dropped."""
    try:
        return float(json.loads(line)["rung"])
    except (ValueError, TypeError, KeyError, RecursionError):
        return math.inf


def _write_whole(path: Path, text: str) -> None:
    with written_whole(path) as draft:
        draft.write_text(text, encoding="utf-8")


def write_model(folder: Path, model: nn.Module) -> None:
    """Writes the weights; a run folder that has them is complete."""
    write_tensors(folder / MODEL, as_written(weights(model)))


@dataclass(frozen=True, repr=False)
class Run:
    """A trained text generator with all that it needs to write."""

    recipe: Recipe
    tokenizer: Tokenizer
    model: nn.Module

    def generate(
        self, prompt: str = "", length: int = 200, *, seed: int | None = None, stop: Sequence[str] = (), **decoding: Any
    ) -> str:
        """Returns up to `length` tokens of text after `prompt`, drawn as the configuration says, before a `stop`.

        `decoding` overrides temperature (0 is greedy), top_k, top_p, min_p or repetition_penalty; the same seed gives
        the same text. Raises ConfigError, or pydantic's ValidationError for a value out of its range.
        """
        return "".join(self.stream(prompt, length, seed=seed, stop=stop, **decoding))

    def stream(
        self, prompt: str = "", length: int = 200, *, seed: int | None = None, stop: Sequence[str] = (), **decoding: Any
    ) -> Iterator[str]:
        """Yields the text of `generate` while it is written."""
        options = self._options(length, seed, stop, decoding)
        return sampling.stream(self.model, self.tokenizer, prompt or self.opening, options)

    def generate_batch(
        self,
        prompts: Sequence[str],
        length: int = 200,
        *,
        seed: int | None = None,
        stop: Sequence[str] = (),
        **decoding: Any,
    ) -> list[str]:
        """Returns a text for each prompt, all written at once."""
        options = self._options(length, seed, stop, decoding)
        starts = [prompt or self.opening for prompt in prompts]
        return sampling.generate_batch(self.model, self.tokenizer, starts, options)

    def beam_search(
        self,
        prompt: str = "",
        length: int = 200,
        *,
        beams: int = 4,
        length_penalty: float = 1.0,
        stop: Sequence[str] = (),
        **decoding: Any,
    ) -> str:
        """Returns the most probable text that `beams` ways at once find; of `decoding` only the penalty counts."""
        options = self._options(length, None, stop, decoding)
        start = prompt or self.opening
        return sampling.beam_search(self.model, self.tokenizer, start, options, beams, length_penalty)

    def score(self, text: str, *, context: str = "") -> Score:
        """Returns how well the model predicts `text`, in bits per byte of UTF-8 and nats per token; less is better.

        It is measured as on held-out text, each token after those before it. `context` is what stands before the text,
        by default what a text without a prompt goes on from; it is read and not scored. A character that the
        vocabulary lacks is spelled in bytes, which the model never saw, and costs many bits. Raises ConfigError for a
        text that is empty or that UTF-8 cannot hold.
        """
        if not text:
            raise ConfigError("an empty text has no score; give at least one character")
        try:
            tokens = self.tokenizer.encode(text)
            before = self.tokenizer.encode(context or self.opening)
        except UnicodeEncodeError as error:
            raise ConfigError(f"half a character (position {error.start}) cannot be scored; leave it out") from error
        if not len(before):
            before = np.array([self.tokenizer.end_of_text])
        half, _ = set_precision(self.model, self.recipe.parameters, self._device)
        scorer = Scorer(self.model, self.recipe.parameters, self.tokenizer.vocabulary_size, half)
        return scorer.score_alone(HeldOut(before, tokens, len(text.encode())))

    def __repr__(self) -> str:
        weights = sum(weight.numel() for weight in self.model.parameters())
        words = f"{self.tokenizer.kind} vocabulary of {self.tokenizer.vocabulary_size:,}"
        trained = f"{weights:,} parameters on {self._device}, {words}, trained on {self.recipe.corpus.described}"
        return f"<Run: {self.recipe.parameters.architecture}, {trained}>"

    @property
    def opening(self) -> str:
        """What a text without a prompt goes on from, unseen: a line break, where the corpus is one text.

        Such a corpus has no end of text, so a model never learned to begin behind one. It is the first character of
        the vocabulary where that has no line break, and nothing, the end of another document, where there are many.
        """
        documents = self.recipe.corpus.holds_documents
        if documents or len(self.tokenizer.encode("\n")) == 1:
            return "" if documents else "\n"
        return getattr(self.tokenizer, "characters", "")[:1]

    @property
    def _device(self) -> torch.device:
        return next(self.model.parameters()).device

    def _options(
        self, length: int, seed: int | None, stop: Sequence[str], decoding: dict[str, Any]
    ) -> sampling.GenerationOptions:
        config = Config.model_validate(self.recipe.parameters.model_dump() | decoding)
        return sampling.GenerationOptions(length, config, seed, stop)


def load(folder: str | Path, device: str = "auto") -> Run:
    """Returns the text generator of a run folder; raises RunError when it is missing or unfinished."""
    folder = Path(folder)
    if not folder.is_dir():
        raise RunError(f"{folder}: {_no_folder(folder)}")
    missing = [name for name in (CONFIG, TOKENIZER, MODEL) if not (folder / name).exists()]
    if missing and MODEL not in missing:
        raise RunError(f"{folder}: {', '.join(missing)} missing; restore it, or train into another folder")
    if missing:
        inside = sorted(folder.glob(f"*/{MODEL}")) if len(missing) == 3 else []
        if inside:
            raise RunError(f"{folder}: holds run folders; give one of them: {inside[0].parent}")
        raise RunError(f"{folder}: no complete run, {', '.join(missing)} missing; finish it with `train --resume`")
    try:
        require_plain(folder / CONFIG, LARGEST_CONFIG)
    except OSError as error:
        raise RunError(f"{folder / CONFIG}: cannot be read ({reason(error)})") from error
    recipe = read_recipe(folder / CONFIG)
    tokenizer = tokenizers.load(folder / TOKENIZER)
    try:
        _require_weights(folder / MODEL, recipe.parameters, tokenizer.vocabulary_size)
        model = build(recipe.parameters, tokenizer.vocabulary_size)
        load_weights(model, load_file(folder / MODEL))
        require_finite(model)
    except (OSError, SafetensorError, ValueError, MemoryError) as error:
        raise RunError(f"{folder / MODEL}: does not hold the weights of {CONFIG} ({reason(error)})") from error
    return Run(recipe, tokenizer, model.to(usable_device(device)).eval())


def _no_folder(path: Path) -> str:
    """Says what to give in place of a path that is no folder."""
    if path.name in (MODEL, CONFIG, TOKENIZER) and path.exists():
        return f"a file of a run folder; give the folder: {path.parent}"
    if path.is_file():
        return f"not a run folder; make one with `tuner train {path} -o my-run`, and give my-run"
    if (Path("runs") / path / MODEL).exists():
        return f"no such run folder; did you mean {Path('runs') / path}?"
    return (
        f"no such run folder; make one with `tuner train best.yaml -o {path}`; for a study, use `tuner sample {path}`"
    )


def _require_weights(path: Path, config: Config, vocabulary_size: int) -> None:
    """Raises ValueError or OSError when the file cannot be that model's, before either takes memory."""
    try:
        model = build_shapes(config, vocabulary_size)
    except UserError:
        raise
    except Exception:  # one of the user's own that can only be built for real
        require_plain(path)
        return
    require_weights(path, model)


def score_test(folder: Path, device: str = "auto") -> Score | None:
    """Returns the score of a complete run on the test split of its corpus, as `train` has it; None without one."""
    run = load(folder, device)
    config = run.recipe.parameters
    corpus = load_corpus(run.recipe.corpus, config.tokenizer, config.vocabulary_size)
    if not len(corpus.test):
        return None
    half, _ = set_precision(run.model, config, usable_device(device))
    scorer = Scorer(run.model, config, corpus.tokenizer.vocabulary_size, half)
    return scorer.score(held_out(corpus, "test", config.sequence_length))


def _prepare(folder: Path, recipe: Recipe, tokenizer: Tokenizer, resume: bool, force: bool) -> None:
    """Makes the folder ready for the run's first step, or its next."""
    try:
        if resume and (folder / CONFIG).exists():
            if is_finished(folder):
                raise RunError(f"{folder}: is trained already; write with it, or replace it with --force alone")
            require_same(folder, recipe)
        else:
            require_free(folder, force)
            for path in folder.iterdir() if folder.exists() else ():
                path.unlink()
        folder.mkdir(parents=True, exist_ok=True)
        sweep(folder)
        write_start(folder, recipe, tokenizer)
    except OSError as error:
        raise RunError(f"{folder}: cannot be written ({error.strerror})") from error


def require_free(folder: Path, force: bool) -> None:
    """Raises RunError when something is in a run's way; drafts of one that was killed before it began are not."""
    if folder.exists() and not (folder.is_dir() and all(path.name.startswith(DRAFTS) for path in folder.iterdir())):
        require_replaceable(folder, force)


def require_same(folder: Path, recipe: Recipe) -> None:
    """Raises RunError unless the folder holds this very run."""
    begun = read_recipe(folder / CONFIG)
    before, now = _identity(begun), _identity(recipe)
    differing = [name for name in now | before if now.get(name) != before.get(name)]
    if begun.trial != recipe.trial:
        differing.append(f"budget ({_as_options(begun.trial)})")
    if differing:
        raise RunError(
            f"{folder}: was begun with another {', '.join(differing)}; give the same, or replace it with --force alone"
        )


def _identity(recipe: Recipe) -> dict[str, Any]:
    return {**flat(dict(recipe.parameters)), "corpus": recipe.corpus.fingerprint, "split": recipe.corpus.split}


def _as_options(budget: Budget) -> str:
    spent = f"--tokens {budget.tokens}" if budget.tokens else f"--seconds {budget.seconds:g}"
    return f"{spent} --rungs {budget.rungs}"


def is_finished(folder: Path) -> bool:
    """Whether a folder holds a run that came to its end."""
    return (folder / MODEL).exists()


def require_replaceable(folder: Path, force: bool) -> None:
    """Raises RunError unless `force` is given and nothing but a run is lost."""
    if not folder.is_dir():
        raise RunError(f"{folder}: is not a folder; choose another -o")
    if not force and not (folder / CONFIG).exists():
        raise RunError(f"{folder}: exists already and is no run folder; choose another -o")
    if not force and is_finished(folder):
        raise RunError(f"{folder}: exists already and is trained; write with it, or replace it with --force")
    if not force:
        raise RunError(f"{folder}: exists already; go on with --resume, or replace it with --force")
    names = sorted(path.name for path in folder.iterdir())
    foreign = [name for name in names if name not in OWN and not name.startswith((*DRAFTS, EVENTS))]
    if foreign or not _has_recipe(folder):
        raise RunError(
            f"{folder}: is not just a run folder ({', '.join(foreign or names)}), so --force does not replace it; "
            "choose another -o"
        )


def _has_recipe(folder: Path) -> bool:
    try:
        read_recipe(folder / CONFIG)
    except ConfigError:
        return False
    return True

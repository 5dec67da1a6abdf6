"""A run folder: everything that one training leaves, and the text generator that can be loaded from it."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import nn

from models import sampling, tokenizers
from models.checkpoint import load_weights, weights, write_tensors
from models.config import Config, Recipe, resolve_path
from models.corpus import load_corpus, require_room
from models.errors import ConfigError, RunError
from models.network import build, generator_class
from models.reader import dump, parse, read_text, validate
from models.tokenizers import Tokenizer
from models.training import Diverged, Evaluation, Trained, Training, train, usable_device

CONFIG, TOKENIZER, MODEL, METRICS = "config.yaml", "tokenizer.json", "model.safetensors", "metrics.jsonl"
CHECKPOINT = "checkpoint.safetensors"
OWN = (CONFIG, TOKENIZER, MODEL, METRICS, CHECKPOINT)
DRAFTS = tuple(f".{name}" for name in OWN)
"""How the names of files begin that are still being written."""

CHECKPOINT_SECONDS = 60.0


def read_recipe(path: Path) -> Recipe:
    """Returns the recipe in a YAML or JSON file; a relative corpus path counts from that file's folder."""
    recipe = validate(parse(read_text(path), str(path)), str(path), Recipe)
    return recipe.model_copy(update={"corpus": resolve_path(recipe.corpus, path.parent)})


def train_run(
    recipe: Recipe,
    folder: Path,
    *,
    device: str = "auto",
    resume: bool = False,
    force: bool = False,
    on_evaluation: Callable[[Evaluation], None] = lambda evaluation: None,
    on_step: Callable[[Training, Callable[[], None]], None] = lambda training, save: None,
) -> Trained:
    """Trains `recipe` into a run folder, with a checkpoint there every minute.

    `on_step` is given the training and a function that saves the checkpoint. Raises RunError when the
    folder is in the way (`force` replaces a run, `resume` goes on with the same one) or the loss diverges; what
    else a user can do wrong is found before the folder is touched.
    """
    if recipe.threads:
        torch.set_num_threads(recipe.threads)
    usable_device(device)
    generator_class(recipe.parameters)
    corpus = load_corpus(recipe.corpus, recipe.parameters.tokenizer, recipe.parameters.vocabulary_size)
    require_room(corpus, recipe.parameters.batch_size, recipe.parameters.sequence_length)
    recipe = with_facts(recipe, corpus.fingerprint)
    checkpoint = folder / CHECKPOINT
    _prepare(folder, recipe, corpus.tokenizer, resume, force)
    saved = time.monotonic()

    def keep(training: Training) -> None:
        def save() -> None:
            nonlocal saved
            training.save(checkpoint)
            saved = time.monotonic()

        if time.monotonic() - saved > CHECKPOINT_SECONDS:
            save()
        on_step(training, save)

    def note(evaluation: Evaluation) -> None:
        append_metrics(folder, evaluation)
        on_evaluation(evaluation)

    try:
        trained = train(
            recipe.parameters,
            corpus,
            recipe.trial,
            device=device,
            on_evaluation=note,
            on_step=keep,
            checkpoints=[checkpoint] if checkpoint.exists() else [],
        )
    except Diverged as error:
        raise RunError(f"{folder}: {error}; a smaller learning_rate or gradient_clip helps") from error
    write_model(folder, trained.model)
    checkpoint.unlink(missing_ok=True)
    return trained


def with_facts(recipe: Recipe, fingerprint: str) -> Recipe:
    """Returns the recipe with what repeats it to the bit: the text's fingerprint and the number of threads."""
    corpus = recipe.corpus.model_copy(update={"fingerprint": fingerprint})
    return recipe.model_copy(update={"corpus": corpus, "threads": recipe.threads or torch.get_num_threads()})


def write_start(folder: Path, recipe: Recipe, tokenizer: Tokenizer) -> None:
    """Writes what is known before a run: its configuration and its vocabulary."""
    header = f"Train it again: python -m models train {CONFIG} -o NEW-RUN"
    (folder / CONFIG).write_text(
        dump(
            recipe.model_dump(mode="json", exclude_none=True, exclude={"parameters"})
            | {"parameters": recipe.parameters.model_dump(mode="json")},
            header,
        ),
        encoding="utf-8",
    )
    tokenizers.save(tokenizer, folder / TOKENIZER)


def append_metrics(folder: Path, evaluation: Evaluation) -> None:
    """Adds a line to metrics.jsonl; rungs that are run again after a checkpoint replace their old lines."""
    path = folder / METRICS
    lines = path.read_text(encoding="utf-8").splitlines() if path.exists() else []
    lines = [line for line in lines if json.loads(line)["rung"] < evaluation.rung]
    draft = folder / f".{METRICS}"
    draft.write_text("\n".join([*lines, json.dumps(asdict(evaluation))]) + "\n", encoding="utf-8")
    draft.replace(path)


def write_model(folder: Path, model: nn.Module) -> None:
    """Writes the weights; a run folder that has them is complete."""
    tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in weights(model).items()}
    write_tensors(folder / MODEL, tensors)


@dataclass(frozen=True)
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
        return sampling.stream(self.model, self.tokenizer, prompt, length, self._config(decoding), seed, stop)

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
        config = self._config(decoding)
        return sampling.generate_batch(self.model, self.tokenizer, prompts, length, config, seed, stop)

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
        config = self._config(decoding)
        return sampling.beam_search(self.model, self.tokenizer, prompt, length, config, beams, length_penalty, stop)

    def _config(self, decoding: dict[str, Any]) -> Config:
        return Config.model_validate(self.recipe.parameters.model_dump() | decoding)


def load(folder: str | Path, device: str = "auto") -> Run:
    """Returns the text generator of a run folder; raises RunError when it is missing or unfinished."""
    folder = Path(folder)
    if not folder.is_dir():
        raise RunError(f"{folder}: no such run folder; make one with `tuner train best.yaml -o {folder}`")
    missing = [name for name in (CONFIG, TOKENIZER, MODEL) if not (folder / name).exists()]
    if missing:
        raise RunError(f"{folder}: no complete run, {', '.join(missing)} missing; finish it with `train --resume`")
    recipe = read_recipe(folder / CONFIG)
    tokenizer = tokenizers.load(folder / TOKENIZER)
    model = build(recipe.parameters, tokenizer.vocabulary_size)
    try:
        load_weights(model, load_file(folder / MODEL))
    except (OSError, SafetensorError, ValueError) as error:
        raise RunError(f"{folder / MODEL}: does not hold the weights of {CONFIG} ({error})") from error
    return Run(recipe, tokenizer, model.to(usable_device(device)).eval())


def _prepare(folder: Path, recipe: Recipe, tokenizer: Tokenizer, resume: bool, force: bool) -> None:
    """Makes the folder ready for the run's first step, or its next."""
    try:
        if resume and (folder / CONFIG).exists():
            _require_same(folder, recipe)
        elif folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
            require_replaceable(folder, force)
            for path in folder.iterdir():
                path.unlink()
        folder.mkdir(parents=True, exist_ok=True)
        write_start(folder, recipe, tokenizer)
    except OSError as error:
        raise RunError(f"{folder}: cannot be written ({error.strerror})") from error


def _require_same(folder: Path, recipe: Recipe) -> None:
    """Raises RunError unless the folder holds the beginning of this very run."""
    if (folder / MODEL).exists():
        raise RunError(f"{folder}: is trained already; write with it, or replace it with --force alone")
    before, now = _identity(read_recipe(folder / CONFIG)), _identity(recipe)
    differing = [name for name in now if now[name] != before[name]]
    if differing:
        raise RunError(
            f"{folder}: was begun with another {', '.join(differing)}; give the same, or replace it with --force alone"
        )


def _identity(recipe: Recipe) -> dict[str, Any]:
    corpus = {"corpus": recipe.corpus.fingerprint, "split": recipe.corpus.split}
    return {**dict(recipe.parameters), "trial": recipe.trial, **corpus}


def require_replaceable(folder: Path, force: bool) -> None:
    """Raises RunError unless `force` is given and nothing but a run is lost."""
    if not folder.is_dir():
        raise RunError(f"{folder}: is not a folder; choose another -o")
    if not force:
        raise RunError(f"{folder}: exists already; go on with --resume, or replace it with --force")
    names = sorted(path.name for path in folder.iterdir())
    foreign = [name for name in names if name not in OWN and not name.startswith(DRAFTS)]
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

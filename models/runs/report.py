"""The report of a finished run: result.json, samples.md, the model card README.md and loss.svg."""

from __future__ import annotations

import json
import math
import os
import platform
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from models.config import ARCHITECTURES, Recipe
from models.files import optional, written_whole
from models.generation import sampling
from models.safe_text.markdown import fenced
from models.text.corpus import SPLITS, EncodedCorpus
from models.text.tokenizers import Tokenizer
from models.training.checkpoint import weights
from models.training.loop import Evaluation, Trained
from models.training.metrics import Score

if TYPE_CHECKING:
    from matplotlib.figure import Figure

RESULT, SAMPLES_PAGE, CARD, PICTURE = "result.json", "samples.md", "README.md", "loss.svg"
PROMPTS, PROMPT_TOKENS, SAMPLE_TOKENS = 3, 32, 200


def write_report(folder: Path, recipe: Recipe, corpus: EncodedCorpus, trained: Trained, processes: int = 1) -> None:
    """Writes the four files into the folder of a run that is complete; each that cannot be written is a warning."""
    write_result(folder, trained)
    with _extra(folder, SAMPLES_PAGE) as path:
        path.write_text("".join(_samples(recipe, corpus, trained)), encoding="utf-8")
    with _extra(folder, CARD) as path:
        lines = _card(folder.resolve().name, recipe, corpus, trained, processes)
        path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    with _extra(folder, PICTURE) as path:
        _draw(trained.evaluations, path)


def write_result(folder: Path, trained: Trained) -> None:
    """Writes the scores; where that is not possible, warns."""
    with _extra(folder, RESULT) as path:
        path.write_text(json.dumps(_result(trained), indent=1) + "\n", encoding="utf-8")


@contextmanager
def _extra(folder: Path, name: str) -> Iterator[Path]:
    with optional(f"{folder / name} is not written"), written_whole(folder / name) as draft:
        yield draft


def _result(trained: Trained) -> dict[str, Any]:
    return {
        "rung": trained.best.rung,
        "tokens": trained.tokens,
        "seconds": round(trained.seconds, 3),
        "validation": asdict(_validation(trained)),
        "test": None if trained.test is None else asdict(trained.test),
    }


def _validation(trained: Trained) -> Score:
    best = trained.best
    return Score(best.bits_per_byte, best.nats_per_token, best.perplexity)


# Samples.


def prompt_at(tokenizer: Tokenizer, tokens: np.ndarray[Any, Any], start: int) -> str:
    """Returns a short piece of held-out text, from its first whole character on."""
    return tokenizer.decode(tokens[start : start + PROMPT_TOKENS]).strip("\ufffd")


def _samples(recipe: Recipe, corpus: EncodedCorpus, trained: Trained) -> Iterator[str]:
    config = recipe.parameters
    drawn = f"temperature {config.temperature:g}, top_k {config.top_k}, top_p {config.top_p}"
    yield f"# Samples\n\nText of the validation split, and how the model goes on from it ({drawn}).\n"
    for number in range(PROMPTS):
        prompt = prompt_at(corpus.tokenizer, corpus.validation, number * len(corpus.validation) // PROMPTS)
        options = sampling.GenerationOptions(SAMPLE_TOKENS, config, seed=number)
        text = sampling.generate(trained.model, corpus.tokenizer, prompt, options)
        yield f"\n## {number + 1}\n\nPrompt:\n\n{fenced(prompt)}\n\nThe model:\n\n{fenced(text)}\n"


# The model card.


def _card(name: str, recipe: Recipe, corpus: EncodedCorpus, trained: Trained, processes: int) -> Iterator[str]:
    config = recipe.parameters
    yield f"# {_code(name)}"
    yield f"\nA text generator ({config.architecture}) that was trained on the corpus {_code(corpus.name)}."
    yield "It writes on from a prompt, in the manner of that text.\n"
    yield from _table(("", ""), _sizes(recipe, corpus, trained))
    yield "\n## Score\n"
    yield from _table(("split", "bits per byte", "nats per token", "perplexity"), _scores(corpus, trained))
    yield f"\nThe weights are those of rung {trained.best.rung} of {recipe.trial.rungs}. The test split was read"
    yield "once, after training; the validation split chose the configuration, so its score flatters."
    if corpus.entropy is not None:
        yield f"The source of this text has an entropy of {corpus.entropy:.4f} bits per byte: nothing scores less."
    yield f"\n![Loss over training tokens]({PICTURE})\n\n[{SAMPLES_PAGE}]({SAMPLES_PAGE}) shows what it writes."
    yield "\n## Data\n"
    yield from _table(("split", "tokens", "bytes"), _data(corpus))
    yield f"\nText: {_code(corpus.name)}, {_code(corpus.fingerprint)}."
    yield from _loading(name)
    yield from _training(recipe, trained, processes)
    yield from _limits(recipe)


def _sizes(recipe: Recipe, corpus: EncodedCorpus, trained: Trained) -> Iterator[Sequence[str]]:
    config, tensors = recipe.parameters, weights(trained.model)
    yield "architecture", config.architecture
    yield from ((name, _code(str(value))) for name, value in config.own.items())
    yield "layers", f"{config.layers} of {config.hidden_size} units"
    if config.architecture == "transformer":
        yield "attention", f"{config.heads} heads, {config.positions} positions"
    yield "vocabulary", f"{corpus.tokenizer.vocabulary_size:,} tokens ({config.tokenizer})"
    megabytes = sum(tensor.numel() * tensor.element_size() for tensor in tensors.values()) / 1e6
    yield "weights", f"{sum(tensor.numel() for tensor in tensors.values()):,} ({megabytes:.3g} MB)"


def _scores(corpus: EncodedCorpus, trained: Trained) -> Iterator[Sequence[str]]:
    scores = {"validation": _validation(trained), "test": trained.test}
    for split, score in scores.items():
        if score is None:
            yield split, "not scored" if len(corpus.test) else "no text", "", ""
        else:
            yield split, f"{score.bits_per_byte:.4f}", f"{score.nats_per_token:.4f}", f"{score.perplexity:.4g}"


def _data(corpus: EncodedCorpus) -> Iterator[Sequence[str]]:
    for split in SPLITS:
        yield split, f"{len(getattr(corpus, split)):,}", f"{corpus.bytes[split]:,}"


def _loading(name: str) -> Iterator[str]:
    yield "\n## Use\n\nFrom the folder that this one lies in:\n"
    yield f'```\ntuner generate {_shell(name)} --prompt "The "\n```\n'
    yield f'```python\nfrom models import load\n\nprint(load({json.dumps(name)}).generate("The "))\n```\n'
    yield "The weights alone, by name, with any program that reads safetensors:\n"
    weights_file = json.dumps(f"{name}/model.safetensors")
    yield f"```python\nfrom safetensors.torch import load_file\n\nweights = load_file({weights_file})\n```"


def _training(recipe: Recipe, trained: Trained, processes: int) -> Iterator[str]:
    start = "" if processes == 1 else f"torchrun --nproc-per-node {processes} --no-python "
    yield f"\n## Training\n\n```\n{start}tuner train config.yaml -o NEW-RUN\n```\n"
    yield "in this folder repeats it.\n"
    yield from _table(("", ""), _facts(recipe, trained, processes))
    facts = recipe.provenance or {}
    if {"study", "trial"} <= facts.keys():
        yield f"\nThe configuration is trial {facts['trial']} of the study {_code(str(facts['study']))}."


def _facts(recipe: Recipe, trained: Trained, processes: int) -> Iterator[Sequence[str]]:
    config = recipe.parameters
    yield "read", f"{trained.tokens:,} tokens in {trained.seconds:,.1f} s, {trained.tokens_per_second:,.0f} tokens/s"
    yield "batch", f"{config.batch_size} x {config.sequence_length} tokens"
    yield "optimizer", f"{config.optimizer}, learning rate {config.learning_rate:g}, {config.schedule} schedule"
    yield "seed", str(config.seed)
    yield "device", _device_name(trained)
    yield "processes", f"{processes}, with CPU threads: {recipe.threads}"
    yield "versions", f"Python {platform.python_version()}, torch {torch.__version__}"


def _limits(recipe: Recipe) -> Iterator[str]:
    config = recipe.parameters
    yield "\n## Limits\n\n- It imitates its corpus: it has no other knowledge, follows no instructions, and states"
    yield "  falsehoods as fluently as facts.\n- It may repeat pieces of its corpus word for word; do not give it to"
    yield "  people who may not read the corpus.\n- Scores on other kinds of text will be worse."
    if config.architecture == "transformer":
        yield f"- It sees at most the last {config.sequence_length} tokens."
    elif config.architecture in ARCHITECTURES:
        yield f"- It learned to look back over {config.sequence_length} tokens; what it remembers beyond is luck."


def _table(header: Sequence[str], rows: Iterator[Sequence[str]]) -> Iterator[str]:
    for row in (header, ["---"] * len(header), *rows):
        yield f"| {' | '.join(row)} |"


def _device_name(trained: Trained) -> str:
    device = next(trained.model.parameters()).device
    return torch.cuda.get_device_name(device) if device.type == "cuda" else f"a CPU ({platform.machine()})"


def _code(text: str) -> str:
    """Inline code that a name with backticks, bars or line breaks cannot end."""
    return "`" + re.sub(r"[`|\s]", " ", text) + "`"


def _shell(name: str) -> str:
    return name if re.fullmatch(r"[\w.-]+", name) else "RUN"


# The picture.


def _draw(evaluations: list[Evaluation], path: Path) -> None:
    """Draws both losses over the training tokens."""
    write_picture(_figure(evaluations), path)


def write_picture(figure: Figure, path: Path) -> None:
    """Writes a figure as SVG; the same figure gives the same bytes."""
    import matplotlib

    with matplotlib.rc_context({"svg.hashsalt": "loss", "svg.fonttype": "none"}):
        figure.savefig(path, format="svg", metadata={"Date": None})


def new_figure(width: float, height: float) -> Figure:
    """Returns an empty figure, in inches. It is shown on no screen, so matplotlib is told of none.

    Where MPLBACKEND names one that is not installed, as every notebook's does here, matplotlib cannot be imported.
    """
    wanted = os.environ.pop("MPLBACKEND", None)
    try:
        from matplotlib.figure import Figure
    finally:
        if wanted is not None:
            os.environ["MPLBACKEND"] = wanted
    return Figure(figsize=(width, height), layout="constrained")


def _figure(evaluations: list[Evaluation]) -> Figure:
    figure = new_figure(7, 4)
    axes = figure.add_subplot(xlabel="training tokens", ylabel="nats per token")
    tokens = [evaluation.tokens for evaluation in evaluations]
    for label, losses in (
        ("training", [evaluation.training_loss for evaluation in evaluations]),
        ("validation", [evaluation.nats_per_token for evaluation in evaluations]),
    ):
        axes.plot(tokens, [loss if math.isfinite(loss) else math.nan for loss in losses], marker=".", label=label)
    axes.legend()
    axes.grid(alpha=0.3)
    return figure

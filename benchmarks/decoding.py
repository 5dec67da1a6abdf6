"""Decoding: what the search of temperature finds and costs, what the naive way finds, how fast text is written.

    python benchmarks/decoding.py TEXT [quality] [grid] [cost] [naive] [speed]     (all: about 15 minutes)

TEXT is a file; the other two corpora are those that come with the tuner. One thread, except in `cost`, which runs
`tuner run` with a worker on each core.
"""

from __future__ import annotations

import argparse
import math
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from statistics import mean, median, stdev
from typing import Any

import numpy as np
import optuna
import torch
from machine import show
from torch import nn

from models.config import Budget, Config, Corpus
from models.generation.continuations import Continuations
from models.generation.sampling import BLANK, uniform_noise, write
from models.nn.network import build
from models.text.corpus import EncodedCorpus, load_corpus
from models.training.loop import Trained, train
from tuner.study.definition import Decoding
from tuner.study.space import Space
from tuner.trials.decoding import MOST_TRIED, REPORTED, decode

TEMPERATURE = {"type": "float", "low": 0.3, "high": 1.5}
SPACE = Space.of({"temperature": TEMPERATURE})
SEEDS = 3
TOKENS = 600_000
GRID = 60

Row = dict[str, Any]


def corpora(text: str) -> dict[str, EncodedCorpus]:
    given = {
        "python-docs": Corpus(builtin="python-docs"),
        "markov": Corpus(builtin="markov"),
        "text": Corpus(path=text),
    }
    return {name: load_corpus(corpus, "character", 2048) for name, corpus in given.items()}


def trained(corpus: EncodedCorpus, seed: int, tokens: int = TOKENS) -> tuple[Config, Trained]:
    config = Config(hidden_size=192, learning_rate=4e-3, seed=seed)
    return config, train(config, corpus, Budget(tokens=tokens, rungs=1))


def places_of(corpus: EncodedCorpus, split: str) -> Continuations:
    return Continuations.of(corpus.tokenizer, getattr(corpus, split), corpus.characters[split])


def fresh_divergence(places: Continuations, model: nn.Module, config: Config, times: int) -> float:
    """The mean divergence of texts that no search has seen."""
    return mean(places.divergence(places.written(model, [config], 900 + turn)[0]) for turn in range(times))


def interval(values: list[float]) -> str:
    """Mean and half of its 95 % interval (Student's t)."""
    quantile = {2: 12.71, 3: 4.30, 4: 3.18, 5: 2.78, 9: 2.31}[len(values)]
    return f"{mean(values):.4f} ± {quantile * stdev(values) / math.sqrt(len(values)):.4f}"


def quality(text: str) -> Iterator[Row]:
    """The divergence from the test split at the chosen temperature, at 1 and greedy."""
    for name, corpus in corpora(text).items():
        test = places_of(corpus, "test")
        found: dict[str, list[float]] = {"chosen": [], "at 1": [], "greedy": [], "temperature": [], "gain over 1": []}
        for seed in range(SEEDS):
            config, run = trained(corpus, seed)
            chosen = decode(run.model, corpus, config, SPACE, Decoding(), (run.tokens, run.seconds)).config
            ways = [chosen, config, config.model_copy(update={"temperature": 0.0})]
            values = [
                mean(test.divergence(test.written(run.model, [way], 50 + k)[0]) for k in range(4)) for way in ways
            ]
            for key, value in zip(found, [*values, chosen.temperature, values[1] - values[0]], strict=True):
                found[key].append(value)
        yield {"corpus": name} | {key: interval(values) for key, values in found.items()}


def grid(text: str) -> Iterator[Row]:
    """The search against the best of sixty temperatures that are tried with as many texts each, on fresh texts."""
    for name, corpus in corpora(text).items():
        validation = places_of(corpus, "validation")
        for seed in range(SEEDS):
            config, run = trained(corpus, seed)
            cost = (run.tokens, run.seconds * 100)  # the clock does not cut it short
            ours = decode(run.model, corpus, config, SPACE, Decoding(), cost).config
            texts = (int(0.7 * 0.1 * run.tokens / validation.tokens) - REPORTED) // MOST_TRIED
            places = validation.some(texts)
            tried = [config.model_copy(update={"temperature": value}) for value in np.linspace(0.3, 1.5, GRID)]
            values = [places.divergence(one) for one in places.written(run.model, tried, seed)]
            theirs = tried[int(np.argmin(values))]
            fresh = [fresh_divergence(validation, run.model, way, 16) for way in (ours, theirs)]
            yield {
                "corpus": name,
                "seed": seed,
                "search": ours.temperature,
                "grid": round(theirs.temperature, 3),
                "divergence, search": fresh[0],
                "divergence, grid": fresh[1],
                "search / grid": fresh[0] / fresh[1],
                "tokens, search / grid": sum((9, 5)) / GRID,
            }


STUDY = """
name: {name}
corpus: {{builtin: python-docs}}
trial: {{tokens: 300_000, rungs: 9}}
budget: {{trials: 12}}
sampler: {{type: random, seed: 3}}
pruner: {{type: successive_halving, reduction_factor: 3}}
parameters:
  architecture: {{type: categorical, choices: [lstm, gru, transformer]}}
  learning_rate: {{type: float, low: 1e-3, high: 1e-2, log: true}}
  hidden_size: {{type: int, low: 64, high: 192, step: 64}}
  {temperature}
decoding: {{share: {share}}}
"""


def cost(text: str) -> Iterator[Row]:
    """Seconds of the same study (the same trials) with decoding and without, one after the other."""
    seconds: dict[str, list[float]] = {"on": [], "off": []}
    for turn in range(2):
        for way in ("off", "on"):
            with tempfile.TemporaryDirectory() as folder:
                study = Path(folder, "study.yaml")
                temperature = "temperature: {type: float, low: 0.3, high: 1.5}" if way == "on" else "temperature: 1.0"
                study.write_text(
                    STUDY.format(name=f"{way}{turn}", temperature=temperature, share=int(way == "on") * 0.1)
                )
                places = [f"--data-folder={folder}/data", f"--artifacts={folder}/artifacts"]
                Path(folder).chmod(0o755)
                start = time.monotonic()
                command = [sys.executable, "-m", "tuner", "run", str(study), *places]
                subprocess.run(command, check=True, cwd=folder, stdout=subprocess.DEVNULL)
                seconds[way].append(time.monotonic() - start)
    yield {
        "with, s": round(mean(seconds["on"]), 1),
        "without, s": round(mean(seconds["off"]), 1),
        "with / without": mean(seconds["on"]) / mean(seconds["off"]),
        "each": " ".join(f"{value:.1f}" for way in ("on", "off") for value in seconds[way]),
    }


def naive(text: str) -> Iterator[Row]:
    """A search in which each temperature costs a training, and ours, for as many seconds each."""
    corpus = load_corpus(Corpus(builtin="python-docs"), "character", 2048)
    validation, test = places_of(corpus, "validation").some(REPORTED), places_of(corpus, "test")
    for seed in range(2):
        for way in ("naive", "ours"):
            yield {"seed": seed, "way": way} | _search(corpus, validation, test, way, seed, seconds=75)


def _search(
    corpus: EncodedCorpus, validation: Continuations, test: Continuations, way: str, seed: int, seconds: float
) -> Row:
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    study = optuna.create_study(sampler=optuna.samplers.TPESampler(seed=seed))
    best: tuple[float, Config, nn.Module, float] | None = None
    start = time.monotonic()
    while time.monotonic() - start < seconds:
        trial = study.ask()
        config = Config(
            hidden_size=trial.suggest_int("hidden_size", 64, 192, step=64),
            learning_rate=trial.suggest_float("learning_rate", 5e-4, 3e-2, log=True),
            dropout=trial.suggest_float("dropout", 0.0, 0.3),
            temperature=trial.suggest_float("temperature", 0.3, 1.5) if way == "naive" else 1.0,
        )
        run = train(config, corpus, Budget(tokens=200_000, rungs=1))
        if way == "ours":
            config = decode(run.model, corpus, config, SPACE, Decoding(), (run.tokens, run.seconds)).config
            value = run.best.bits_per_byte
        else:
            value = validation.divergence(validation.written(run.model, [config], seed)[0])
        study.tell(trial, value)
        if best is None or value < best[0]:
            best = value, config, run.model, run.best.bits_per_byte
    assert best is not None
    _, config, model, bits = best
    return {
        "trials": len(study.trials),
        "temperature": config.temperature,
        "test divergence": fresh_divergence(test, model, config, 4),
        "bits per byte": bits,
    }


SHAPES = {
    "rnn": {"hidden_size": 256},
    "gru": {"hidden_size": 256},
    "lstm": {"hidden_size": 256},
    "transformer": {"hidden_size": 128, "layers": 4, "heads": 4, "sequence_length": 256},
}
VOCABULARY, PROMPT, WRITTEN = 96, 8, 200


def speed(text: str) -> Iterator[Row]:
    """Tokens a second: ours, a bare loop around the same network, and `transformers` with a network of this shape."""
    for architecture, shape in SHAPES.items():
        config = Config(architecture=architecture, **shape)  # type: ignore[arg-type]
        model = build(config, VOCABULARY).eval()
        for batch in (1, 64):
            ways: dict[str, Callable[[], object]] = {
                "ours": lambda model=model, batch=batch: _ours(model, batch),  # type: ignore[misc]
                "bare": lambda model=model, batch=batch: _bare(model, batch),  # type: ignore[misc]
            }
            if architecture == "transformer":
                library = _library(config)
                ways["transformers"] = lambda library=library, batch=batch: _theirs(library, batch)  # type: ignore[misc]
            taken: dict[str, list[float]] = {way: [] for way in ways}
            for _ in range(6):  # interleaved; the first warms up
                for way, work in ways.items():
                    start = time.perf_counter()
                    work()
                    taken[way].append(time.perf_counter() - start)
            rates = {way: batch * WRITTEN / median(seconds[1:]) for way, seconds in taken.items()}
            yield {
                "architecture": architecture,
                "batch": batch,
                "ours, tokens/s": round(rates["ours"]),
                "bare loop": round(rates["bare"]),
                "transformers": round(rates["transformers"]) if "transformers" in rates else "",
                "ours / bare": rates["ours"] / rates["bare"],
                "ours / transformers": rates["ours"] / rates["transformers"] if "transformers" in rates else "",
            }


def _ours(model: nn.Module, batch: int) -> object:
    told = torch.cat([torch.ones(batch, PROMPT, dtype=torch.int64), torch.full((batch, WRITTEN), BLANK)], dim=1)
    return list(write(model, told, torch.full((batch,), PROMPT), uniform_noise(0, batch, WRITTEN), Config()))


@torch.no_grad()
def _bare(model: nn.Module, batch: int) -> object:
    logits, state = model(torch.ones(batch, PROMPT, dtype=torch.int64), None)
    tokens = []
    for _ in range(WRITTEN):
        tokens.append(torch.multinomial(logits[:, -1].softmax(-1), 1))
        logits, state = model(tokens[-1], state)
    return torch.cat(tokens, dim=1)


def _library(config: Config) -> Any:
    from transformers import GPT2Config, GPT2LMHeadModel

    return GPT2LMHeadModel(
        GPT2Config(
            vocab_size=VOCABULARY, n_positions=config.sequence_length, n_embd=config.hidden_size,
            n_layer=config.layers, n_head=config.heads,
        )
    ).eval()  # fmt: skip


def _theirs(library: Any, batch: int) -> object:
    prompt = torch.ones(batch, PROMPT, dtype=torch.int64)
    options = {"do_sample": True, "top_k": 0, "max_new_tokens": WRITTEN, "min_new_tokens": WRITTEN, "pad_token_id": 0}
    return library.generate(prompt, attention_mask=torch.ones_like(prompt), **options)


PARTS = {"quality": quality, "grid": grid, "cost": cost, "naive": naive, "speed": speed}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("text", help="a text file")
    parser.add_argument("parts", nargs="*", choices=[*PARTS, []], default=list(PARTS))
    wanted = parser.parse_args()
    torch.set_num_threads(1)
    for name in wanted.parts:
        print(f"\n{name}: {PARTS[name].__doc__}\n", flush=True)
        show(list(PARTS[name](str(Path(wanted.text).resolve()))))


if __name__ == "__main__":
    main()

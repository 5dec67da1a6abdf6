"""Tries the user's own generator before training: creates it, updates it once, reads and writes with it."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.parameter import UninitializedParameter

from models.config import Config
from models.errors import ConfigError
from models.generation.sampling import BLANK, uniform_noise, write
from models.nn.custom import blamed
from models.nn.network import build
from models.training.checkpoint import batch_dimensions, detached, flat

TEXTS = 2
LONGEST = 64
"""Tokens of the texts that are read."""

LONGEST_PROMPT = 1024
"""Tokens of the prompt that is written on from; a window up to this long is filled and left."""

MOST_SECONDS = 60
"""What one generator may take: it is tiny, but compiling its own parts may take a while."""

WRITTEN = 3
TOLERANCE = 1e-3
"""Part of the largest logit by which two readings of a text may differ: other shapes add up in another order."""


def rehearse_apart(configs: Sequence[Config], vocabulary_size: int, seconds: int = MOST_SECONDS) -> None:
    """Raises ConfigError, in one line, as `rehearse` does for the first of these generators that is not fine.

    They are tried in a process of their own: one that hangs, or ends Python, ends no more than that.
    """
    request = {
        "path": sys.path,
        "configs": [config.model_dump(mode="json") for config in configs],
        "vocabulary_size": vocabulary_size,
        "seconds": seconds,
    }
    # -P: what lies in the folder the user stands in, a models.py perhaps, is not taken for ours.
    command = [sys.executable, "-P", "-c", "from models.runs.rehearsal import answer; answer()"]
    child = subprocess.run(command, input=json.dumps(request), stdout=subprocess.PIPE, text=True)
    begun = child.stdout.splitlines()
    if begun and begun[-1].startswith("{"):
        raise ConfigError(json.loads(begun[-1])["problem"])
    if child.returncode != 0:
        how = f"ends Python, with {_signal_or_status(child.returncode)}"
        late = f"did not finish one step, reading and writing in {seconds} s"
        config = configs[max(len(begun) - 1, 0)]
        _require(config, False, late if child.returncode == -signal.SIGALRM else how)


def answer() -> None:
    """Rehearses what standard input asks for; prints a line before each generator, and what is wrong as JSON."""
    with os.fdopen(os.dup(1), "w") as told:
        os.dup2(2, 1)  # what the user's code prints is no answer
        request = json.load(sys.stdin)
        sys.path[:] = request["path"]
        try:
            for values in request["configs"]:
                print("begun", file=told, flush=True)
                signal.alarm(request["seconds"])  # ends the process whatever it does
                rehearse(Config.model_validate(values), request["vocabulary_size"])
        except ConfigError as error:
            print(json.dumps({"problem": str(error)}), file=told)


def rehearse(config: Config, vocabulary_size: int) -> None:
    """Raises ConfigError, in one line, when the generator of `config` does not do what is asked of one.

    It is made and stepped on the CPU; torch's random state stays what it was.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(config.seed)
        _Rehearsal(config, vocabulary_size).run()


class _Rehearsal:
    """The trial of one generator on random tokens."""

    def __init__(self, config: Config, vocabulary_size: int) -> None:
        self.config, self.vocabulary_size = config, vocabulary_size
        self.name = f"architecture {config.architecture}:"
        self.tokens = torch.randint(vocabulary_size, (TEXTS, min(config.sequence_length, LONGEST)))

    def run(self) -> None:
        with blamed(f"{self.name} its __init__"):
            self.model = build(self.config, self.vocabulary_size)
        self._require_weights()
        self._require_training()
        self.model.eval()
        with torch.no_grad():
            self._require_reading()
            self._require_writing()

    def _require(self, fine: bool, what: str) -> None:
        _require(self.config, fine, what)

    def _require_weights(self) -> None:
        weights = list(self.model.parameters())
        lazy = any(isinstance(weight, UninitializedParameter) for weight in weights)
        self._require(
            not lazy, "has lazy modules; give their sizes, for its weights are counted before it reads a text"
        )
        self._require(any(weight.requires_grad for weight in weights), "has no weights to train")
        kinds = {weight.dtype for weight in weights if weight.is_floating_point()} - {torch.float32}
        self._require(not kinds, f"has weights of {_listed(kinds)}; make all of them torch.float32")

    def _require_training(self) -> None:
        logits, state = self._read(self.model.train(), self.tokens)
        with blamed(f"{self.name} its state"):
            detached(state)
        with blamed(f"{self.name} the backward pass"):
            loss = functional.cross_entropy(logits.flatten(0, 1), self.tokens.flatten())
            self._require(bool(loss.isfinite()), f"the loss is {loss.item()} before any training")
            self._require(loss.requires_grad, "its logits do not depend on its weights: no gradient reaches them")
            torch.autograd.backward(loss)
        moved = any(weight.grad is not None and bool(weight.grad.any()) for weight in self.model.parameters())
        self._require(moved, "no gradient reaches its weights")
        self.model.zero_grad()

    def _require_reading(self) -> None:
        """What it says of a text is the same again, whatever follows, and when the text is read in two pieces."""
        whole, state = self._read(self.model, self.tokens)
        again, _ = self._read(self.model, self.tokens)
        self._require(_equal(whole, again), "says something else of the same text when it reads it again, after eval()")
        part = self.tokens.size(1) // 2
        if part == 0:
            return
        other = torch.cat([self.tokens[:, :part], (self.tokens[:, part:] + 1) % self.vocabulary_size], dim=1)
        early = self._read(self.model, other)[0][:, :part]
        self._require(_equal(whole[:, :part], early), "looks at later tokens: what it says of a text depends on them")
        if state is not None:
            first, between = self._read(self.model, self.tokens[:, :part])
            rest, _ = self._read(self.model, self.tokens[:, part:], between)
            same = _equal(whole, torch.cat([first, rest], dim=1))
            self._require(same, "says something else of a text that it reads in two pieces, with its state in between")

    def _require_writing(self) -> None:
        length = self.config.sequence_length
        prompt = torch.randint(self.vocabulary_size, (TEXTS, length if length <= LONGEST_PROMPT else LONGEST))
        tokens = torch.cat([prompt, torch.full((TEXTS, WRITTEN), BLANK)], dim=1)
        prompt_lengths = torch.full((TEXTS,), prompt.size(1))
        with blamed(f"{self.name} writing a text of {tokens.size(1)} tokens"):
            for _ in write(self.model, tokens, prompt_lengths, uniform_noise(0, TEXTS, WRITTEN), self.config):
                pass
            batch_dimensions(self.model, torch.device("cpu"))

    def _read(self, model: nn.Module, tokens: Tensor, state: Any = None) -> tuple[Tensor, Any]:
        """The logits and the state; refuses what is none."""
        with blamed(f"{self.name} its forward"):
            returned = model(tokens, state)
        pair = isinstance(returned, tuple | list) and len(returned) == 2
        self._require(
            pair, f"its forward returns {_kind(returned)}; return (logits, state), the state None if there is none"
        )
        logits, state = returned
        shape, wanted = tuple(getattr(logits, "shape", ())), (*tokens.shape, self.vocabulary_size)
        self._require(isinstance(logits, Tensor), f"its forward returns {_kind(logits)} as logits, not a tensor")
        self._require(
            shape == wanted,
            f"its logits have the shape {shape}, not {wanted}: sequences, tokens, vocabulary_size",
        )
        self._require(logits.dtype == torch.float32, f"its logits are {logits.dtype}, not torch.float32")
        self._require(
            _is_state(state), f"its state is {_kind(state)}; it may be None, a tensor, or tuples and lists of those"
        )
        self._require(state is None or bool(flat(state)), "its state holds no tensor; return None where there is none")
        return logits, state


def _require(config: Config, fine: bool, what: str) -> None:
    if not fine:
        own = ", ".join(f"{name}={value}" for name, value in config.own.items())
        raise ConfigError(f"architecture {config.architecture}: {what}{f' (with {own})' if own else ''}")


def _signal_or_status(code: int) -> str:
    return signal.Signals(-code).name if code < 0 else f"exit status {code}"


def _is_state(state: Any) -> bool:
    if isinstance(state, tuple | list):
        return all(_is_state(part) for part in state)
    return state is None or isinstance(state, Tensor)


def _equal(one: Tensor, other: Tensor) -> bool:
    return bool((one - other).abs().max() <= TOLERANCE * one.abs().max())


def _kind(value: Any) -> str:
    if isinstance(value, tuple | list):
        return f"a {type(value).__name__} of {len(value)}"
    return f"a {type(value).__name__}" if value is not None else "None"


def _listed(kinds: set[torch.dtype]) -> str:
    return ", ".join(sorted(map(str, kinds)))

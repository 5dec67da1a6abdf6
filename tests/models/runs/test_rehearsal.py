"""A class of the user's own is tried before it is trained: what is wrong with it is said in a line, with its place."""

import re
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from models.config import Config
from models.errors import ConfigError
from models.runs.rehearsal import rehearse, rehearse_apart

V = 11
SOUND = """\
import torch
from torch import nn
from torch.nn import functional


class Mine(nn.Module):
    carries_state = True

    def __init__(self, config, vocabulary_size, layers=1):
        super().__init__()
        self.embedding = nn.Embedding(vocabulary_size, config.hidden_size)
        self.recurrence = nn.GRU(config.hidden_size, config.hidden_size, layers, batch_first=True)
        self.logits = nn.Linear(config.hidden_size, vocabulary_size)

    def forward(self, tokens, state=None):
        hidden, state = self.recurrence(self.embedding(tokens), state)
        return self.logits(hidden), state
"""
STATELESS = """\
        embedded = functional.pad(self.embedding(tokens), (0, 0, 1, 0))
        return self.logits(embedded[:, :-1] + embedded[:, 1:]), None
"""
FORWARD = SOUND[SOUND.index("        hidden, state = self.rec") :]


@pytest.fixture(autouse=True)
def here(tmp_path: Path, own_import_path: None, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delitem(sys.modules, "rehearsed", raising=False)
    return tmp_path


def rehearsed(source: str, **own: Any) -> None:
    Path("rehearsed.py").write_text(source)
    rehearse(Config(architecture="rehearsed:Mine", hidden_size=8, sequence_length=12, own=own), V)


def refusal(source: str, **own: Any) -> str:
    with pytest.raises(ConfigError) as refused:
        rehearsed(source, **own)
    assert "\n" not in str(refused.value)
    return str(refused.value)


@pytest.mark.parametrize("source", [SOUND, SOUND.replace(FORWARD, STATELESS)])
@pytest.mark.parametrize("carries_state", ["True", "False"])
def test_a_sound_class_passes_and_leaves_no_trace(source: str, carries_state: str) -> None:
    state = torch.get_rng_state()
    rehearsed(source.replace("carries_state = True", f"carries_state = {carries_state}"), layers=2)
    assert torch.equal(torch.get_rng_state(), state)


def test_a_window_of_one_token_can_be_rehearsed() -> None:
    Path("rehearsed.py").write_text(SOUND.replace(FORWARD, STATELESS))
    rehearse(Config(architecture="rehearsed:Mine", hidden_size=8, sequence_length=1), V)


WRONG = {
    "raises in __init__": (
        ("super().__init__()\n", "super().__init__()\n        raise ValueError('no\\nway')\n"),
        r"its __init__ raises ValueError at {file}:11: no way$",
    ),
    "raises in forward": (
        (FORWARD, "        return self.missing(tokens), None\n"),
        r"its forward raises AttributeError at {file}:16: 'Mine' object has no attribute 'missing'$",
    ),
    "raises inside of torch": (
        (FORWARD, "        return self.logits(tokens), None\n"),
        r"its forward raises RuntimeError at {file}:16: ",
    ),
    "exits": (
        (FORWARD, "        raise SystemExit('enough')\n"),
        r"its forward ends Python at {file}:16, with sys.exit\('enough'\)$",
    ),
    "takes no state": (("tokens, state=None", "tokens"), r"its forward raises TypeError: .*takes 2 positional"),
    "logits alone": (("hidden), state\n", "hidden)\n"), r"its forward returns a Tensor; return \(logits, state\)"),
    "three values": (("hidden), state\n", "hidden), state, 1\n"), r"its forward returns a tuple of 3; return"),
    "nothing": (("return self.logits(hidden), state", "pass"), r"its forward returns None; return"),
    "no tensor": (("self.logits(hidden), state", "1, state"), r"its forward returns a int as logits, not a tensor"),
    "another vocabulary": (
        ("config.hidden_size, vocabulary_size)", "config.hidden_size, 9)"),
        r"its logits have the shape \(2, 12, 9\), not \(2, 12, 11\): sequences, tokens, vocabulary_size$",
    ),
    "the last token alone": (
        ("self.logits(hidden)", "self.logits(hidden[:, -1])"),
        r"its logits have the shape \(2, 1",
    ),
    "float64": (
        ("super().__init__()\n", "super().__init__()\n        self.x = nn.Parameter(torch.ones(1).double())\n"),
        r"has weights of torch.float64; make all of them torch.float32$",
    ),
    "float64 logits": (("self.logits(hidden)", "self.logits(hidden).double()"), r"its logits are torch.float64, not"),
    "lazy": (("nn.Linear(config.hidden_size, ", "nn.LazyLinear("), r"has lazy modules; give their sizes"),
    "no weights": (
        (SOUND[SOUND.index("        self.emb") :], "        self.size = vocabulary_size\n"),
        r"has no weights to train$",
    ),
    "frozen": (
        ("    def forward", "        self.requires_grad_(False)\n\n    def forward"),
        r"has no weights to train",
    ),
    "detached": (("self.logits(hidden)", "self.logits(hidden).detach()"), r"its logits do not depend on its weights"),
    "no gradient": (("self.logits(hidden)", "self.logits(hidden) * 0"), r"no gradient reaches its weights$"),
    "not finite": (("self.logits(hidden)", "self.logits(hidden) / 0"), r"the loss is nan before any training$"),
    "abstract": (
        (
            "class Mine(nn.Module):",
            "import abc\n\nclass Mine(nn.Module, abc.ABC):\n    @abc.abstractmethod\n    def more(self): ...\n",
        ),
        r"its __init__ raises TypeError: Can't instantiate abstract class Mine",
    ),
    "looks ahead": (
        ("self.logits(hidden)", "self.logits(hidden + hidden.mean(1, keepdim=True))"),
        r"looks at later tokens: ",
    ),
    "forgets its state": (
        ("self.embedding(tokens), state)", "self.embedding(tokens))"),
        r"says something else of a text that it reads in two pieces",
    ),
    "random": (("self.logits(hidden)", "self.logits(hidden + torch.rand(1))"), r"says something else of the"),
    "a state of another kind": (("hidden), state\n", "hidden), {'h': state}\n"), r"its state is a dict; it may be"),
    "an empty state": (("hidden), state\n", "hidden), ()\n"), r"its state holds no tensor; return None where there"),
    "cannot go on": (
        (
            FORWARD,
            "        assert state is None or state.size(1) < 12\n"
            "        state = tokens if state is None else torch.cat([state, tokens], 1)\n"
            "        return self.logits(self.embedding(tokens)), state\n",
        ),
        r"writing a text of 15 tokens raises AssertionError at {file}:16$",
    ),
}


@pytest.mark.parametrize("case", WRONG)
def test_what_is_wrong_is_said_in_one_line(case: str, here: Path) -> None:
    (old, new), said = WRONG[case]
    source = SOUND.replace(old, new)
    assert source != SOUND
    file = re.escape(str(here / "rehearsed.py"))
    assert re.match(f"architecture rehearsed:Mine: {said.replace('{file}', file)}", refusal(source))


def test_the_parameters_with_which_it_went_wrong_are_named() -> None:
    source = SOUND.replace(
        "self.logits(hidden)", "self.logits(hidden)[..., : -1 if self.recurrence.num_layers > 1 else None]"
    )
    rehearsed(source, layers=1)
    assert refusal(source, layers=2).endswith("(with layers=2)")


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("while True: pass", r"did not finish one step, reading and writing in 1 s \(with layers=1\)$"),
        ("__import__('os').abort()", r"ends Python, with SIGABRT \(with layers=1\)$"),
        ("__import__('os')._exit(3)", r"ends Python, with exit status 3 \(with layers=1\)$"),
        ("print('{1}'); raise ValueError('no')", r"its forward raises ValueError at .*rehearsed.py:16: no$"),
    ],
    ids=["hangs", "crashes", "exits", "raises"],
)
def test_a_class_that_hangs_or_ends_python_does_not_take_the_command_with_it(line: str, said: str) -> None:
    Path("rehearsed.py").write_text(SOUND.replace(FORWARD, "        " + line + "\n" + FORWARD))
    configs = [Config(architecture="rehearsed:Mine", hidden_size=8, sequence_length=12, own={"layers": 1})]
    with pytest.raises(ConfigError, match=f"^architecture rehearsed:Mine: {said}"):
        rehearse_apart(configs, V, seconds=1)


def test_sound_classes_are_tried_one_after_the_other() -> None:
    Path("models.py").write_text("raise SystemExit('no package of ours')")
    Path("rehearsed.py").write_text(SOUND)
    config = Config(architecture="rehearsed:Mine", hidden_size=8, sequence_length=12)
    rehearse_apart([config, config.model_copy(update={"own": {"layers": 2}})], V)
    with pytest.raises(ConfigError, match=r"\(with layers=0\)$|layers"):
        rehearse_apart([config, config.model_copy(update={"own": {"layers": 0}})], V)

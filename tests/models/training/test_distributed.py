"""Several processes, started by torchrun as a user starts them: the curve of one, one voice, and an agreed stop."""

import json
import os
import signal
import subprocess
import sys
from itertools import islice
from pathlib import Path
from typing import Any

import pytest

from models.errors import ConfigError
from models.runs.run import load, read_recipe, train_run
from models.training.distributed import ALONE, Team

RECIPE = """
corpus: {path: rhyme.txt}
trial: {tokens: TOKENS, rungs: RUNGS}
threads: 1
parameters:
  {architecture: ARCHITECTURE, hidden_size: 8, heads: 2, sequence_length: 8, batch_size: 4, precision: float32}
"""
RUNGS = {"lstm": 160, "transformer": 16}
"""One for each step; those of the LSTM are more lines than a small pipe holds."""


@pytest.fixture
def here(rhyme_file: Path, tmp_path: Path) -> Path:
    """A working folder with a recipe for each architecture, one that cannot be split, and their text."""
    (tmp_path / "rhyme.txt").write_bytes(rhyme_file.read_bytes())
    for architecture, rungs in RUNGS.items():
        text = RECIPE.replace("ARCHITECTURE", architecture)
        text = text.replace("TOKENS", str(32 * rungs)).replace("RUNGS", str(rungs))
        (tmp_path / f"{architecture}.yaml").write_text(text, encoding="utf-8")
    (tmp_path / "uneven.yaml").write_text(text.replace("batch_size: 4", "batch_size: 5"), encoding="utf-8")
    return tmp_path


def torchrun(here: Path, *arguments: str, **options: Any) -> subprocess.Popen[str]:
    """Starts two processes that train together."""
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    pipes: dict[str, Any] = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True, "encoding": "utf-8"}
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(Path(__file__).parents[3])}
    command = [*launcher, "--no-python", sys.executable, "-m", "tuner", "train", *arguments]
    return subprocess.Popen(command, cwd=here, env=environment, **pipes, **options)


def metrics(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]


def assert_one_process_does_the_same(here: Path, architecture: str) -> None:
    """But for rounding, of which optimizers make more."""
    alone = train_run(read_recipe(here / f"{architecture}.yaml"), here / "alone")
    together = metrics(here / "run")
    assert len(together) == len(alone.evaluations) == RUNGS[architecture]
    for line, evaluation in zip(together, alone.evaluations, strict=True):
        assert line["tokens"] == evaluation.tokens
        assert line["training_loss"] == pytest.approx(evaluation.training_loss, rel=1e-4)
        assert line["bits_per_byte"] == pytest.approx(evaluation.bits_per_byte, rel=1e-4)
    assert sorted(os.listdir(here / "run")) == sorted(os.listdir(here / "alone"))
    assert alone.test is not None
    result = json.loads((here / "run" / "result.json").read_text())
    assert result["test"]["bits_per_byte"] == pytest.approx(alone.test.bits_per_byte, rel=1e-4)


def test_two_processes_train_as_one(here: Path) -> None:
    begun = torchrun(here, "transformer.yaml", "-o", "run")
    output, error = begun.communicate()
    assert begun.returncode == 0, error
    assert output.count("100%") == output.count("Write with it") == 1
    assert_one_process_does_the_same(here, "transformer")
    assert load(here / "run").generate("Once", 5, temperature=0)
    assert "torchrun --nproc-per-node 2 --no-python tuner train config.yaml" in (here / "run" / "README.md").read_text()


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux has pipes of a chosen size")
def test_processes_that_are_asked_to_stop_agree_where_and_go_on(here: Path) -> None:
    """Carried state and all: the leader waits for a reader of its small pipe, and the other one for the leader."""
    begun = torchrun(here, "lstm.yaml", "-o", "run", "--micro-batch", "1", pipesize=4096)
    assert begun.stdout is not None
    assert begun.stderr is not None
    assert "bits per byte" in begun.stdout.readline()
    begun.send_signal(signal.SIGTERM)
    closing = (line for line in iter(begun.stderr.readline, "") if "closing signal SIGTERM" in line)
    assert len(list(islice(closing, 2))) == 2  # torchrun has told both
    output, error = begun.communicate()
    assert error.count("Saved; go on with the same command and --resume\n") == 1
    assert "100%" not in output
    assert sorted(os.listdir(here / "run")) == [
        "checkpoint.safetensors",
        "config.yaml",
        "metrics.jsonl",
        "tokenizer.json",
    ]
    output, error = torchrun(here, "lstm.yaml", "-o", "run", "--micro-batch", "1", "--resume").communicate()
    assert output.count("100%") == 1, error
    assert "checkpoint ignored" not in error
    assert_one_process_does_the_same(here, "lstm")


def test_a_batch_that_cannot_be_split_evenly_is_refused_once(here: Path) -> None:
    begun = torchrun(here, "uneven.yaml", "-o", "run")
    output, error = begun.communicate()
    assert (begun.returncode != 0, output) == (True, "")
    assert error.count("Error: batch_size: 5 cannot be split evenly over 2 processes; start a number that divides") == 1
    assert not (here / "run").exists()


def test_the_rows_of_a_batch_are_shared_out() -> None:
    assert [Team(rank, 3).rows(6) for rank in range(3)] == [slice(0, 2), slice(2, 4), slice(4, 6)]
    assert ALONE.rows(5) == slice(0, 5)
    with pytest.raises(ConfigError, match="batch_size: 4 cannot be split evenly over 3 processes"):
        Team(1, 3).rows(4)

"""python -m models as a process: what it prints, how it stops and goes on, and how it says what is wrong."""

import json
import os
import re
import signal
import subprocess
import sys
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from models.__main__ import main
from models.run import load, read_recipe, train_run

ROOT = Path(__file__).parents[2]
RECIPE = """
corpus: {path: rhyme.txt}
trial: {tokens: 5_120, rungs: 160}
threads: 1
parameters: {hidden_size: 8, sequence_length: 8, batch_size: 4, dropout: 0.1}
"""
"""160 steps with an evaluation after each: more lines than a small pipe holds."""


class Finished(NamedTuple):
    code: int
    output: str
    error: str


def process(here: Path, *arguments: str, **options: Any) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "models", *arguments]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True, "encoding": "utf-8"}
    return subprocess.Popen(command, cwd=here, env=os.environ | {"OMP_NUM_THREADS": "1"}, **pipes, **options)


def run(here: Path, *arguments: str) -> Finished:
    started = process(here, *arguments)
    output, error = started.communicate()
    return Finished(started.returncode, output, error)


def make(folder: Path, text: Path) -> Path:
    (folder / "rhyme.txt").write_bytes(text.read_bytes())
    (folder / "recipe.yaml").write_text(RECIPE, encoding="utf-8")
    return folder


@pytest.fixture
def here(rhyme_file: Path, tmp_path: Path) -> Path:
    """A working folder with a recipe and its text."""
    return make(tmp_path, rhyme_file)


@pytest.fixture(scope="module")
def undisturbed(rhyme_file: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The run of that recipe, trained in this process."""
    folder = make(tmp_path_factory.mktemp("undisturbed"), rhyme_file)
    train_run(read_recipe(folder / "recipe.yaml"), folder / "run")
    return folder / "run"


@pytest.fixture
def run_here(monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> Callable[..., Finished]:
    """Does the same as run, in this process."""

    def invoke(here: Path, *arguments: str) -> Finished:
        monkeypatch.chdir(here)
        monkeypatch.setattr(sys, "argv", ["models", *arguments])
        monkeypatch.setattr(sys, "path", list(sys.path))
        monkeypatch.setattr(warnings, "formatwarning", warnings.formatwarning)
        code = 0
        try:
            main()
        except SystemExit as error:
            code = int(error.code or 0)
        return Finished(code, *capfd.readouterr())

    return invoke


def refusal(finished: Finished) -> str:
    """The one line that says what is wrong."""
    assert (finished.code, finished.output) == (2, "")
    assert re.fullmatch(r"Error: .*\n", finished.error)
    return finished.error.removeprefix("Error: ")


def weights(folder: Path) -> bytes:
    return (folder / "model.safetensors").read_bytes()


def metrics(folder: Path) -> list[dict[str, Any]]:
    lines = (folder / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    return [json.loads(line) | {"seconds": 0} for line in lines]


def test_train_says_how_it_goes_and_generate_writes(here: Path) -> None:
    code, output, error = run(here, "train", "recipe.yaml", "-o", "run", "--tokens", "2560", "--seed", "3")
    assert (code, error) == (0, "")
    *progress, summary, advice = output.splitlines()
    assert len(progress) == 160
    assert re.match(r"  1% +32 tokens  \d\.\d{4} bits per byte  \d\.\d{4} nats per token +[\d,]+ tokens/s", progress[0])
    assert re.match(r"100% +2,560 tokens .* 0 s left$", progress[-1])
    assert re.match(r"\d\.\d{4} bits per byte \([\d,]+ tokens/s\) in run$", summary)
    assert advice == 'Write with it: python -m models generate run --prompt "The "'
    assert load(here / "run").recipe.parameters.seed == 3

    options = ("--prompt", "世界 on ", "--length", "50", "--seed", "1", "--top-k", "5", "--temperature", "1.7")
    text = load(here / "run").generate("世界 on ", 50, seed=1, top_k=5, temperature=1.7)
    assert run(here, "generate", "run", *options) == (0, f"世界 on {text}\n", "")


# Stopping.


def begin(here: Path) -> subprocess.Popen[str]:
    """Starts a training whose first evaluation is done, and which waits for somebody to read of the others."""
    begun = process(here, "train", "recipe.yaml", "-o", "run", pipesize=4096)
    assert begun.stdout is not None
    assert "bits per byte" in begun.stdout.readline()
    return begun


needs_a_small_pipe = pytest.mark.skipif(sys.platform != "linux", reason="only Linux has pipes of a chosen size")


@needs_a_small_pipe
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_run_that_is_asked_to_stop_saves_and_goes_on(
    number: signal.Signals, here: Path, undisturbed: Path, run_here: Callable[..., Finished]
) -> None:
    begun = begin(here)
    begun.send_signal(number)
    output, error = begun.communicate()
    assert begun.returncode == 130
    assert error == "Saved; go on with the same command and --resume\n"
    assert "100%" not in output
    assert sorted(os.listdir(here / "run")) == [
        "checkpoint.safetensors",
        "config.yaml",
        "metrics.jsonl",
        "tokenizer.json",
    ]
    assert 1 <= len(metrics(here / "run")) < 160

    go_on = run if number == signal.SIGTERM else run_here
    code, output, error = go_on(here, "train", "recipe.yaml", "-o", "run", "--resume")
    assert (code, error) == (0, "")
    assert "100%" in output
    assert weights(here / "run") == weights(undisturbed)
    assert metrics(here / "run") == metrics(undisturbed)


@needs_a_small_pipe
def test_a_run_that_is_killed_can_be_resumed_whatever_it_left(
    here: Path, undisturbed: Path, run_here: Callable[..., Finished]
) -> None:
    begun = begin(here)
    begun.kill()
    begun.communicate()
    in_the_way = refusal(run_here(here, "train", "recipe.yaml", "-o", "run"))
    assert in_the_way == "run: exists already; go on with --resume, or replace it with --force\n"
    unfinished = refusal(run_here(here, "generate", "run"))
    assert unfinished == "run: no complete run, model.safetensors missing; finish it with `train --resume`\n"
    (here / "run" / "checkpoint.safetensors").write_bytes(b"half of one")
    code, _, error = run(here, "train", "recipe.yaml", "-o", "run", "--resume")
    assert code == 0
    assert re.fullmatch(r"Warning: checkpoint ignored: run/checkpoint\.safetensors: .*\n", error)
    assert weights(here / "run") == weights(undisturbed)
    assert run_here(here, "train", "recipe.yaml", "-o", "run", "--force").code == 0
    assert weights(here / "run") == weights(undisturbed)


def test_a_reader_that_goes_away_ends_the_writing_quietly(undisturbed: Path) -> None:
    writing = process(undisturbed.parent, "generate", "run", "--length", "100000")
    assert writing.stdout is not None
    writing.stdout.close()
    writing.stdout = None
    _, error = writing.communicate()
    assert (writing.returncode, error) == (1, "")


# Mistakes.


@pytest.fixture
def recipes(here: Path) -> Path:
    """The working folder with recipes that are wrong, each in its way."""
    (here / "broken.yaml").write_text("corpus: {path: rhyme.txt}\ntrial: [\n", encoding="utf-8")
    for name, good, wrong in [
        ("misspelt", "dropout", "dropuot"),
        ("large", "batch_size: 4", "batch_size: 4000"),
        ("elsewhere", "rhyme.txt", "nowhere.txt"),
        ("own", "dropout: 0.1", "architecture: 'nowhere:Own'"),
    ]:
        (here / f"{name}.yaml").write_text(RECIPE.replace(good, wrong), encoding="utf-8")
    return here


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["nowhere.yaml"], "nowhere.yaml: no such file"),
        (["broken.yaml"], "broken.yaml:3: not valid YAML"),
        (["recipe.yaml", "--device", "abacus"], "device abacus: no such kind; use cpu"),
    ],
)
def test_a_mistake_is_one_line_of_a_process(arguments: list[str], message: str, recipes: Path) -> None:
    before = sorted(os.listdir(recipes))
    assert message in refusal(run(recipes, "train", *arguments, "-o", "run"))
    assert sorted(os.listdir(recipes)) == before


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["misspelt.yaml"], "misspelt.yaml:5: parameters.dropuot: unknown key; did you mean dropout?"),
        (["large.yaml"], "batch_size 4000"),
        (["elsewhere.yaml"], "nowhere.txt: No such file or directory"),
        (["own.yaml"], "architecture nowhere:Own: No module named 'nowhere'"),
        (["recipe.yaml", "--device", "cuda:99"], "device cuda:99: this machine has"),
        (["recipe.yaml", "--seconds", "nan"], "--seconds: Input should be a finite number"),
        (["recipe.yaml", "--seed", str(2**63)], "--seed: Input should be less than"),
    ],
)
def test_a_mistake_leaves_nothing_behind(
    arguments: list[str], message: str, recipes: Path, run_here: Callable[..., Finished]
) -> None:
    before = sorted(os.listdir(recipes))
    assert message in refusal(run_here(recipes, "train", *arguments, "-o", "run"))
    assert sorted(os.listdir(recipes)) == before


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["train", "recipe.yaml"], "Missing option '-o'"),
        (["train", "recipe.yaml", "-o", "run", "--tokens", "0"], "'--tokens': 0 is not in the range x>=1"),
        (["train", "recipe.yaml", "-o", "run", "--tokens", "5", "--seconds", "5"], "either --tokens or --seconds"),
        (["generate", "run", "--length", "0"], "'--length': 0 is not in the range x>=1"),
        (["generate", "run", "--seed", "-1"], "'--seed': -1 is not in the range"),
        (["generate", "run", "--prompt", os.fsdecode(b"\xff")], "'--prompt': is not UTF-8 text"),
        (["translate"], "No such command 'translate'"),
    ],
)
def test_wrong_options_are_refused_with_the_usage(
    arguments: list[str], message: str, here: Path, run_here: Callable[..., Finished]
) -> None:
    code, output, error = run_here(here, *arguments)
    assert (code, output) == (2, "")
    assert error.startswith("Usage: ")
    assert message in error
    assert not (here / "run").exists()


@pytest.mark.parametrize(
    ("option", "value", "message"),
    [
        ("--temperature", "-1", "greater than or equal to 0"),
        ("--temperature", "nan", "a finite number"),
        ("--top-k", "0", "greater than or equal to 1"),
        ("--top-p", "1.5", "less than or equal to 1"),
    ],
)
def test_decoding_out_of_range_names_its_option(
    option: str, value: str, message: str, undisturbed: Path, run_here: Callable[..., Finished]
) -> None:
    finished = run_here(undisturbed.parent, "generate", "run", option, value)
    assert refusal(finished) == f"{option}: Input should be {message}\n"


def test_a_folder_that_is_not_there_has_nothing_to_write_with(here: Path, run_here: Callable[..., Finished]) -> None:
    assert "nowhere: no such run folder" in refusal(run_here(here, "generate", "nowhere"))


def test_seconds_are_a_budget_too(here: Path, run_here: Callable[..., Finished]) -> None:
    assert run_here(here, "train", "recipe.yaml", "-o", "run", "--seconds", "0.01", "--threads", "1").code == 0
    assert load(here / "run").recipe.trial.seconds == 0.01


def test_help_comes_at_once() -> None:
    """Without what takes a second to import."""
    program = "import sys; from models.__main__ import commands; print(*sorted(sys.modules))"
    loaded = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True).stdout.split()
    assert not {"torch", "numpy", "pydantic"} & set(loaded)


# The documents.


def blocks(language: str) -> list[str]:
    """The fenced blocks of docs/own-generator.md."""
    text = (ROOT / "docs" / "own-generator.md").read_text(encoding="utf-8")
    return re.findall(rf"^```{language}\n(.*?)^```$", text, re.DOTALL | re.MULTILINE)


def test_the_generator_in_the_documents_works_as_they_say(here: Path) -> None:
    (program,) = blocks("python")
    (here / "neighbours.py").write_text(program, encoding="utf-8")
    (here / "recipe.yaml").write_text(blocks("yaml")[0], encoding="utf-8")
    (shell,) = blocks("sh")
    train, generate = (line.removeprefix("python -m models ").split() for line in shell.splitlines())
    trained, written = run(here, *train), run(here, *generate)
    assert (trained.code, trained.error, written.code, written.error) == (0, "", 0, "")
    assert float(trained.output.splitlines()[-2].split()[0]) < 2.8  # bits per byte; who looks back once gets 3.4
    assert len(written.output) > 50

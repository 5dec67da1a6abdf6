"""The three journeys of a user, with the real command: tune, watch, export and train; each as the README has it."""

import json
import re
import shlex
import signal
import socket
import sys
import urllib.request
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
from optuna.trial import TrialState

from models.reader import parse, plain
from models.runs.run import load
from tuner.artifacts.layout import RUN
from tuner.study.definition import read_study
from tuner.watch.notes import shown as as_shown

STUDY = """\
name: small
corpus: {builtin: markov}
threads: 1
trial: {tokens: 20_000, rungs: 3}
budget: {trials: 6}
decoding: {share: 2.0}
parameters:
  architecture: {type: categorical, choices: [rnn, gru, transformer]}
  learning_rate: {type: float, low: 1e-3, high: 1e-1, log: true}
  temperature: {type: float, low: 0.5, high: 1.2}
  dropout: 0.1
  hidden_size: 16
  batch_size: 8
  sequence_length: 32
"""
TRAP = "raise SystemExit('this file of the user was taken for one of ours')\n"


class Journey:
    """A study that was run by two workers, in a folder that holds files of unlucky names."""

    def __init__(self, place: Any) -> None:
        self.place = place
        place.write("small.yaml", STUDY)
        for name in ("models.py", "optuna.py", "tuner.py", "torch.py"):
            place.write(name, TRAP)
        self.done = place.run("run", "small.yaml", "-n", 2)
        self.was_quiet = place.is_quiet()
        self.trials = place.trials("small")
        self.best = min((t for t in self.trials if t.state == TrialState.COMPLETE), key=lambda trial: trial.value)

    def file(self, path: str) -> Any:
        return plain(parse((self.place.home / path).read_text(), path))


@pytest.fixture(scope="module")
def journey(module_place: Any) -> Journey:
    return Journey(module_place)


@pytest.fixture(scope="module")
def module_place(new_place: Any) -> Iterator[Any]:
    with new_place("journey") as place:
        yield place


@pytest.fixture
def attached(journey: Journey) -> Iterator[None]:
    """The database runs all the time, and so need not be started and stopped for each command."""
    with journey.place.opened():
        yield


def test_a_study_is_run_to_its_exact_budget_and_nothing_stays_behind(journey: Journey) -> None:
    assert journey.done.code == 0, journey.done
    assert [trial.number for trial in journey.trials] == list(range(6))
    assert all(trial.state in (TrialState.COMPLETE, TrialState.PRUNED) for trial in journey.trials)
    assert journey.was_quiet


def test_a_run_shows_its_trials_its_board_a_sample_and_what_is_next(journey: Journey) -> None:
    said = journey.done.said
    assert said.startswith("study small: 2 workers on cpu\n")
    assert len(re.findall(r"^trial   \d  (?:complete|pruned)  ", said, re.MULTILINE)) == 6
    assert "\nDone: all 6 trials are finished. " in said
    board = re.findall(r"^ +(\d)  +(\d\.\d{4})  +-?\d\.\d{4}  +([\d,]+)  +([\d,]+)  architecture=", said, re.MULTILINE)
    assert board[0][:2] == (str(journey.best.number), f"{journey.best.value:.4f}")
    assert re.search(r"^    The [a-l]{50}", said, re.MULTILINE)
    assert "Traceback" not in said
    assert "Warning" not in said


def test_a_run_leaves_its_best_configuration_and_model(journey: Journey) -> None:
    best = journey.file("best.yaml")
    assert best["provenance"]["trial"] == journey.best.number
    assert best["provenance"]["value"] == journey.best.value
    assert best["parameters"] == journey.best.user_attrs["configuration"]
    run = journey.place.home / "runs" / "small"
    names = {path.name for path in run.iterdir()}
    assert names == {*RUN, "decoding.svg"}
    assert journey.file("runs/small/config.yaml")["parameters"] == best["parameters"]
    assert last_score(run) == journey.best.value
    assert not list((journey.place.artifacts / "small" / "checkpoints").glob("*"))


def last_score(run: Path) -> float:
    return float(json.loads((run / "metrics.jsonl").read_text().splitlines()[-1])["bits_per_byte"])


@pytest.mark.parametrize("command", ["tuner train", "python -m models train"])
def test_the_best_configuration_trains_to_the_very_value_it_promised(journey: Journey, command: str) -> None:
    place, folder = journey.place, command.split()[0]
    if command == "tuner train":
        done = place.run("train", "best.yaml", "-o", folder)
    else:  # from a folder without files of unlucky names
        arguments = (place.home / "best.yaml", "-o", place.home / folder)
        done = place.run(*arguments, command=(sys.executable, "-m", "models", "train"), cwd=place.folder)
    assert done.code == 0, done
    assert f"{journey.best.value:.4f} bits per byte" in done.said.splitlines()[-2]
    assert f"To the last bit the value of trial {journey.best.number} of study small\n" in done.said
    assert last_score(place.home / folder) == journey.best.value
    weights = [(place.home / run / "model.safetensors").read_bytes() for run in (folder, "runs/small")]
    assert weights[0] == weights[1]


def test_the_commands_that_are_shown_work(journey: Journey) -> None:
    shown = [shlex.split(line)[1:] for line in journey.done.said.splitlines() if line.startswith("  tuner ")]
    assert [command[0] for command in shown] == ["dashboard", "train", "generate"]
    shown[1][shown[1].index("--tokens") + 1] = "2000"
    trained = journey.place.run(*shown[1])
    assert trained.code == 0, trained
    follow = shlex.split(trained.said.splitlines()[-1].removeprefix("Write with it: tuner "))
    for command in (shown[2], follow):
        written = journey.place.run(*command, "--length", 40, "--temperature", 0)
        assert written.code == 0, written
        assert re.match(r"The [a-l]{10}", written.said), written


@pytest.mark.usefixtures("attached")
def test_any_kept_trial_can_be_written_with(journey: Journey) -> None:
    place = journey.place
    best = load(journey.place.home / "runs" / "small", "cpu")
    said = place.run("sample", "small", "--length", 50, "--seed", 1, "--temperature", 0.5)
    assert (said.code, said.said) == (0, best.generate("", 50, seed=1, temperature=0.5) + "\n")
    number = ("--trial", journey.best.number)
    beams = place.run("sample", "small", *number, "--length", 20, "--beams", 3, "--prompt", "ab")
    assert beams.said == "ab" + best.beam_search("ab", 20, beams=3) + "\n"
    refused = place.run("sample", "small", "--trial", 99)
    assert (refused.code, "has no trial 99; it has 0 to " in refused.said) == (2, True)


@pytest.mark.usefixtures("attached")
def test_status_and_export_after_a_run(journey: Journey) -> None:
    place = journey.place
    assert f"{journey.best.value:.4f}" in place.run("status").said
    shown = place.run("status", "small").said
    assert f"best: {journey.best.value:.4f} bits per byte, trial {journey.best.number}" in shown
    assert place.run("export", "small").code == 0  # what is there is an export of the same study
    done = place.run("export", "small", "-o", "mine/best.yaml", "--weights", "mine/run")
    assert done.code == 0, done
    assert journey.file("mine/best.yaml") == journey.file("best.yaml")
    assert last_score(place.home / "mine" / "run") == journey.best.value


def test_an_export_is_a_study_file(journey: Journey) -> None:
    study = read_study(journey.place.home / "best.yaml")
    assert (study.trials, study.space.searched) == (1, {})


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_the_dashboard_shows_the_study_until_it_is_ended(journey: Journey, number: signal.Signals) -> None:
    place = journey.place
    with closing(socket.create_server(("127.0.0.1", 0))) as free:
        port = free.getsockname()[1]
    dashboard = place.start("dashboard", "small", "--port", port)
    pattern = rf"Dashboard: (http://127.0.0.1:{port}/dashboard/studies/\d+) "
    address = dashboard.until(lambda: re.search(pattern, dashboard.said))
    with closing(socket.create_connection(("127.0.0.1", port))):  # a browser opens connections before it needs them
        assert get(address[1])[0] == get(f"http://127.0.0.1:{port}/dashboard")[0] == 200
        code, studies = get(f"http://127.0.0.1:{port}/api/studies")
        assert code == 200
        (study,) = json.loads(studies)["study_summaries"]
        assert study["study_name"] == "small"
        details = f"http://127.0.0.1:{port}/api/studies/{study['study_id']}?after=0"
        trials = json.loads(get(details)[1])["trials"]
        assert len(trials) == 6
        best = trials[journey.best.number]
        (samples,) = best["artifacts"]
        place_of_it = f"{study['study_id']}/{best['trial_id']}/{samples['artifact_id']}"
        lines = get(f"http://127.0.0.1:{port}/artifacts/{place_of_it}")[1].decode().splitlines()
        assert [set(json.loads(line)) for line in lines] == [{"prompt", "text"}] * 3
        assert as_shown(json.loads(lines[0])["text"]) in best["note"]["body"]

        def drawn() -> dict[str, str]:
            figures = json.loads(get(details)[1])["plotly_graph_objects"]
            return {figure["id"]: figure["graph_object"] for figure in figures}

        dashboard.until(lambda: {"learning-curves", "quality-and-diversity"} <= drawn().keys())  # one after another
        assert "people" in drawn()["quality-and-diversity"]
    dashboard.process.send_signal(number)
    assert dashboard.end() == 130
    assert place.is_quiet()


def get(address: str) -> tuple[int, bytes]:
    with urllib.request.urlopen(address, timeout=30) as answer:
        return answer.status, answer.read()


@pytest.mark.usefixtures("attached")
def test_a_confirmation_that_is_interrupted_goes_on_with_the_same_command(journey: Journey) -> None:
    place = journey.place
    top = min(2, [trial.state for trial in journey.trials].count(TrialState.COMPLETE))
    command = ("confirm", "small", "--top", top, "--seeds", 2, "-n", 1)
    begun = place.start(*command)
    begun.until(lambda: place.workers("small (confirmation)"))
    begun.interrupt()
    assert begun.end() == 130, begun.said
    assert f"Go on with the same command: tuner confirm small --top {top} --seeds 2 -n 1\n" in begun.said
    done = place.run(*command)
    assert done.code == 0, done
    trainings = place.trials("small (confirmation)")
    assert len(trainings) == 2 * top
    assert {training.state for training in trainings} == {TrialState.COMPLETE}
    found = done.said[done.said.index("Confirmed with 2 fresh seeds each") :]
    assert re.search(r"^Test split, read once: \d\.\d{4} bits per byte, the mean of 2 seeds\.$", found, re.MULTILINE)
    assert place.trials("small") == journey.trials


def test_a_study_that_comes_with_the_tuner_is_found_from_any_folder(journey: Journey, place: Any) -> None:
    running = place.start("run", "quickstart", "-n", 1, "--threads", 1)
    running.until(lambda: running.said.startswith("study quickstart: 1 worker on "))
    running.interrupt()
    assert running.end() == 130
    assert "Go on with the same command: tuner run quickstart -n 1 --threads 1\n" in running.said
    assert place.is_quiet()

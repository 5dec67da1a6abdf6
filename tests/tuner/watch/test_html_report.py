"""The report: true numbers, one file that reaches nothing, safe whatever names and models say, for any study."""

from __future__ import annotations

import itertools
import json
import re
from collections.abc import Callable, Sequence
from dataclasses import asdict
from html import unescape
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import optuna
import pytest
from click.testing import CliRunner, Result
from optuna.artifacts import ArtifactMeta
from optuna.storages import RDBStorage
from optuna.trial import TrialState, create_trial

from models.config import Config
from models.errors import RunError
from tuner import cli
from tuner.artifacts.layout import SAMPLES_FILE
from tuner.artifacts.store import Artifacts
from tuner.errors import StudyError
from tuner.results import analysis
from tuner.storage.handle import StudyHandle
from tuner.storage.leases import Leases
from tuner.study.definition import Study
from tuner.watch.html_report import report

COMPLETE, PRUNED, FAIL, RUNNING = TrialState.COMPLETE, TrialState.PRUNED, TrialState.FAIL, TrialState.RUNNING
Small = Callable[..., Study]
NUMBERS = itertools.count()
ATTACK = '</script><script>window.hacked=1</script><img src="https://evil.example/x" onerror="window.hacked=1">'
PARAMETERS: dict[str, Any] = {
    "learning_rate": {"type": "float", "low": 1e-3, "high": 1e-1, "log": True},
    "architecture": {"type": "categorical", "choices": ["rnn", "gru"]},
    "hidden_size": {"type": "int", "low": 8, "high": 64, "log": True},
    "batch_size": 8,
    "sequence_length": 16,
}
FACTS: dict[str, Any] = {
    "tokens_per_second": 1000,
    "training_seconds": 4.1,
    "parameter_count": 12345,
    "threads": 1,
    "device": "cpu",
    "machine": "Linux x86_64, a processor",
    "precision": "float32",
    "versions": {"python": "3.11", "torch": "2.12"},
    "tokenizer_fingerprint": "sha256:34",
}


class Desk:
    """A study in the database, to which trials are added as a search leaves them, and its report."""

    def __init__(self, storage: RDBStorage, study: Study, folder: Path) -> None:
        self.storage, self.study, self.kept = storage, study, Artifacts(folder / study.name)
        directions = ["minimize"] * len(study.objectives)
        self.found = optuna.create_study(study_name=study.name, storage=storage, directions=directions)  # type: ignore[arg-type]
        self.found.set_user_attr("study", study.stored())
        self.found.set_user_attr("fingerprint", "sha256:12")
        Leases(storage, self.found._study_id).open()

    def add(
        self,
        state: TrialState,
        *rungs: float,
        excess: float = 0.0,
        facts: dict[str, Any] | None = None,
        samples: Sequence[dict[str, str]] = (),
    ) -> int:
        number = len(self.found.get_trials(deepcopy=False))
        space = self.study.space.searched
        architectures = space["architecture"].values()
        values = {
            "learning_rate": 10 ** (-3 + 2 * (number * 0.618034 % 1)),
            "architecture": architectures[number % len(architectures)],
            "hidden_size": 8 + number % 57,
        }
        configuration = Config().model_dump(mode="json") | values
        second = [0.1 / (number + 1)] if len(self.study.objectives) > 1 else []
        self.found.add_trial(
            create_trial(
                state=state,
                values=[rungs[-1], *second] if state == COMPLETE else None,
                params=values,
                distributions={name: space[name].distribution() for name in values},
                intermediate_values=dict(enumerate(rungs, start=1)),
                user_attrs={"configuration": configuration} | (FACTS if facts is None else facts),
                system_attrs=({"constraints:memory": excess} if excess else {})
                | (self._attached(samples) if samples else {}),
            )
        )
        return number

    def search(self, count: int = 12) -> None:
        """As many trials to the end, as many pruned at the first rung, and one of each that went wrong."""
        for number in range(count):
            self.add(COMPLETE, 4.0, 3.0, 2.0 + number / 100)
            self.add(PRUNED, 4.5)
        self.add(PRUNED, facts={"reason": "does not fit: memory 9 MiB of at most 8 MiB"}, excess=0.125)
        self.add(PRUNED, facts={"reason": "diverged: the training loss is no longer finite"})
        self.add(
            FAIL, facts={"reason": "ValueError: too odd", "crashes": 3, "traceback": "Traceback\n  ValueError: too odd"}
        )

    def _attached(self, samples: Sequence[dict[str, str]]) -> dict[str, str]:
        """Keeps texts as a worker does, and returns the attribute that says where."""
        name = self.kept.attach("".join(json.dumps(one) + "\n" for one in samples).encode())
        meta = ArtifactMeta(name, SAMPLES_FILE, "application/jsonl", None)
        return {f"artifacts:{name}": json.dumps(asdict(meta))}

    def html(self) -> str:
        found = optuna.load_study(study_name=self.study.name, storage=self.storage)
        return report(StudyHandle(self.storage, found, self.study), self.kept)

    def text(self) -> str:
        """What a reader sees, figures apart."""
        body = re.sub(r"<(script|style)\b.*?</\1>", "", self.html(), flags=re.DOTALL)
        return " ".join(unescape(re.sub(r"<[^>]+>", " ", body)).split())


@pytest.fixture
def desk(storage: RDBStorage, small: Small, tmp_path: Path) -> Callable[..., Desk]:
    """Makes desks; `changes` are made to the study that no file could hold, because its reader refuses them."""

    def make(changes: dict[str, Any] | None = None, **sections: Any) -> Desk:
        study = small(**({"parameters": PARAMETERS} | sections)).model_copy(update=changes or {})
        return Desk(storage, study, tmp_path / "artifacts")

    return make


# What it says.


def test_it_says_what_was_found_and_that_nobody_confirmed_it(desk: Callable[..., Desk]) -> None:
    made = desk(trials=27)
    made.search()
    text = made.text()
    assert "Among 26 configurations tried on" in text
    assert "trial 0 ( rnn ) is the one to take: it came to 2.0000 bits per byte" in text
    assert "not confirmed" in text
    assert f"tuner export {made.study.name} -o best.yaml tuner train best.yaml -o my-run --device cpu" in text
    assert "26 /27 12 to the end, 13 stopped early, 1 did not fit, 1 failed" in text
    assert "best 10 of 12 trials" in text
    assert "12,345 parameters, trained at 1,000 tokens per second in 4.1 s" in text
    assert "sha256:12" in text
    assert "python 3.11, torch 2.12" in text


def test_a_confirmation_is_shown_until_better_trials_are_found(desk: Callable[..., Desk]) -> None:
    made = desk()
    for value in (2.0, 2.1, 2.5):
        made.add(COMPLETE, 4.0, 3.0, value)
    candidates = [
        {"trial": 1, "reported": 2.1, "mean": 2.05, "low": 2.01, "high": 2.09, "seeds": [1, 2], "values": [2.04, 2.06]},
        {"trial": 0, "reported": 2.0, "mean": 2.2, "low": 2.16, "high": 2.24, "seeds": [1, 2], "values": [2.2, 2.2]},
    ]
    result = {
        "seeds": 2,
        "candidates": [one | {"parameter_count": 12345, "tokens_per_second": 1} for one in candidates],
        "dropped": [],
        "interval": "95%, Student's t",
        "winner": 1,
        "within_seed_noise": [],
        "chosen": "the lowest mean, by more than seed noise",
        "test": {"mean": 1.9, "values": [1.9, 1.9]},
    }
    made.found.set_user_attr("confirmation", result)
    text = made.text()
    assert "trial 1 ( gru ) is the one to take: trained again with 2 fresh seeds it came to 2.0500 bits" in text
    assert (
        "between 2.0100 and 2.0900 with 95\xa0% confidence, and to 1.9000 on the test split".replace("\xa0", " ")
        in text
    )
    assert "Trial 1 is chosen: the lowest mean, by more than seed noise." in text
    made.add(COMPLETE, 4.0, 3.0, 1.5)
    text = made.text()
    assert "trial 3 ( gru ) is the one to take: it came to 1.5000" in text
    assert "not confirmed : the confirmation there is was of other trials" in text


def test_what_pruning_saved_counts_only_what_the_pruner_ended(desk: Callable[..., Desk]) -> None:
    made = desk(trial={"tokens": 3000, "rungs": 3})
    made.search(2)
    trials = made.found.get_trials(deepcopy=False)
    saved = analysis.savings(made.study, trials)
    assert (saved.pruned, saved.spent, saved.saved, saved.unit) == (2, 2 * 3000 + 2 * 1000, 2 * 2000, "tokens")
    assert saved.seconds == pytest.approx(4.0)  # at 1000 tokens per second
    assert saved.share == pytest.approx(1 / 3)
    assert "The pruner ended 2 of 4 trials early." in made.text()
    made.add(PRUNED, 4.0, facts={})  # an older worker, which did not write down its speed
    assert analysis.savings(made.study, made.found.get_trials(deepcopy=False)).seconds is None


def test_importance_is_shown_from_ten_trials_on(desk: Callable[..., Desk]) -> None:
    made = desk()
    for number in range(9):
        made.add(COMPLETE, 5.0 - number / 10, 3.0, 2.0 + number / 10)
    few = analysis.importance(made.study, made.found.get_trials(deepcopy=False))
    assert few.shares == {}
    assert "there are 9, and fewer than 10 say nothing" in few.missing[0]
    made.add(PRUNED, 4.5)
    enough = analysis.importance(made.study, made.found.get_trials(deepcopy=False))
    assert list(enough.shares) == ["of all trials, at rung 1"]
    assert sum(enough.shares["of all trials, at rung 1"].values()) == pytest.approx(1)
    assert len(enough.missing) == 1
    equal = desk()
    for _ in range(10):
        equal.add(COMPLETE, 2.0)
    nothing = analysis.importance(equal.study, equal.found.get_trials(deepcopy=False))
    assert nothing.shares == {}
    assert "all are equally good" in nothing.missing[0]


def test_choices_that_were_hardly_tried_are_named(desk: Callable[..., Desk]) -> None:
    made = desk(parameters=PARAMETERS | {"batch_size": {"type": "categorical", "choices": [8, 16]}})  # no trial has it
    for number in range(9):
        made.add(COMPLETE, 5.0 - number / 10, 3.0, 2.0 + number / 10)
    assert "9 trials trained to the end, and fewer than 10 say nothing" in made.text()
    made.add(COMPLETE, 4.0, 3.0, 2.5)
    rare = "batch_size 8 (0 trials), batch_size 16 (0 trials)"
    assert f"Hardly tried, so little is known of it: {rare}." in made.text()


def test_what_went_wrong_is_listed_by_reason(desk: Callable[..., Desk]) -> None:
    made = desk()
    made.search(1)
    for _ in range(25):
        made.add(FAIL, facts={"reason": "KeyError: 'x'"})
    text = made.text()
    assert "KeyError : 25 trials" in text
    assert "and 17 more" in text
    assert "does not fit : 1 trial trial 2: does not fit: memory 9 MiB of at most 8 MiB" in text
    assert "What the last one's code said Traceback ValueError: too odd" in text
    assert "1 trial trial 3: diverged" in text


def test_a_value_at_the_end_of_its_range_is_pointed_out(desk: Callable[..., Desk]) -> None:
    made = desk()
    made.add(COMPLETE, 4.0, 3.0, 2.0)  # learning_rate and hidden_size are the lowest
    assert made.text().count("at its low end: a wider range may hold better") == 2


def test_the_texts_of_the_best_trials_are_shown_or_why_not(desk: Callable[..., Desk]) -> None:
    made = desk()
    written: list[list[dict[str, str]]] = [[{"prompt": "To be", "text": " or not"}], [], [{"wrong": "keys"}], []]
    for number, samples in enumerate(written):
        made.add(COMPLETE, 4.0, 3.0, 2.0 + number / 10, samples=samples)
    folder = made.kept.run_folder(1)
    folder.mkdir(parents=True)
    (folder / SAMPLES_FILE).write_text('{"prompt": "A", "text": "\\ud800 half"}\n')
    text = made.text()
    assert "To be or not" in text
    assert "A ? half" in text
    assert "No texts: their file is damaged." in text
    assert "Trial 3:" not in text
    (folder / SAMPLES_FILE).unlink()
    assert "No texts: they are not where the artifacts are looked for" in made.text()


# Any study.


@pytest.mark.parametrize(
    "sections",
    [
        {},
        {"objective": ["bits_per_byte", "text_divergence"]},
        {"trial": {"seconds": 10, "rungs": 3}},
        {"budget": {"hours": 1}},
    ],
    ids=["one objective", "two objectives", "seconds", "hours"],
)
def test_every_kind_of_study_has_a_report_at_any_time(desk: Callable[..., Desk], sections: dict[str, Any]) -> None:
    made = desk(**sections)
    made.add(FAIL, facts={})
    made.add(PRUNED, facts={}, excess=1.0)
    made.add(RUNNING, 4.0, facts={})
    made.add(COMPLETE, 1.0, excess=1.0)
    text = made.text()
    assert "none has been trained to its end within the limits" in text
    assert "no reason was written down : 3 trials" in text
    assert "The study was then idle . No worker is there; start some: tuner work" in text
    made.add(COMPLETE, 4.0, 3.0, 2.5, facts={})  # an older worker, which wrote nothing down
    made.search(10)
    text = made.text()
    assert "is the one to take: it came to 2.0000" in text
    assert ("Pareto front" in text) == ("objective" in sections)


def test_a_study_that_has_just_begun_has_a_report(desk: Callable[..., Desk]) -> None:
    assert "Nothing yet: of 0 trials" in desk().text()


def test_a_report_without_a_place_of_artifacts_says_so(desk: Callable[..., Desk]) -> None:
    made = desk()
    made.add(COMPLETE, 2.0)
    made.kept = None  # type: ignore[assignment]
    assert "No texts: the place of the artifacts cannot be reached." in made.text()


# One file that reaches nothing, and obeys nobody.


class Page(HTMLParser):
    """The tags of a page, and all that its attributes say."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.attributes: list[tuple[str, str]] = []
        self.feed(html)

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.attributes += [(name, value or "") for name, value in attributes]


@pytest.fixture
def hostile(desk: Callable[..., Desk]) -> Desk:
    """A study all of whose names and texts are attacks."""
    architecture = {"type": "categorical", "choices": [ATTACK, "rnn"]}
    name = f"{next(NUMBERS)}{ATTACK}".replace("/", "\u2215")[:120]
    made = desk({"parameters": PARAMETERS | {"architecture": architecture}}, name=name, corpus={"path": ATTACK})
    facts = FACTS | {"machine": ATTACK, "versions": {ATTACK: ATTACK}}
    samples = [{"prompt": ATTACK, "text": f"{ATTACK}\u202e\x00\x1b[31m"}]
    for number in range(12):
        made.add(COMPLETE, 4.0, 3.0, 2.0 + number / 100, facts=facts, samples=samples)
    made.add(FAIL, facts={"reason": f"{ATTACK}: {ATTACK}", "traceback": ATTACK})
    return made


def test_nothing_in_it_is_taken_for_markup_and_no_address_is_in_it(hostile: Desk) -> None:
    page = Page(hostile.html())
    assert page.tags.count("script") == 3
    assert "img" not in page.tags
    assert not [name for name, _ in page.attributes if name.startswith("on") or name in ("src", "srcset", "action")]
    assert all(value.startswith("#") for name, value in page.attributes if name == "href")
    policy = next(value for name, value in page.attributes if name == "content" and "default-src" in value)
    assert "default-src 'none'" in policy
    assert "unsafe-eval" not in policy
    assert ATTACK in hostile.text() or " ".join(ATTACK.split()) in hostile.text()


def test_a_browser_draws_every_figure_reaches_nothing_and_runs_nothing_else(
    hostile: Desk, browser: Any, tmp_path: Path
) -> None:
    path = tmp_path / "report.html"
    path.write_text(hostile.html(), encoding="utf-8")
    said: list[str] = []
    asked: list[str] = []
    page = browser.new_page(viewport={"width": 390, "height": 800})
    page.on("console", lambda message: said.append(message.text))
    page.on("pageerror", lambda error: said.append(str(error)))
    page.on("request", lambda request: asked.append(request.url))
    page.goto(path.as_uri())
    page.wait_for_selector("html[data-drawn]", state="attached")
    wanted = page.locator("[data-figure]").count()
    assert wanted >= 9
    assert page.locator("[data-figure]:has(.scatterlayer .trace, .barlayer .trace)").count() == wanted
    assert page.locator("[data-figure='slice-architecture'] .xtick text").first.text_content() == ATTACK
    assert page.locator(".sample .prompt").first.text_content() == ATTACK
    assert page.evaluate("document.documentElement.scrollWidth") == 390  # nothing sticks out on a phone
    page.pdf()  # printing draws all anew, and leaves the page as it was
    assert page.evaluate("window.hacked") is None
    assert said == []
    assert asked == [path.as_uri()]
    page.close()


# The command.


@pytest.fixture
def command(data_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Result]:
    monkeypatch.chdir(tmp_path)
    places = ["--data-folder", str(data_folder), "--artifacts", str(tmp_path / "artifacts")]
    return lambda *arguments: CliRunner().invoke(cli.commands, ["report", *map(str, arguments), *places])


def test_the_command_writes_a_file_and_replaces_only_a_report_of_the_same_study(
    desk: Callable[..., Desk], command: Callable[..., Result], tmp_path: Path
) -> None:
    made, other = desk(), desk()
    path = tmp_path / "deep" / "a.html"
    said = command(made.study.name, "-o", path)
    assert said.exit_code == 0
    assert said.output.startswith(f"{path}: report of study {made.study.name}, ")
    made.search(1)
    assert command(made.study.name, "-o", path).exit_code == 0
    assert "is the one to take" in path.read_text()
    before = path.read_bytes()
    refused = command(other.study.name, "-o", path)
    assert isinstance(refused.exception, RunError)
    assert "exists already" in str(refused.exception)
    assert path.read_bytes() == before
    assert command(other.study.name, "-o", path, "--force").exit_code == 0
    assert "Nothing yet" in path.read_text()
    assert [one.name for one in path.parent.iterdir()] == ["a.html"]


def test_the_command_refuses_what_is_no_study_and_no_place(
    desk: Callable[..., Desk], command: Callable[..., Result], storage: RDBStorage, tmp_path: Path
) -> None:
    optuna.create_study(study_name="somebody else's", storage=storage)
    for name, words in (("unknown", "no study 'unknown'"), ("somebody else's", "was not made by the tuner")):
        refused = command(name)
        assert isinstance(refused.exception, StudyError)
        assert words in str(refused.exception)
    made = desk()
    (tmp_path / "file").write_text("")
    for output, words in (("file/report.html", "not a folder"), (".", "is a folder"), ("file", "exists already")):
        refused = command(made.study.name, "-o", output)
        assert isinstance(refused.exception, RunError)
        assert words in str(refused.exception)
    assert not (tmp_path / "report.html").exists()


def test_a_place_of_artifacts_that_cannot_be_used_costs_only_the_texts(
    desk: Callable[..., Desk], command: Callable[..., Result], data_folder: Path, tmp_path: Path
) -> None:
    made = desk()
    made.search(1)
    (tmp_path / "file").write_text("")
    places = ["--data-folder", str(data_folder), "--artifacts", str(tmp_path / "file" / "x")]
    said = CliRunner().invoke(cli.commands, ["report", made.study.name, *places])
    assert said.exit_code == 0
    assert "Without the models' texts" in said.stderr
    assert "cannot be reached" in (tmp_path / "report.html").read_text()

"""What people read about a study: its board, its lines, its progress; made from trials in every state."""

from collections.abc import Callable
from io import StringIO
from typing import Any

import optuna
import pytest
from optuna.storages import RDBStorage
from optuna.trial import FrozenTrial, TrialState, create_trial
from rich.console import Console
from rich.text import Text

from models.wording import duration
from tests.tuner.conftest import WRITTEN, complete
from tuner.errors import StudyError
from tuner.results import summary
from tuner.results.summary import Row, Snapshot
from tuner.storage.blocking import Blockage
from tuner.storage.handle import StudyHandle
from tuner.storage.leases import Counts, Worker
from tuner.study.definition import Study
from tuner.watch import plots, tables
from tuner.watch.live import Watcher

FACTS: dict[str, Any] = {"parameter_count": 12345, "tokens_per_second": 67890}
LEARNING_RATE = optuna.distributions.FloatDistribution(1e-4, 1e-1, log=True)


def trial(number: int, state: TrialState, value: float | None = None, **facts: Any) -> FrozenTrial:
    rungs = {1: value + 1, 2: value} if value is not None else {}
    made = create_trial(
        state=state,
        value=value if state == TrialState.COMPLETE else None,
        params={"learning_rate": 0.0123449},
        distributions={"learning_rate": LEARNING_RATE},
        intermediate_values=rungs,
        user_attrs=WRITTEN | facts,
    )
    made.number = number
    return made


COMPLETE = trial(0, TrialState.COMPLETE, 2.5, **FACTS)
TRIALS = [
    COMPLETE,
    trial(1, TrialState.COMPLETE, 2.25, **FACTS),
    trial(2, TrialState.COMPLETE, 2.25, **FACTS),
    trial(3, TrialState.PRUNED, 3.5),
    trial(4, TrialState.PRUNED, reason="diverged: the training loss is no longer finite"),
    trial(5, TrialState.FAIL, reason="ZeroDivisionError: division by [zero]"),
    trial(6, TrialState.RUNNING, 2.0),
    trial(7, TrialState.WAITING),
]
WORKER = Worker(3, "host", 17, "cuda:0", 2, 1.0, 6, "gru", 0.5, 65432.1, 3 * 2**20)


def snapshot(study: Study, **changes: Any) -> Snapshot:
    counts = Counts(complete=3, pruned=2, running=1, waiting=1, fail=1)
    values: dict[str, Any] = {
        "counts": counts,
        "best": TRIALS[1],
        "workers": [WORKER],
        "active_seconds": 50.0,
        "trials": TRIALS,
    }
    return Snapshot(study, **(values | changes))


def shown(*parts: Any) -> str:
    """As `tuner` prints it where there is no terminal."""
    text = StringIO()
    console = Console(file=text, width=200, highlight=False, markup=False, emoji=False)
    for part in parts:
        console.print(part)
    return text.getvalue()


def test_the_board_has_complete_trials_alone_the_best_and_then_the_earliest_first() -> None:
    assert [each.number for each in summary.leaderboard(list(reversed(TRIALS)))] == [1, 2, 0]
    assert summary.leaderboard([]) == []


def test_a_trial_beyond_the_limits_is_on_no_board_and_is_named_as_such(small: Callable[..., Study]) -> None:
    large = trial(8, TrialState.COMPLETE, 1.0, **FACTS)
    large._system_attrs["constraints:memory"] = 0.5
    within = trial(9, TrialState.COMPLETE, 1.5, **FACTS)
    within._system_attrs["constraints:memory"] = -0.5
    assert [each.number for each in summary.leaderboard([*TRIALS, large, within])] == [9, 1, 2, 0]
    assert [each.number for each in summary.front([*TRIALS, large])] == [1, 2]
    assert "complete  1.0000  exceeds memory" in tables.described(large, small(), None)
    now = snapshot(small(10), trials=[*TRIALS, large], infeasible=1)
    assert "(3 complete of which 1 beyond the limits, 2 pruned" in shown(tables.progress(now))
    with pytest.raises(StudyError, match="study s has 1 completed trial, but none that keeps its limits"):
        summary.require_board([large], "s")
    with pytest.raises(StudyError, match="no completed trial yet"):
        summary.require_board([], "s")


def test_of_two_objectives_the_front_is_what_nothing_beats(small: Callable[..., Study]) -> None:
    rows = [(1.0, 5.0), (2.0, 3.0), (2.0, 4.0), (3.0, 3.0), (4.0, 1.0), (1.0, 5.0), (1.0, 6.0)]
    trials = [optuna.trial.create_trial(values=list(values), user_attrs=WRITTEN) for values in rows]
    for number, one in enumerate(trials):
        one.number = number
    assert [one.number for one in summary.front(trials)] == [0, 5, 1, 4]


def test_equal_trials_are_all_on_the_front(small: Callable[..., Study]) -> None:
    trials = [create_trial(values=list(values), user_attrs=WRITTEN) for values in [(1.0, 0.5), (1.0, 0.5), (2.0, 0.1)]]
    for number, one in enumerate(trials):
        one.number = number
    assert [one.number for one in summary.front(trials)] == [0, 1, 2]
    drawn = plots.objectives(small(objective=["bits_per_byte", "text_divergence"]), trials)
    assert drawn is not None
    assert list(drawn.data[-1].y) == [2.0, 1.0, 1.0]
    assert set(drawn.data[0].marker.size) == {9}  # as those on the front are drawn


def test_nothing_from_outside_acts_on_the_terminal(small: Callable[..., Study]) -> None:
    evil = "\x1b]0;mine\x07\x9b2J\r\u202e"
    options = optuna.distributions.CategoricalDistribution([evil])
    failed = create_trial(
        state=TrialState.FAIL, params={"tokenizer": evil}, distributions={"tokenizer": options},
        user_attrs={"reason": evil, "traceback": f"line {evil}\n\tline"},
    )  # fmt: skip
    worker = Worker(1, evil, 1, evil, 1, 1.0, 1, evil, 0.5, 1.0, 1)
    now = snapshot(small(10), trials=[failed], workers=[worker], best=None)
    parts = [tables.progress(now), tables.leaderboard_table(now), *tables.failures(now), *tables.failed_lines(now)]
    text = shown(*map(_as_it_is, parts))
    assert not set(text) & set(evil.replace("]0;mine", "").replace("2J", ""))
    assert "\u241b]0;mine\u2407" in text


def _as_it_is(part: Any) -> Any:
    return Text(part) if isinstance(part, str) else part


@pytest.mark.parametrize(
    ("number", "line"),
    [
        (0, "trial   0  complete  2.5000  learning_rate=0.01234"),
        (1, "trial   1  complete  2.2500  learning_rate=0.01234  * best so far"),
        (3, "trial   3  pruned    3.5000 at rung 2/3  learning_rate=0.01234"),
        (4, "trial   4  pruned    diverged: the training loss is no longer finite  learning_rate=0.01234"),
        (5, "trial   5  failed    ZeroDivisionError: division by [zero]  learning_rate=0.01234"),
    ],
)
def test_a_finished_trial_is_a_line(small: Callable[..., Study], number: int, line: str) -> None:
    assert tables.described(TRIALS[number], small(), TRIALS[1]) == line


def test_a_reason_of_several_lines_is_reported_by_its_first(small: Callable[..., Study]) -> None:
    failed = trial(9, TrialState.FAIL, reason="RuntimeError: first\nsecond")
    assert tables.described(failed, small(), None).splitlines() == [
        "trial   9  failed    RuntimeError: first  learning_rate=0.01234"
    ]


@pytest.mark.parametrize(
    ("trials", "hours", "spent", "left"),
    [
        (10, None, 0.5, 90.0),  # 4.5 trials of 20 seconds
        (None, 100 / 3600, 0.5, 50.0),
        (20, 100 / 3600, 0.5, 50.0),
        (10, 1000 / 3600, 0.5, 90.0),
        (5, None, 1.0, None),
        (3, None, 1.0, None),
    ],
)
def test_the_rest_is_guessed_from_what_a_trial_takes_or_from_the_hours(
    small: Callable[..., Study], trials: int | None, hours: float | None, spent: float, left: float | None
) -> None:
    budget = {name: value for name, value in {"trials": trials, "hours": hours}.items() if value is not None}
    now = snapshot(small(budget=budget), trial_seconds=20.0)
    assert now.spent == pytest.approx(spent)
    assert now.seconds_left == (None if left is None else pytest.approx(left))


def test_nothing_is_guessed_before_a_trial_is_finished(small: Callable[..., Study]) -> None:
    assert snapshot(small(), counts=Counts(running=2)).seconds_left is None


def test_progress_says_how_far_how_good_and_who(small: Callable[..., Study]) -> None:
    text = shown(tables.progress(snapshot(small(10), trial_seconds=20.0)))
    assert "running  5/10 trials  (3 complete, 2 pruned, 1 failed, 1 waiting)  about 0:01:30 left" in text
    assert "best: 2.2500 bits per byte, trial 1  learning_rate=0.01234" in text
    worker = [part for part in text.splitlines()[-1].split("  ") if part]
    assert [part.strip() for part in worker] == [
        "worker 3", "host cuda:0", "trial 6", "gru", "50%", "65,432 tokens/s", "3 MiB", "seen 1 s ago",
    ]  # fmt: skip


def test_progress_of_a_study_that_has_just_begun_or_is_over(small: Callable[..., Study]) -> None:
    begun = shown(tables.progress(snapshot(small(None, budget={"hours": 1}), counts=Counts(), best=None, workers=[])))
    assert "idle  0 trials  (0 complete, 0 pruned)" in begun
    assert "No worker is there; start some: tuner work small-" in begun
    assert "best" not in begun
    assert " left" not in shown(tables.progress(snapshot(small(5))))


def test_the_tables(small: Callable[..., Study]) -> None:
    board = shown(tables.leaderboard_table(snapshot(small()), rows=2)).splitlines()
    assert [line.split()[:4] for line in board[1:]] == [
        ["1", "2.2500", "-", "12,345"],
        ["2", "2.2500", "-", "12,345"],
    ]
    counts = Counts(complete=3, pruned=2, running=1, waiting=1, fail=1)
    first = Row(
        small(10, name="a [b] :smile: study"),
        counts,
        [WORKER],
        50.0,
        study_id=1,
        best=2.25,
        best_trial=1,
        unfit=1,
        trial_seconds=20.0,
    )
    second = Row(small(None, budget={"hours": 1}), Counts(), [], 0.0, "paused", study_id=2, best=None, best_trial=None)
    studies = shown(tables.studies_table([first, second])).splitlines()
    assert "a [b] :smile: study" in studies[1]
    assert studies[1].split()[-10:] == ["running", "5/10", "3", "1", "1", "1", "1", "1", "0:01:30", "2.2500"]
    assert studies[2].split()[-10:] == ["paused", *["0"] * 7, "-", "-"]


def test_the_table_of_all_studies_tells_which_waits_for_a_lock(small: Callable[..., Study]) -> None:
    blocked = Blockage(7, "ada", None, 3, "host", 1, 1, 12.3)
    waiting = Row(small(), Counts(), [WORKER], 0.0, blocked=blocked, study_id=1, best=None, best_trial=None)
    assert "  running, blocked 12 s  " in shown(tables.studies_table([waiting]))


def test_trials_that_do_not_fit_stand_apart_from_the_pruned_with_a_hint(small: Callable[..., Study]) -> None:
    text = shown(tables.progress(snapshot(small(10), unfit=1)))
    assert "(3 complete, 1 pruned, 1 did not fit, 1 failed, 1 waiting)" in text
    assert "1 trial did not fit in memory or the limits: search smaller hidden_size, layers, batch_size" in text


def test_a_budget_that_was_lowered_is_no_fraction(small: Callable[..., Study]) -> None:
    assert snapshot(small(4)).done == "5 (4 asked for)"
    assert snapshot(small(5)).done == "5/5"


def test_a_watcher_tells_each_trial_once_in_the_order_they_ended(
    storage: RDBStorage,
    small: Callable[..., Study],
    enter: Callable[[Study], optuna.Study],
    capsys: pytest.CaptureFixture[str],
) -> None:
    study = small(4)
    found = enter(study)
    complete(found, found.ask({"learning_rate": LEARNING_RATE}), 9.0)  # before the watch
    asked = [found.ask({"learning_rate": LEARNING_RATE}) for _ in range(3)]
    with Watcher(StudyHandle(storage, found, study)) as watcher:
        watcher.look()
        assert capsys.readouterr().out == ""
        complete(found, asked[2], 2.0)
        complete(found, asked[0], 3.0)
        watcher.look()
        watcher.look()
        assert [line.split()[1] for line in capsys.readouterr().out.splitlines()] == ["3", "1"]
        watcher.plain_seconds = 0.0
        watcher.look()
        assert "3/4 trials finished, 0 workers" in capsys.readouterr().out
        watcher.say("worker on cpu ended: KeyError: [/b] :smile:")
        assert capsys.readouterr().out == "worker on cpu ended: KeyError: [/b] :smile:\n"


def test_a_duration() -> None:
    assert [duration(seconds) for seconds in (0.4, 61, 3600 * 30)] == ["0:00:00", "0:01:01", "1 day, 6:00:00"]

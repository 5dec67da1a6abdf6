"""The books of a study: one worker for each trial, no write after a takeover, exact budgets; all on a real database."""

import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import optuna
import pytest
from optuna.storages import RDBStorage
from optuna.trial import TrialState

from tuner.storage import leases as books
from tuner.storage.connection import open_storage
from tuner.storage.leases import Activity, Claim, Counts, Ended, Leases, LostLease, Wait
from tuner.study.definition import Study

FOR_EVER = {"trials": None, "hours": None}


class Clock:
    """The clock by which expired leases are watched."""

    def __init__(self) -> None:
        self.now = 100.0

    def monotonic(self) -> float:
        return self.now


class Desk:
    """A study and its books, and what a worker called `who` does with them."""

    def __init__(self, storage: RDBStorage, study: optuna.Study) -> None:
        self.storage, self.study = storage, study
        self.books: dict[str, Leases] = {}
        self.timings: dict[str, Any] = {}

    def of(self, who: str) -> Leases:
        if who not in self.books:
            self.books[who] = Leases(self.storage, self.study._study_id, **self.timings)
            self.books[who].join(self.id(who), "host", 1, "cpu", 1)
        return self.books[who]

    def id(self, who: str) -> str:
        return f"{self.study.study_name}-{who}"

    def take(self, who: str, trials: int | None = None, hours: float | None = None) -> Any:
        return self.of(who).claim(self.study, self.id(who), trials, hours)

    def take_trial(self, who: str) -> Claim:
        claim = self.take(who)
        assert isinstance(claim, Claim)
        return claim

    def beat(self, who: str, claim: Claim | None) -> str:
        trial_id = None if claim is None else claim.trial._trial_id
        return self.of(who).heartbeat(self.id(who), trial_id, Activity())[0]

    def write(self, who: str, claim: Claim, name: str = "by") -> None:
        with self.of(who).lease_held(claim.trial._trial_id, self.id(who)):
            claim.trial.set_user_attr(name, who)

    def state(self, claim: Claim) -> TrialState:
        return self.storage.get_trial(claim.trial._trial_id).state


@pytest.fixture
def desk(storage: RDBStorage, small: Callable[..., Study], enter: Callable[[Study], optuna.Study]) -> Desk:
    return Desk(storage, enter(small()))


@pytest.fixture
def clock(desk: Desk) -> Clock:
    clock = Clock()
    desk.timings["clock"] = clock.monotonic
    return clock


def test_two_workers_have_two_trials(desk: Desk) -> None:
    assert [desk.take_trial(who).trial.number for who in ("ada", "bob", "ada")] == [0, 1, 2]


def test_whoever_holds_a_trial_may_write_to_it_and_nobody_else(desk: Desk) -> None:
    claim = desk.take_trial("ada")
    desk.write("ada", claim)
    with pytest.raises(LostLease, match="taken over"):
        desk.write("bob", claim)
    assert desk.storage.get_trial(claim.trial._trial_id).user_attrs == {"by": "ada"}


def test_an_expired_lease_is_watched_before_it_is_taken_over(desk: Desk, clock: Clock) -> None:
    desk.timings["lease_seconds"] = 0
    first = desk.take_trial("ada")
    assert desk.take_trial("bob").trial.number == 1
    clock.now += books.OBSERVED_SECONDS - 1
    assert desk.take_trial("bob").trial.number == 2
    clock.now += 2
    taken = desk.take_trial("bob")
    assert (taken.trial.number, taken.attempt) == (0, 2)
    for late in (lambda: desk.write("ada", first), lambda: desk.beat("ada", first)):
        with pytest.raises(LostLease):
            late()
    with pytest.raises(LostLease):
        desk.of("ada").release(first.trial._trial_id, desk.id("ada"))
    assert desk.state(first) == TrialState.RUNNING
    assert "by" not in desk.storage.get_trial(first.trial._trial_id).user_attrs
    desk.write("bob", taken)


def test_a_worker_that_only_slept_keeps_its_trial(desk: Desk, clock: Clock) -> None:
    """As after an outage of the database: every lease has expired, and the living renew theirs first."""
    desk.timings["lease_seconds"] = 0
    claim = desk.take_trial("ada")
    assert desk.take_trial("bob").trial.number == 1
    clock.now += books.OBSERVED_SECONDS - 1
    assert desk.beat("ada", claim) == "running"
    clock.now += 2
    assert desk.take_trial("bob").trial.number == 2
    desk.write("ada", claim)


def test_a_lease_in_force_is_not_taken_over_however_long_one_watches(desk: Desk, clock: Clock) -> None:
    claim = desk.take_trial("ada")
    desk.take_trial("bob")
    clock.now += 10_000
    assert desk.take_trial("bob").trial.number == 2
    desk.write("ada", claim)


def set_back(ask: Callable[[str], Any], desk: Desk) -> None:
    """As if the clock of the database's machine had been set back by an hour: all that was written is an hour ahead."""
    study = f"where study_id = {desk.study._study_id}"
    ask(f"update tuner_leases set expires_at = expires_at + interval '1 hour' {study}")
    ask(f"update tuner_workers set seen_at = seen_at + interval '1 hour' {study}")


def test_a_clock_that_is_set_back_does_not_keep_a_dead_workers_trial(
    desk: Desk, clock: Clock, ask: Callable[[str], Any]
) -> None:
    desk.take_trial("ada")
    living = desk.take_trial("bob")
    set_back(ask, desk)
    assert desk.take_trial("eve").trial.number == 2
    assert [worker.trial for worker in desk.of("eve").alive()] == [None]  # eve alone
    desk.beat("bob", living)
    assert len(desk.of("eve").alive()) == 2
    clock.now += books.LEASE_SECONDS + books.OBSERVED_SECONDS - 1
    assert desk.take_trial("eve").trial.number == 3
    clock.now += 2
    taken = desk.take_trial("eve")
    assert (taken.trial.number, taken.attempt) == (0, 2)
    clock.now += 10_000
    assert desk.take_trial("eve").trial.number == 4  # not that of the living


def test_a_takeover_waits_for_a_write_and_a_later_write_fails(desk: Desk, ask: Callable[[str], Any]) -> None:
    """The lease is looked at under a lock: nobody writes between another's taking over and knowing of it."""
    claim = desk.take_trial("ada")
    entered, go_on = threading.Event(), threading.Event()

    def hold() -> None:
        with desk.of("ada").lease_held(claim.trial._trial_id, desk.id("ada")):
            entered.set()
            go_on.wait(30)

    holder = threading.Thread(target=hold)
    holder.start()
    assert entered.wait(30)
    leaver = threading.Thread(target=lambda: desk.of("ada").leave(desk.id("ada")))
    leaver.start()
    while not ask("select count(*) from pg_locks where not granted"):
        assert leaver.is_alive()
    go_on.set()
    holder.join(30)
    leaver.join(30)
    assert desk.take_trial("bob").trial.number == claim.trial.number
    with pytest.raises(LostLease):
        desk.write("ada", claim)


def test_a_trial_handed_back_goes_on_as_itself(desk: Desk) -> None:
    claim = desk.take_trial("ada")
    value = claim.trial.suggest_float("learning_rate", 0, 1)
    claim.trial.report(3.5, 1)
    desk.write("ada", claim)
    desk.of("ada").release(claim.trial._trial_id, desk.id("ada"))
    assert desk.state(claim) == TrialState.WAITING
    again = desk.take_trial("bob")
    assert (again.trial.number, again.attempt) == (0, 2)
    assert again.trial.params == {"learning_rate": value}
    assert again.trial.suggest_float("learning_rate", 0, 1) == value
    assert again.trial.user_attrs == {"by": "ada"}
    again.trial.report(3.0, 2)
    assert desk.storage.get_trial(again.trial._trial_id).intermediate_values == {1: 3.5, 2: 3.0}
    desk.study.tell(again.trial, 3.0)
    assert [trial.number for trial in desk.study.trials] == [0]


def test_the_trial_of_a_worker_that_left_is_free_at_once(desk: Desk) -> None:
    claim = desk.take_trial("ada")
    desk.of("ada").leave(desk.id("ada"))
    again = desk.take_trial("bob")
    assert (again.trial.number, again.attempt) == (claim.trial.number, 2)


def test_a_running_trial_that_nobody_ever_held_is_adopted(desk: Desk) -> None:
    """As when a worker is killed between Optuna's books and ours."""
    lost = desk.study.ask()
    value = lost.suggest_float("learning_rate", 0, 1)
    claim = desk.take_trial("ada")
    assert (claim.trial.number, claim.attempt) == (lost.number, 1)
    assert claim.trial.suggest_float("learning_rate", 0, 1) == value


def test_a_budget_of_trials_is_never_overdrawn(desk: Desk) -> None:
    claims = [desk.take("ada", 3) for _ in range(3)]
    assert isinstance(desk.take("bob", 3), Wait)
    desk.study.tell(claims[0].trial, 1.0)
    desk.study.tell(claims[1].trial, state=TrialState.PRUNED)
    assert isinstance(desk.take("bob", 3), Wait)
    desk.study.tell(claims[2].trial, state=TrialState.FAIL)
    last = desk.take("bob", 3)
    assert last.trial.number == 3
    desk.study.tell(last.trial, 2.0)
    assert desk.take("bob", 3) == Ended("all 3 trials are finished")
    assert desk.of("bob").counts() == Counts(complete=2, pruned=1, fail=1)
    assert isinstance(desk.take("bob", 4), Claim)


def test_a_trial_that_waits_is_finished_before_the_budget_is_full(desk: Desk) -> None:
    claims = [desk.take("ada", 2) for _ in range(2)]
    desk.of("ada").release(claims[0].trial._trial_id, desk.id("ada"))
    assert desk.take("bob", 2).trial.number == 0
    assert isinstance(desk.take("bob", 2), Wait)


def test_an_orphan_is_taken_although_the_budget_has_no_room_for_a_new_trial(desk: Desk) -> None:
    claims = [desk.take("ada", 2) for _ in range(2)]
    desk.of("ada").leave(desk.id("ada"))
    assert {desk.take("bob", 2).trial.number for _ in range(2)} == {claim.trial.number for claim in claims}


def test_a_paused_study_waits_and_a_stopped_one_ends(desk: Desk) -> None:
    desk.of("ada").set_state("paused")
    assert desk.take("ada") == Wait("the study is paused")
    assert desk.beat("ada", None) == "paused"
    desk.of("ada").set_state("stopped")
    assert desk.take("ada") == Ended("the study was stopped")
    assert desk.beat("ada", None) == "stopped"
    desk.of("ada").set_state("running")
    assert isinstance(desk.take("ada"), Claim)


def test_hours_are_those_in_which_somebody_works(desk: Desk, storage: RDBStorage) -> None:
    def ago(seconds: float) -> None:
        with storage.engine.begin() as connection:
            connection.execute(
                books.studies.update()
                .where(books.studies.c.study_id == desk.study._study_id)
                .values(ticked_at=books.func.now() - books.sql.text(f"interval '{seconds} seconds'"))
            )

    for who in ("ada", "bob", "eve"):  # all beat, and still time passes once
        ago(4)
        desk.beat(who, None)
    assert desk.of("ada").active_seconds() == pytest.approx(12, abs=1)
    assert desk.of("ada").heartbeat(desk.id("ada"), None, Activity())[1] == desk.of("bob").active_seconds()
    ago(7200)  # a night in which no worker was there
    desk.beat("ada", None)
    assert desk.of("ada").active_seconds() < 12 + 3 * books.HEARTBEAT_SECONDS + 1
    assert isinstance(desk.take("ada", hours=1), Claim)
    assert desk.take("ada", hours=10 / 3600) == Ended("the 0.00277778 hours are spent")


def test_a_study_whose_trials_all_fail_stops_early_and_says_why(desk: Desk) -> None:
    for _ in range(books.NEVER_FINISHED):
        desk.study.tell(desk.take("ada", 100).trial, state=TrialState.FAIL)
    assert desk.take("ada", 100) == Ended("all of its 5 trials failed")


def test_why_a_study_ended_is_shown_as_its_workers_were_told(desk: Desk) -> None:
    claims = [desk.take_trial("ada") for _ in range(4)]
    desk.study.tell(claims[0].trial, state=TrialState.FAIL)
    for claim in claims[1:]:
        desk.of("ada").release(claim.trial._trial_id, desk.id("ada"))
    assert desk.of("ada").why_ended(100, None) is None
    desk.of("ada").set_state("stopped")
    assert desk.of("ada").why_ended(100, None) == "the study was stopped"
    assert desk.take("ada", 100) == Ended("the study was stopped")


def test_a_study_of_one_trial_ends_in_words(desk: Desk) -> None:
    desk.study.tell(desk.take("ada", 1).trial, 1.0)
    assert desk.take("ada", 1) == Ended("its only trial is finished")
    assert desk.of("ada").why_ended(None, None, new=False) == "all that was queued is done"


def test_one_finished_trial_lets_a_study_with_failed_ones_go_on(desk: Desk) -> None:
    desk.study.tell(desk.take("ada", 100).trial, 1.0)
    for _ in range(books.NEVER_FINISHED):
        desk.study.tell(desk.take("ada", 100).trial, state=TrialState.FAIL)
    assert isinstance(desk.take("ada", 100), Claim)


def test_who_is_at_work_and_on_what(desk: Desk) -> None:
    claim = desk.take_trial("ada")
    doing = Activity(claim.trial.number, "gru", 0.25, 1234.5, 2**33)
    desk.of("ada").heartbeat(desk.id("ada"), claim.trial._trial_id, doing)
    desk.of("bob").heartbeat(desk.id("bob"), None, Activity(doing="the study is paused"))
    ada, bob = desk.of("ada").alive()
    assert (ada.host, ada.device, ada.trial, ada.doing, ada.progress) == ("host", "cpu", 0, "gru", 0.25)
    assert (ada.tokens_per_second, ada.memory_bytes) == (1234.5, 2**33)
    assert (bob.trial, bob.doing, bob.progress) == (None, "the study is paused", None)
    assert ada.number < bob.number
    assert 0 <= ada.seen < 30
    desk.of("ada").leave(desk.id("ada"))
    assert [worker.number for worker in desk.of("bob").alive()] == [bob.number]
    assert Leases(desk.storage, desk.study._study_id, lease_seconds=0).alive() == []


def test_studies_of_one_database_do_not_mix(
    desk: Desk, storage: RDBStorage, small: Callable[..., Study], enter: Callable[[Study], optuna.Study]
) -> None:
    other = Desk(storage, enter(small()))
    desk.take_trial("ada")
    desk.of("ada").leave(desk.id("ada"))
    desk.of("ada").set_state("stopped")
    assert other.take_trial("bob").trial.number == 0
    assert len(other.study.trials) == 1
    assert other.of("bob").counts() == Counts(running=1)
    assert [worker.number for worker in desk.of("ada").alive()] == []


def test_entering_a_study_again_keeps_its_books(
    desk: Desk, small: Callable[..., Study], enter: Callable[[Study], optuna.Study]
) -> None:
    desk.take_trial("ada")
    desk.of("ada").set_state("stopped")
    desk.of("ada").open()
    assert desk.take("ada") == Ended("the study was stopped")
    assert desk.of("ada").attempts() == {desk.study.trials[0]._trial_id: 1}


def test_the_next_study_clears_up_after_one_that_was_deleted_while_no_worker_was_there(
    desk: Desk, small: Callable[..., Study], enter: Callable[[Study], optuna.Study], ask: Callable[[str], Any]
) -> None:
    desk.take_trial("ada")
    optuna.delete_study(study_name=desk.study.study_name, storage=desk.storage)
    living = Desk(desk.storage, enter(small()))
    claim = living.take_trial("bob")
    enter(small())
    for table in ("tuner_studies", "tuner_workers", "tuner_leases"):
        assert ask(f"select count(*) from {table} where study_id = {desk.study._study_id}") == 0
    living.write("bob", claim)


def test_eight_threads_open_the_books_of_a_fresh_database_at_once(fresh_url: str) -> None:
    with open_storage(fresh_url) as storage:
        study_id = optuna.create_study(storage=storage)._study_id
    start, numbers, errors = threading.Barrier(8), [], []

    def come(index: int) -> None:
        try:
            with open_storage(fresh_url) as storage:
                leases = Leases(storage, study_id)
                start.wait(30)
                leases.open()
                numbers.append(leases.join(f"worker-{index}", "host", index, "cpu", 1))
        except Exception as error:
            errors.append(error)

    threads = [threading.Thread(target=come, args=(index,)) for index in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert errors == []
    assert sorted(numbers) == list(range(1, 9))


def test_eight_threads_race_for_the_last_trials(desk: Desk, data_folder: Path, small: Callable[..., Study]) -> None:
    """Each tells its trial at once, fails every fourth, and hands every seventh back."""
    start, reasons, errors = threading.Barrier(8), [], []

    def come(index: int) -> None:
        try:
            with open_storage(None, data_folder) as storage:
                own = Desk(storage, optuna.load_study(study_name=desk.study.study_name, storage=storage))
                start.wait(30)
                while not isinstance(claim := own.take(f"worker-{index}", 25), Ended):
                    if isinstance(claim, Claim) and claim.trial.number % 7 == 6 and claim.attempt == 1:
                        own.of(f"worker-{index}").release(claim.trial._trial_id, own.id(f"worker-{index}"))
                    elif isinstance(claim, Claim):
                        failed = claim.trial.number % 4 == 3
                        own.study.tell(claim.trial, None if failed else 1.0, TrialState.FAIL if failed else None)
                reasons.append(claim.reason)
        except Exception as error:
            errors.append(error)

    threads = [threading.Thread(target=come, args=(index,)) for index in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert errors == []
    assert reasons == ["all 25 trials are finished"] * 8
    counts = desk.of("ada").counts()
    assert (counts.finished, counts.running, counts.waiting) == (25, 0, 0)
    assert [trial.number for trial in desk.study.trials] == list(range(25 + counts.fail))


def test_a_trial_that_its_slow_owner_completes_in_this_moment_is_not_taken_over(
    desk: Desk, ask: Callable[[str], Any]
) -> None:
    desk.timings = {"lease_seconds": 0, "observed_seconds": -1}

    class Unlucky(Leases):
        def _is_still(self, connection: Any, trial_id: int, expiry: str) -> bool:
            ask(f"update trials set state = 'COMPLETE' where trial_id = {trial_id}")
            return super()._is_still(connection, trial_id, expiry)

    slow = desk.take_trial("ada")
    desk.books["bob"] = Unlucky(desk.storage, desk.study._study_id, **desk.timings)
    assert desk.take_trial("bob").trial.number == 1
    assert desk.of("ada").attempts()[slow.trial._trial_id] == 1


def test_a_lease_lasts_from_the_claim_and_not_from_the_question(desk: Desk, ask: Callable[[str], Any]) -> None:
    """A claim may wait long for its lock."""
    lock = f"({books.CLAIM_LOCK}, {desk.study._study_id})"
    desk.of("ada")
    ask(f"select pg_advisory_lock{lock}")
    claims: list[Claim] = []
    claimer = threading.Thread(target=lambda: claims.append(desk.take_trial("ada")))
    claimer.start()
    while not ask("select count(*) from pg_locks where not granted"):
        assert claimer.is_alive()
    granted = ask("select clock_timestamp()")
    ask(f"select pg_advisory_unlock{lock}")
    claimer.join(30)
    expires = ask(f"select expires_at from tuner_leases where trial_id = {claims[0].trial._trial_id}")
    assert (expires - granted).total_seconds() >= books.LEASE_SECONDS


def test_a_worker_that_enters_twice_is_one_worker(desk: Desk) -> None:
    """As when the answer to its first question got lost."""
    number = desk.of("ada").join("again", "host", 1, "cpu", 1)
    assert desk.of("ada").join("again", "host", 1, "cpu", 1) == number


def test_a_claim_whose_answer_got_lost_is_free_for_who_asks_again(desk: Desk) -> None:
    lost = desk.take_trial("ada")
    desk.of("ada").let_go(desk.id("ada"))
    again = desk.take_trial("ada")
    assert (again.trial.number, again.attempt) == (lost.trial.number, 2)

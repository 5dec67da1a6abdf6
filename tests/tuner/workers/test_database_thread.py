"""The database_thread: requests in order, again after an outage, and a beat in between whatever happens."""

import threading
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from optuna.exceptions import StorageInternalError
from sqlalchemy.exc import DBAPIError, IntegrityError, OperationalError
from sqlalchemy.exc import TimeoutError as PoolTimeout

from tests.tuner.conftest import Heard
from tuner.storage.outages import is_outage
from tuner.workers.database_thread import DatabaseThread, DatabaseUnavailable

RARELY, OFTEN = 60.0, 0.01
"""Seconds between two beats."""

AWAY = OperationalError("select 1", {}, ConnectionRefusedError("connection refused\nis the server running?"))


class Database:
    """Is away for the next `away` calls, and writes down those that it answers."""

    def __init__(self) -> None:
        self.away = 0
        self.answered: list[Any] = []
        self.refusals = threading.Semaphore(0)

    def request(self, name: Any) -> Callable[[], Any]:
        def call() -> Any:
            if self.away:
                self.away -= 1
                self.refusals.release()
                raise AWAY
            self.answered.append(name)
            return name

        return call


@pytest.fixture
def database() -> Database:
    return Database()


@pytest.fixture
def said() -> Iterator[list[str]]:
    with Heard() as said:
        yield said


@pytest.fixture
def database_thread(said: list[str]) -> Iterator[DatabaseThread]:
    with DatabaseThread(lambda: None, RARELY) as database_thread:
        yield database_thread


def test_errands_are_run_in_order_and_answered(database_thread: DatabaseThread, database: Database) -> None:
    answers = [database_thread.submit(database.request(number)) for number in range(100)]
    assert database_thread.call(database.request("last")) == "last"
    assert [answer.result(0) for answer in answers] == list(range(100))
    assert database.answered == [*range(100), "last"]


def test_all_errands_are_run_by_one_thread_that_is_not_ours(database_thread: DatabaseThread) -> None:
    threads = {database_thread.call(threading.get_ident) for _ in range(3)}
    assert len(threads) == 1
    assert threads != {threading.get_ident()}


def test_after_an_outage_requests_continue_in_order_and_it_is_logged_once(
    database_thread: DatabaseThread, database: Database, said: list[str]
) -> None:
    database.away = 3
    answers = [database_thread.submit(database.request(number)) for number in range(5)]
    assert [answer.result(60) for answer in answers] == list(range(5))
    assert database.answered == list(range(5))
    assert said[0] == "the database is away, training goes on and waits for it (connection refused)"
    assert said[1].startswith("the database is back after ")
    assert len(said) == 2


def test_a_second_outage_is_reported_again(
    database_thread: DatabaseThread, database: Database, said: list[str]
) -> None:
    for _ in range(2):
        database.away = 1
        database_thread.call(database.request(1))
    assert [line.split(",")[0].split(" after")[0] for line in said] == [
        "the database is away",
        "the database is back",
    ] * 2


@pytest.mark.parametrize(
    "error", [ValueError("wrong"), KeyError("x"), IntegrityError("insert", {}, Exception("twice"))]
)
def test_any_other_error_is_an_answer(database_thread: DatabaseThread, said: list[str], error: Exception) -> None:
    def request() -> None:
        raise error

    with pytest.raises(type(error)):
        database_thread.call(request)
    assert database_thread.call(lambda: "next") == "next"
    assert said == []


def test_leaving_while_the_database_is_away_does_not_wait_for_it(database: Database, said: list[str]) -> None:
    database.away = 10**9
    with DatabaseThread(lambda: None, RARELY) as database_thread:
        answers = [database_thread.submit(database.request(number)) for number in range(3)]
        database.refusals.acquire()
    assert not database_thread._thread.is_alive()
    for answer in answers:
        with pytest.raises(DatabaseUnavailable, match="did not come back in time"):
            answer.result(0)
    assert database.answered == []


def test_who_asks_does_not_wait_for_ever(database_thread: DatabaseThread, database: Database) -> None:
    database.away = 10**9
    with pytest.raises(DatabaseUnavailable, match="did not answer for 0 s"):
        database_thread.call(database.request(1), patience=0.01)


def test_leaving_runs_what_was_sent_before(database: Database) -> None:
    with DatabaseThread(lambda: None, RARELY) as database_thread:
        for number in range(20):
            database_thread.submit(database.request(number))
    assert database.answered == list(range(20))


def test_the_heart_beats_while_there_is_nothing_to_do() -> None:
    beats = threading.Semaphore(0)
    with DatabaseThread(beats.release, OFTEN):
        for _ in range(3):
            assert beats.acquire(timeout=30)


def test_the_heart_beats_while_there_is_always_something_to_do() -> None:
    """Otherwise the lease of the busiest worker would be the first to run out."""
    beats = threading.Semaphore(0)
    beaten = threading.Event()

    def busy() -> None:
        if not beaten.wait(0.005) and not database_thread._leaving.is_set():  # type: ignore[attr-defined]
            database_thread.submit(busy)  # type: ignore[attr-defined]

    def beat() -> None:
        beats.release()

    with DatabaseThread(beat, OFTEN) as database_thread:
        for _ in range(4):
            database_thread.submit(busy)
        for _ in range(4):
            assert beats.acquire(timeout=10)
        beaten.set()


def test_an_outage_is_met_by_the_beat_as_by_any_errand(database: Database, said: list[str]) -> None:
    database.away = 2
    with DatabaseThread(database.request("beat"), OFTEN) as database_thread:
        assert database.refusals.acquire(timeout=30)
        database_thread.call(database.request("request"))
    assert database.answered[0] == "beat"
    assert "request" in database.answered
    assert [line.split(",")[0].split(" after")[0] for line in said] == ["the database is away", "the database is back"]


def wrapped(error: Exception) -> Exception:
    """As Optuna hands on an error of its database."""
    try:
        raise StorageInternalError("An exception is raised during the commit.") from error
    except StorageInternalError as outer:
        return outer


@pytest.mark.parametrize(
    ("error", "outage"),
    [
        (AWAY, True),
        (wrapped(AWAY), True),
        (PoolTimeout("QueuePool limit"), True),
        (DBAPIError("select 1", {}, Exception("server closed"), connection_invalidated=True), True),
        (DBAPIError("select 1", {}, Exception("wrong"), connection_invalidated=False), False),
        (wrapped(IntegrityError("insert", {}, Exception("twice"))), False),
        (ValueError("no"), False),
        (None, False),
    ],
)
def test_an_outage_is_distinguished_from_a_mistake(error: Exception | None, outage: bool) -> None:
    assert is_outage(error) is outage

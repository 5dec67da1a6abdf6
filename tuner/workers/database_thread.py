"""A worker's only database thread: runs requests in order, repeats them after an outage, sends heartbeats."""

from __future__ import annotations

import logging
import queue
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future
from concurrent.futures import TimeoutError as NoAnswer
from typing import Any, TypeVar

from tuner.storage.leases import HEARTBEAT_SECONDS
from tuner.storage.outages import is_outage

logger = logging.getLogger(__name__)

Result = TypeVar("Result")
_Request = tuple[Callable[[], Any], "Future[Any]"]

TIMEOUT_SECONDS = 600.0
"""How long a worker that has nothing else to do waits for the database."""


class DatabaseUnavailable(Exception):
    """The database did not come back in time."""


class DatabaseThread:
    """Runs requests to the database one after the other, so that training goes on when it is slow or away.

    A request that finds no database is tried again until it does, before any later one; it must therefore bear
    to be run twice. Any other exception is the request's answer. `beat` runs every `heartbeat_seconds` as one
    more request.
    """

    def __init__(self, beat: Callable[[], None], heartbeat_seconds: float = HEARTBEAT_SECONDS) -> None:
        self._heartbeat, self._heartbeat_seconds = beat, heartbeat_seconds
        self._errands: queue.Queue[_Request | None] = queue.Queue()
        self._leaving = threading.Event()
        self._away_since: float | None = None
        self._thread = threading.Thread(target=self._run, name="database_thread", daemon=True)

    def __enter__(self) -> DatabaseThread:
        self._thread.start()
        return self

    def __exit__(self, *exception: object) -> None:
        self._leaving.set()
        self._errands.put(None)
        self._thread.join(self._heartbeat_seconds)

    def submit(self, request: Callable[[], Result]) -> Future[Result]:
        """Queues a request and returns at once; the future gets its answer."""
        answer: Future[Result] = Future()
        self._errands.put((request, answer))
        return answer

    def call(self, request: Callable[[], Result], patience: float = TIMEOUT_SECONDS) -> Result:
        """Runs a request after those before it; returns its answer, or raises what it raised or DatabaseUnavailable."""
        try:
            return self.submit(request).result(timeout=patience)
        except NoAnswer:
            raise DatabaseUnavailable(f"the database did not answer for {patience:.0f} s") from None

    def _run(self) -> None:
        next_beat = time.monotonic()
        while True:
            if time.monotonic() >= next_beat:  # even when there is always a request
                self._persist(self._heartbeat, Future())
                next_beat = time.monotonic() + self._heartbeat_seconds
            try:
                request = self._errands.get(timeout=max(0.0, next_beat - time.monotonic()))
            except queue.Empty:
                continue
            if request is None:
                return
            self._persist(*request)

    def _persist(self, request: Callable[[], Any], answer: Future[Any]) -> None:
        pause = 0.2
        while not self._attempt(request, answer):
            if self._leaving.wait(pause):
                answer.set_exception(DatabaseUnavailable("the database did not come back in time"))
                return
            pause = min(pause * 2, self._heartbeat_seconds)

    def _attempt(self, request: Callable[[], Any], answer: Future[Any]) -> bool:
        """Tries a request; False means that the database is away."""
        try:
            result = request()
        except Exception as error:
            if is_outage(error):
                self._note_away(error)
                return False
            answer.set_exception(error)
        else:
            answer.set_result(result)
        self._note_back()
        return True

    def _note_away(self, error: Exception) -> None:
        if self._away_since is None:
            self._away_since = time.monotonic()
            said = _first_line(error)
            if "lock timeout" in said:
                logger.warning(f"another session keeps the database busy, training goes on and waits for it ({said})")
            else:
                logger.warning(f"the database is away, training goes on and waits for it ({said})")

    def _note_back(self) -> None:
        if self._away_since is not None:
            logger.warning(f"the database is back after {time.monotonic() - self._away_since:.0f} s")
            self._away_since = None


def _first_line(error: BaseException) -> str:
    cause = error.__cause__ if not hasattr(error, "orig") and error.__cause__ else error
    return str(getattr(cause, "orig", None) or cause).strip().split("\n")[0]

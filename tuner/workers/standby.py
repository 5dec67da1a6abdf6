"""Standing workers, which join any study that has work, one after another, until they are stopped."""

from __future__ import annotations

import logging
import os
import signal
import subprocess
import threading
import time
from collections.abc import Callable, Sequence
from contextlib import suppress

from optuna.storages import RDBStorage

from tuner.results import queries
from tuner.results.summary import Row
from tuner.storage.leases import RUNNING
from tuner.storage.outages import is_outage
from tuner.workers import supervisor_watch

logger = logging.getLogger(__name__)

LOOK_SECONDS = 2.0
"""How often idle workers look for a study."""

REST_SECONDS = 60.0
"""How long a study is left alone whose workers could not work here, as where its text is missing."""


def serve(
    storage: RDBStorage,
    command: Sequence[str],
    requested: threading.Event,
    seen: Callable[[], None] = lambda: None,
    look_seconds: float = LOOK_SECONDS,
) -> None:
    """Joins studies until `requested` is set: runs `command` with each one's name, in a process of its own.

    While there is none, it looks every `look_seconds`, and calls `seen` whenever the database has answered.
    """
    rested: dict[str, float] = {}
    logger.info("waiting for a study")
    while not requested.is_set():
        name = _next_study(storage, rested, seen)
        if name is None:
            requested.wait(look_seconds)
            continue
        logger.info("joining study %s", name)
        code = _run([*command, "--", name], requested)
        if code != 0 and not requested.is_set():
            logger.info("study %s: ended with exit code %d; it is left alone for %.0f s", name, code, REST_SECONDS)
            rested[name] = time.monotonic() + REST_SECONDS


def _next_study(storage: RDBStorage, rested: dict[str, float], seen: Callable[[], None] = lambda: None) -> str | None:
    """The study, among those with work, whose workers are fewest: all of them go on, and none waits for another."""
    try:
        ready = [
            (len(row.workers), name)
            for row in queries.all_rows(storage)
            if _has_work(row)
            and rested.get(name := storage.get_study_name_from_id(row.study_id), 0.0) < time.monotonic()
        ]
        seen()
    except KeyError:  # a study that was deleted in this moment
        return None
    except Exception as error:
        if not is_outage(error):
            raise
        return None
    return min(ready)[1] if ready else None


def _has_work(row: Row) -> bool:
    """Whether a worker that joins will find a trial, now or as soon as one is handed back."""
    if row.study.confirms is not None:
        return row.requested == RUNNING and row.counts.unfinished > 0
    return row.requested == RUNNING and row.spent < 1


def _run(command: Sequence[str], requested: threading.Event) -> int:
    """Runs a command to its end; when asked to stop, lets it save its trials."""
    # In a session of its own: a Ctrl-C reaches it through us, once.
    process = subprocess.Popen(command, env=os.environ | supervisor_watch.environment(), start_new_session=True)
    while not requested.is_set():
        with suppress(subprocess.TimeoutExpired):
            return process.wait(0.2)
    process.send_signal(signal.SIGTERM)
    return process.wait()

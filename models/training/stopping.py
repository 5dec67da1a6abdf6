"""Ctrl-C, SIGTERM and a closed terminal as a request checked between steps; the second Ctrl-C stops at once."""

from __future__ import annotations

import _thread
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
"""What asks a process to end; the last one comes when its terminal is closed."""


class Stopped(Exception):
    """The run was asked to stop and has been saved."""


@contextmanager
def stop_requests() -> Iterator[threading.Event]:
    """Turns the SIGNALS into the event that is yielded, until the block ends; main thread only."""
    requested, asked = threading.Event(), False

    def request(number: int, frame: FrameType | None) -> None:
        nonlocal asked
        if asked and number == signal.SIGINT:
            raise KeyboardInterrupt
        asked = True
        # The thread that is interrupted here may hold the lock of the event: it would wait for itself.
        _thread.start_new_thread(requested.set, ())

    before = {number: signal.signal(number, request) for number in SIGNALS if not _is_ignored(number)}
    try:
        yield requested
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _is_ignored(number: signal.Signals) -> bool:
    """Whether a closed terminal is to end nothing, as under `nohup`."""
    return number == signal.SIGHUP and signal.getsignal(number) == signal.SIG_IGN

"""Ctrl-C and SIGTERM as a request that is looked at between steps; the second Ctrl-C stops at once."""

from __future__ import annotations

import _thread
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType


class Stopped(Exception):
    """The run was asked to stop and has been saved."""


@contextmanager
def stop_requests() -> Iterator[threading.Event]:
    """Turns SIGINT and SIGTERM into the event that is yielded, until the block ends; main thread only."""
    requested, asked = threading.Event(), False

    def request(number: int, frame: FrameType | None) -> None:
        nonlocal asked
        if asked and number == signal.SIGINT:
            raise KeyboardInterrupt
        asked = True
        # The thread that is interrupted here may hold the lock of the event: it would wait for itself.
        _thread.start_new_thread(requested.set, ())

    before = {number: signal.signal(number, request) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield requested
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)

"""Measures the seconds of training, without those in which the process was stopped, as at Ctrl-Z."""

from __future__ import annotations

import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType

_continuations = 0


class Lap:
    """The time since a moment, in seconds of a clock."""

    def __init__(self, clock: Callable[[], float] = time.perf_counter) -> None:
        self.clock, self.start, self.continuations = clock, clock(), _continuations

    def seconds(self, usual: float) -> float:
        """Returns the seconds of this lap; the `usual` ones if the process was stopped in it, who knows how long."""
        return usual if _continuations != self.continuations else self.clock() - self.start


@contextmanager
def noticing_stops() -> Iterator[None]:
    """Notices while the block runs that the process goes on after a stop, if this is its main thread."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGCONT, _note)
    signal.siginterrupt(signal.SIGCONT, False)  # as without a handler
    try:
        yield
    finally:
        signal.signal(signal.SIGCONT, before or signal.SIG_DFL)


def _note(number: int, frame: FrameType | None) -> None:
    global _continuations
    _continuations += 1

"""Long work that several processes need: one does it and reports progress, the others wait."""

from __future__ import annotations

import fcntl
import os
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from itertools import count
from pathlib import Path
from typing import IO

REPORT_SECONDS = 10.0
"""How often long work reports how far it is; what takes less reports nothing."""

POLL_SECONDS = 0.2
"""How often a waiting process looks whether the work is done."""

Report = Callable[[str], None]


@contextmanager
def alone(path: Path, report: Report, what: str) -> Iterator[None]:
    """Lets one process of this machine at a time do what `path` stands for; the others wait, and report it.

    The file at `path` is the lock, and gone afterwards. A process that dies lets go of it. Where no file can be
    created, no process waits.
    """
    file = _locked(path, report, what)
    try:
        yield
    finally:
        if file is not None:
            path.unlink(missing_ok=True)
            file.close()


def _locked(path: Path, report: Report, what: str) -> IO[str] | None:
    for tried in count():
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            file = path.open("a+")
        except OSError:
            return None
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            if tried == 1:
                report(f"waits for {_holder(file)}, which {what}")
            file.close()
            time.sleep(POLL_SECONDS)
            continue
        except OSError:  # a file system without locks
            file.close()
            return None
        if _is(file, path):
            file.truncate(0)
            file.write(str(os.getpid()))
            file.flush()
            return file
        file.close()  # its last holder has removed it
    return None


def _is(file: IO[str], path: Path) -> bool:
    with suppress(OSError):
        return os.path.samestat(os.fstat(file.fileno()), path.stat())
    return False


def _holder(file: IO[str]) -> str:
    file.seek(0)
    number = file.read()
    return f"process {number}" if number.isdigit() else "another process"


class Meter:
    """Reports every `seconds` how far some work on a text is, from a thread of its own."""

    def __init__(self, report: Report, seconds: float = REPORT_SECONDS) -> None:
        self.report, self.seconds = report, seconds
        self.begin("", 0)
        self.ended = threading.Event()

    @contextmanager
    def running(self) -> Iterator[Meter]:
        """Reports how far the work inside is."""
        thread = threading.Thread(target=self._run, daemon=True)
        thread.start()
        try:
            yield self
        finally:
            self.ended.set()
            thread.join()

    def begin(self, what: str, characters: int) -> None:
        """Begins another pass over a text."""
        self.what, self.characters, self.done, self.bytes = what, characters, 0, 0
        self.begun = time.monotonic()

    def passing(self, blocks: Iterable[str]) -> Iterator[str]:
        """Passes blocks of the text on, and counts each when the next one is asked for."""
        for block in blocks:
            yield block
            self.done += len(block)
            self.bytes += len(block.encode(errors="surrogatepass"))

    def _run(self) -> None:
        while not self.ended.wait(self.seconds):
            if self.done:
                speed = self.bytes / 1e6 / (time.monotonic() - self.begun)
                self.report(f"{self.what}: {self.done / self.characters:.0%}, {speed:.2g} MB/s")

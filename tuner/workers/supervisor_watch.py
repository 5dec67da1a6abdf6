"""Checks whether the supervisor of this process is still alive."""

from __future__ import annotations

import os
import threading
import time
from pathlib import Path

from models.files import is_running

SUPERVISOR = "TUNER_SUPERVISOR"
"""The variable by which a process learns who watches over it. Its parent's number alone would not do: a supervisor that
is killed while the process still imports is no longer its parent when it first looks."""

LOOK_SECONDS = 1.0


def environment() -> dict[str, str]:
    """Returns the variables by which a child process knows its supervisor: this process."""
    return {SUPERVISOR: str(os.getpid())}


class Lifeline:
    """The tie between this process and its supervisor; without one, its parent at this moment."""

    def __init__(self, supervisor: int | None = None) -> None:
        self.parent = os.getppid()
        self.supervisor = supervisor if supervisor != self.parent else None  # a launcher may stand between the two

    @property
    def is_cut(self) -> bool:
        """Whether the supervisor has ended."""
        gone = self.supervisor is not None and not is_running(self.supervisor)
        return gone or os.getppid() != self.parent

    @property
    def stands_still(self) -> bool:
        """Whether the supervisor was stopped, by Ctrl-Z for instance; False on systems without /proc."""
        try:
            stat = Path(f"/proc/{self.supervisor or self.parent}/stat").read_text()
        except OSError:
            return False
        return stat.rpartition(")")[2].split()[0] == "T"

    def end_with_it(self) -> None:
        """Ends this process, whatever it does, soon after its supervisor: for one that has nothing to save."""

        def watch() -> None:
            while not self.is_cut:
                time.sleep(LOOK_SECONDS)
            os._exit(1)

        threading.Thread(target=watch, name="lifeline", daemon=True).start()

"""A live view in a terminal: what is logged meanwhile stands above it, or in the file it is sent to."""

import os
import select
from collections.abc import Iterator
from contextlib import closing, contextmanager, redirect_stderr, redirect_stdout
from pathlib import Path
from typing import TextIO

import pytest
from rich.text import Text

from models import logs
from tuner.watch import live
from tuner.watch.live import View


class Board(View):
    """Shows one line."""

    def show(self) -> None:
        self.live.update(Text("the board"), refresh=True)


@pytest.fixture
def terminal(monkeypatch: pytest.MonkeyPatch, logging_as_before: None) -> Iterator[tuple[int, TextIO]]:
    """A terminal: what a person sees of it, and what a program writes to."""
    monkeypatch.setenv("TERM", "xterm")
    seen, written = os.openpty()
    with closing(os.fdopen(seen, "rb", buffering=0)), os.fdopen(written, "w") as stream:
        yield seen, stream


@contextmanager
def streams(out: TextIO, err: TextIO) -> Iterator[None]:
    with redirect_stdout(out), redirect_stderr(err):
        yield


def read(seen: int, until: str) -> str:
    """What a terminal shows, up to this text at least."""
    shown = ""
    while until not in shown:
        ready, _, _ = select.select([seen], [], [], 30)
        assert ready, shown
        shown += os.read(seen, 65536).decode()
    return shown


def test_what_is_logged_stands_above_a_live_view(terminal: tuple[int, TextIO]) -> None:
    seen, stream = terminal
    with streams(stream, stream):
        logs.configure("INFO", "text")
        with Board(transient=False) as board:
            board.look()
            read(seen, "the board")
            live.logger.warning("worker on cpu ended")
            after = read(seen, "the board")
    assert after.index("worker on cpu ended") < after.index("the board")


def test_what_is_logged_into_a_file_is_not_shown(terminal: tuple[int, TextIO], tmp_path: Path) -> None:
    seen, stream = terminal
    with (tmp_path / "log").open("w") as file, streams(stream, file):
        logs.configure("INFO", "json")
        with Board(transient=False) as board:
            live.logger.warning("worker on cpu ended")
            board.look()
    assert "worker on cpu ended" not in read(seen, "the board")
    assert '"message": "worker on cpu ended"' in (tmp_path / "log").read_text()

"""Makes the pictures of the README and of the documents from a real study, caught while it runs and at its end.

python docs/make_pictures.py

It takes as long as the quickstart, some minutes, needs Chromium and the test dependencies, and leaves nothing else.
"""

from __future__ import annotations

import argparse
import os
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import ExitStack, closing, contextmanager
from io import BytesIO, StringIO
from pathlib import Path
from typing import Any

from optuna.storages import RDBStorage
from PIL import Image
from playwright.sync_api import Locator, Page, expect, sync_playwright
from rich.console import Console
from rich.text import Text

from tuner.errors import StudyError
from tuner.results.summary import Snapshot, current
from tuner.storage.connection import open_storage
from tuner.storage.handle import open_study
from tuner.watch.tables import described, progress

PICTURES = Path(__file__).parent / "pictures"
STUDY = "quickstart"
COLUMNS = 160

FINISHED_WHEN_CAUGHT, COMPLETE_WHEN_CAUGHT = 12, 3
"""Trials at which the running study is caught."""

COLORS = 128
"""Colours that are kept of a page: a third of the bytes, without a visible difference."""

PATIENCE = 60_000
"""Milliseconds that a page may take on a busy machine."""


def main() -> None:
    argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter).parse_args()
    PICTURES.mkdir(exist_ok=True)
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        folder.chmod(0o755)  # as root, PostgreSQL runs as another user
        tuner = Tuner(folder)
        storage = stack.enter_context(open_storage(None, folder / "postgres"))
        page = stack.enter_context(browsed())
        address = stack.enter_context(tuner.dashboard())
        running = stack.enter_context(tuner.started("run", STUDY))
        now = caught(storage, running)
        draw("run", f"tuner run studies/{STUDY}.yaml", *last_lines(now), progress(now))
        draw("status", f"tuner status {STUDY}", Text.from_ansi(tuner.said("status", STUDY)))
        while_it_runs(page, address)
        if running.wait() != 0:
            raise SystemExit("the study did not come to its end")
        at_its_end(page, address, read(storage))
        tuner.said("report", STUDY)
        page.goto((folder / "report.html").as_uri())
        expect(page.locator(".js-plotly-plot .trace").first).to_be_attached()
        save("report", page)


class Tuner:
    """The command, in a folder of its own."""

    def __init__(self, folder: Path) -> None:
        places = {"TUNER_DATA": f"{folder}/postgres", "TUNER_ARTIFACTS": f"{folder}/artifacts"}
        terminal = {"FORCE_COLOR": "1", "TERM": "xterm-256color", "COLUMNS": str(COLUMNS)}
        kept = {name: value for name, value in os.environ.items() if not name.startswith("TUNER_")}
        self.how: dict[str, Any] = {"cwd": folder, "env": kept | places | terminal}

    def said(self, *arguments: str) -> str:
        """Returns what a command says to a terminal."""
        command = [sys.executable, "-m", "tuner", *arguments]
        done: subprocess.CompletedProcess[str] = subprocess.run(
            command, **self.how, stdout=subprocess.PIPE, text=True, check=True
        )
        return done.stdout

    @contextmanager
    def started(self, *arguments: str) -> Iterator[subprocess.Popen[bytes]]:
        """Starts a command, and ends it if it has not ended by itself."""
        command = [sys.executable, "-m", "tuner", *arguments]
        with subprocess.Popen(command, **self.how, stdout=subprocess.DEVNULL) as process:
            try:
                yield process
            finally:
                process.terminate()

    @contextmanager
    def dashboard(self) -> Iterator[str]:
        """Serves the dashboard; gives its address."""
        with closing(socket.create_server(("127.0.0.1", 0))) as free:
            port = free.getsockname()[1]
        with self.started("dashboard", "--port", str(port)):
            yield f"http://127.0.0.1:{port}"


@contextmanager
def browsed() -> Iterator[Page]:
    """A page of a browser."""
    expect.set_options(timeout=PATIENCE)
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=shutil.which("chromium"), args=["--no-sandbox"])
        page = browser.new_page(viewport={"width": 1200, "height": 980}, device_scale_factor=1.5)
        page.set_default_timeout(PATIENCE)
        yield page
        browser.close()


# The terminal.


def caught(storage: RDBStorage, running: subprocess.Popen[bytes]) -> Snapshot:
    """Waits until there is something to see, while all workers are in the middle of a trial."""
    while running.poll() is None:
        time.sleep(0.5)
        try:
            now = read(storage)
        except StudyError:  # not there yet
            continue
        enough = now.counts.finished >= FINISHED_WHEN_CAUGHT and now.counts.complete >= COMPLETE_WHEN_CAUGHT
        if enough and all(0.05 < (worker.progress or 0) < 0.9 for worker in now.workers):
            return now
    raise SystemExit("the study ended before it was caught; lower COMPLETE_WHEN_CAUGHT")


def read(storage: RDBStorage) -> Snapshot:
    """Returns the study at this moment. Raises StudyError."""
    return current(open_study(storage, STUDY))


def last_lines(now: Snapshot) -> list[Text]:
    """What the command has said of the last trials."""
    ended = [trial for trial in now.trials if trial.datetime_complete is not None]
    ended.sort(key=lambda trial: str(trial.datetime_complete))
    return [Text(described(trial, now.study, now.best)) for trial in ended[-8:]]


def draw(name: str, command: str, *shown: Any) -> None:
    """Draws what a terminal shows after a command."""
    console = Console(record=True, width=COLUMNS, force_terminal=True, highlight=False, file=StringIO())
    console.print(f"$ {command}", *shown, sep="\n", no_wrap=True, overflow="ellipsis", crop=True)
    console.save_svg(str(PICTURES / f"{name}.svg"), title="textgen-tuner")


# The browser.


def while_it_runs(page: Page, address: str) -> None:
    """The note of the study, and the operators' page; both on a phone, too."""
    page.goto(f"{address}/dashboard/studies/1/note")
    expect(page.get_by_text("last heartbeat")).to_be_visible()
    save("dashboard", page)
    page.set_viewport_size({"width": 1000, "height": 1250})
    page.goto(f"{address}/tuner/1")
    expect(page.get_by_role("heading", name="Workers")).to_be_visible()
    save("operator", page)
    page.set_viewport_size({"width": 390, "height": 844})
    save("operator-phone", page)
    page.goto(f"{address}/dashboard/studies/1/note")
    expect(page.get_by_text("last heartbeat")).to_be_attached()
    save("dashboard-phone", page)


def at_its_end(page: Page, address: str, now: Snapshot) -> None:
    """A figure of ours, and what is said of the best trial."""
    page.set_viewport_size({"width": 1500, "height": 3600})
    page.goto(f"{address}/dashboard/studies/1")
    figure = page.locator(".js-plotly-plot", has_text="Learning curves")
    expect(figure.locator(".trace").first).to_be_visible()
    save("learning-curves", figure)
    assert now.best is not None
    page.set_viewport_size({"width": 900, "height": 2000})
    page.goto(f"{address}/dashboard/studies/1/trials?numbers={now.best.number}")
    text = page.locator("pre").nth(1)
    expect(text).to_be_visible()
    end = text.bounding_box()
    assert end is not None
    page.set_viewport_size({"width": 900, "height": round(end["y"] + end["height"]) + 8})
    save("trial", page)
    page.set_viewport_size({"width": 1200, "height": 850})


def save(name: str, shown: Page | Locator) -> None:
    """Keeps a picture of a page, or of a part of it."""
    whole = Image.open(BytesIO(shown.screenshot(animations="disabled"))).convert("RGB")
    whole.quantize(COLORS, dither=Image.Dither.NONE).save(PICTURES / f"{name}.png", optimize=True)


if __name__ == "__main__":
    main()

"""Shows a study in a notebook: as a table, and live in one display that updates itself."""

from __future__ import annotations

import sys
from functools import cache
from types import TracebackType
from typing import Any, Self

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import escape

from models.safe_text import terminal
from models.wording import duration
from tuner.results import queries
from tuner.results.summary import Snapshot, quality, top_trials
from tuner.storage.handle import StudyHandle
from tuner.watch import tables
from tuner.watch.live import BOARD_ROWS, View

COLUMNS = [column for column in tables.LEADERBOARD if column != "tokens/s"]
"""What a notebook's leaderboard shows: its lines are shorter than a terminal's."""


def in_notebook() -> bool:
    """Whether this process is the kernel of a notebook."""
    module = sys.modules.get("IPython")  # where it was not imported, this is no kernel
    shell = None if module is None else module.get_ipython()
    return getattr(shell, "kernel", None) is not None


def html(now: Snapshot, notice: str = "") -> str:
    """Returns a study as HTML for a notebook. What comes from a study or a model is escaped, never markup."""
    return str(
        _template().render(
            name=terminal.line(now.study.name),
            state=now.state,
            done=now.done,
            spent=f"{now.spent:.0%}",
            left="" if now.seconds_left is None else f"about {duration(now.seconds_left)} left",
            best="" if now.best is None else _best(now),
            hints=tables.hints(now),
            notice=terminal.line(notice),
            workers=[(worker.number, tables.activity(worker)) for worker in now.workers],
            columns=COLUMNS,
            rows=list(map(tables.board_row, top_trials(now, BOARD_ROWS))),
            line=terminal.line,
        )
    )


class NotebookView(View):
    """Looks at a study now and then and redraws it in one display of a notebook."""

    def __init__(self, study: StudyHandle) -> None:
        super().__init__(transient=True)
        self.is_live = False
        self.study = study
        self.last: Snapshot | None = None
        self._display: Any = None

    def show(self) -> None:
        now = queries.in_short(self.study, BOARD_ROWS)
        self.study.rename(now.study.name)
        self.last = now
        self._draw(html(now))

    def say(self, text: str) -> None:
        """Shows a line until the next look."""
        alone = f"<div><em>{escape(terminal.line(text))}</em></div>"
        self._draw(alone if self.last is None else html(self.last, text))

    def _draw(self, drawn: str) -> None:
        from IPython import display

        shown = {"text/html": drawn, "text/plain": repr(self.study.name)}
        if self._display is None:
            self._display = display.DisplayHandle()
            self._display.display(shown, raw=True)
        else:
            self._display.update(shown, raw=True)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Leaves the last drawing where it is."""


def _best(now: Snapshot) -> str:
    assert now.best is not None
    return f"{quality(now.best):.4f} bits per byte, trial {now.best.number}  {tables.configured(now.best)}"


@cache
def _template() -> Any:
    loader = PackageLoader("tuner.watch")
    environment = Environment(loader=loader, autoescape=True, undefined=StrictUndefined, trim_blocks=True)
    return environment.get_template("notebook.html")

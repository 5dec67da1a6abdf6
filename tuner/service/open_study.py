"""A study that is open: what scripts and notebooks read, steer, and export."""

from __future__ import annotations

import atexit
import os
import threading
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from functools import partial
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self

from models.errors import UserError
from models.training.stopping import stop_requests
from tuner.control import removal, steering
from tuner.errors import StudyError
from tuner.results import analysis, confirmation, export, queries, summary
from tuner.results.kept_runs import require_run
from tuner.results.records import TrialRecord, frame
from tuner.results.states import FAILED, FINISHED, IDLE
from tuner.service.search import Search
from tuner.storage.handle import StudyHandle
from tuner.storage.leases import STOPPED
from tuner.storage.locations import StorageOptions
from tuner.study.definition import OBJECTIVES
from tuner.watch import html_report, notebook, status_json
from tuner.watch.live import BOARD_ROWS, REDRAW_SECONDS, Unseen, View, Watcher
from tuner.workers.options import WorkerOptions
from tuner.workers.supervisor import Interrupted, Supervisor

if TYPE_CHECKING:
    import optuna
    import pandas
    import plotly.graph_objects as go

    from models.runs.run import Run

SHORTEST_PAUSE = 0.1
"""Seconds between two looks at a study that is watched."""


class OpenStudy:
    """A study of the database, as `tuner.run` and `tuner.load_study` return it.

    It holds the database open, and the embedded PostgreSQL running: close it, or use it in a `with` block. All of its
    methods raise StorageError when the database is away, and `tuner.storage.leases.Gone` when the study was deleted.
    """

    def __init__(self, handle: StudyHandle, places: StorageOptions, crew: WorkerOptions, held: ExitStack) -> None:
        """`crew` are the workers that this process starts for the study; `held` is closed with it."""
        self._handle, self._places, self._crew, self._held = handle, places, crew, held
        self._stop = threading.Event()
        self._thread: threading.Thread | None = None
        self._error: BaseException | None = None
        self._reason: str | None = None
        self._closed = False
        atexit.register(self.close)

    # What it is

    @property
    def name(self) -> str:
        """Its name in the database."""
        return self._handle.name

    @property
    def state(self) -> str:
        """In one word, what it is doing: running, idle, paused, stopped, failed, confirming or finished."""
        return summary.current(self._handle).state

    def status(self) -> dict[str, Any]:
        """Returns what `tuner status --json` prints of the study: trials, budget, workers, the best trials."""
        document: dict[str, Any] = status_json.study_document(self._handle)["study"]
        return document

    @property
    def optuna(self) -> optuna.Study:
        """Optuna's own study, for `optuna.visualization` and your own plots; do not change the study through it."""
        return self._handle.optuna_study

    # What it found

    @property
    def trials(self) -> list[TrialRecord]:
        """All trials, by number."""
        return [TrialRecord.of(trial) for trial in self._handle.trials()]

    def trials_frame(self) -> pandas.DataFrame:
        """Returns all trials as a pandas frame. Raises ImportError where pandas is not installed."""
        return frame(self.trials)

    def leaderboard(self, rows: int | None = None) -> list[TrialRecord]:
        """Returns the completed trials that keep the study's limits, the best one first."""
        return [TrialRecord.of(trial) for trial in summary.leaderboard(self._handle.trials())[:rows]]

    @property
    def best(self) -> TrialRecord | None:
        """The trial that `export` writes: the confirmed one, or else the first of the leaderboard; None before one."""
        best = analysis.best(self.optuna, self._handle.trials())
        return None if best is None else TrialRecord.of(best.trial)

    def curves(self) -> dict[int, dict[int, float]]:
        """Returns the bits per byte at each rung, from 1, of each trial by its number."""
        return {record.number: record.rungs for record in self.trials if record.rungs}

    @property
    def confirmation(self) -> dict[str, Any] | None:
        """What the last confirmation found; None without one."""
        return self.optuna.user_attrs.get("confirmation")

    def figures(self) -> dict[str, go.Figure]:
        """Returns the figures of the report, as plotly draws them, by name; without those of which nothing is known."""
        return html_report.figures(self._handle.definition, self._handle.trials())[0]

    def plot(self, name: str = "learning-curves") -> go.Figure:
        """Returns one of `figures`, which a notebook shows. Raises StudyError that lists the ones there are."""
        drawn = self.figures()
        if name not in drawn:
            there = f"there are: {', '.join(drawn)}" if drawn else "there are none before a trial has reached a rung"
            raise StudyError(f"study {self.name}: no figure {name}; {there}")
        return drawn[name]

    # Steering; each returns a sentence that says what will happen

    def pause(self) -> str:
        """Makes all workers of the study, on all machines, save their trials and wait."""
        return steering.pause(self._handle)

    def resume(self) -> str:
        """Continues a paused or stopped study."""
        return steering.resume(self._handle)

    def stop(self) -> str:
        """Makes all workers of the study, on all machines, save their trials and leave."""
        return steering.stop(self._handle)

    def retry(self, trial: int) -> str:
        """Tries the configuration of a failed or pruned trial again. Raises StudyError."""
        return steering.retry(self._handle, trial)

    def enqueue(self, **values: Any) -> str:
        """Tries these values next, such as learning_rate=0.003; the sampler chooses the others. Raises StudyError."""
        return steering.enqueue(self._handle, values)

    def rename(self, name: str) -> str:
        """Gives the study another name; workers continue, and files stay where they are. Raises StudyError."""
        return removal.rename(self._handle, name)

    def delete(self) -> None:
        """Deletes the study, its confirmation and all their files, for good, and closes it.

        Raises StudyError while workers train it, those of this process included: stop it first.
        """
        removal.delete(self._handle, self._places.artifacts_of)
        self.close()

    # Results

    def export(
        self,
        path: str | os.PathLike[str] = "best.yaml",
        *,
        trial: int | None = None,
        prefer: str = OBJECTIVES[0],
        format: str = "yaml",
        force: bool = False,
    ) -> Path:
        """Writes the best configuration, or that of one trial, to a file that `tuner train` reads; returns its path.

        `prefer` is bits_per_byte or text_divergence, `format` yaml, json, flags or env. An earlier export of the study
        is replaced, another file only with `force`. Raises StudyError or RunError.
        """
        path = Path(path)
        chosen = export.chosen_trial(self.optuna, trial, prefer)
        export.write_new(path, export.exported(self._handle, chosen, path, format), force, self.name)
        return path

    def copy_run(self, folder: str | os.PathLike[str], *, trial: int | None = None, force: bool = False) -> Path:
        """Copies the run folder of the best trial, or of one whose model is kept; returns where it is now.

        Raises StudyError, WorkerError or RunError.
        """
        chosen = export.chosen_trial(self.optuna, trial)
        export.copy_run(chosen, self._kept_run(chosen.number), Path(folder), force)
        return Path(folder)

    def load_run(self, *, trial: int | None = None, device: str = "cpu") -> Run:
        """Returns the trained model of the best trial, or of one whose model is kept, ready to write.

        Raises StudyError or WorkerError.
        """
        from models.runs.run import load

        return load(self._kept_run(export.chosen_trial(self.optuna, trial).number), device)

    def report(self, path: str | os.PathLike[str] = "report.html", *, force: bool = False) -> Path:
        """Writes the results to one HTML file that opens anywhere; returns its path. Raises RunError."""
        path = Path(path)
        html_report.require_free(path, force, self.name)
        html = html_report.report(self._handle, self._places.artifacts_of(self.optuna))
        html_report.write(path, html, force, self.name)
        return path

    def confirm(self, *, top: int | None = None, seeds: int = 3) -> dict[str, Any]:
        """Trains the best trials again with fresh seeds, chooses among them, and returns what came out.

        `top` is 5 by default, or as many as there are. Raises StudyError or WorkerError, and KeyboardInterrupt after
        Ctrl-C, when the workers have saved what they trained: the same call continues.
        """
        chosen = confirmation.candidates(self.optuna, top)
        with _interruptible():
            return self._search(Watcher).confirm(self._handle, chosen, seeds)

    # The workers of this process

    def search(self, *, confirm: int = 2, wait: bool = True) -> None:
        """Lets workers of this process search until the study ends, then confirms the `confirm` best trials.

        With `wait=False` they work in the background: see `wait`. Ctrl-C makes them save their trials, then raises
        KeyboardInterrupt. Raises StudyError while a search is running, and WorkerError when all workers failed.
        """
        if self.is_searching:
            raise StudyError(f"study {self.name}: a search is running in this process; wait for it, or close the study")
        if wait:
            with _interruptible():
                self._run(self._search(Watcher), confirm)
            return
        search = self._search(Unseen)
        self._thread = threading.Thread(target=self._run_apart, args=(search, confirm), daemon=True)
        self._thread.start()

    @property
    def is_searching(self) -> bool:
        """Whether workers that this process started in the background are at work."""
        return self._thread is not None and self._thread.is_alive()

    def wait(self, timeout: float | None = None) -> str | None:
        """Waits for a search in the background, at most `timeout` seconds; returns why it ended, None if it has not.

        Raises what ended it, such as WorkerError.
        """
        if self._thread is not None:
            self._thread.join(timeout)
            if self._thread.is_alive():
                return None
        if self._error is not None:
            error, self._error = self._error, None
            raise error
        return self._reason

    def watch(self, seconds: float = REDRAW_SECONDS) -> None:
        """Shows the study every `seconds`, until it ends: live in a notebook and in a terminal, as lines elsewhere.

        Ctrl-C, or a notebook's stop button, ends the watching; a search in the background goes on.
        """
        kind = notebook.NotebookView if notebook.in_notebook() else partial(Watcher, board=True)
        with suppress(KeyboardInterrupt), kind(self._handle) as view:
            while True:
                searching = self.is_searching
                if view.look() and not searching and self._has_ended(view.last):
                    return
                self._rest(max(seconds, SHORTEST_PAUSE))

    def _has_ended(self, now: summary.Snapshot | None) -> bool:
        """Whether nothing more is to come; to an idle study workers may still come, unless it was searched here."""
        searched_here = self._thread is not None
        return now is not None and now.state in (FINISHED, STOPPED, FAILED, *([IDLE] if searched_here else []))

    def _rest(self, seconds: float) -> None:
        """Waits, no longer than a search in the background takes."""
        if self._thread is not None and self._thread.is_alive():
            self._thread.join(seconds)
        else:
            self._stop.wait(seconds)

    def close(self) -> None:
        """Ends the workers of this process, which save their trials, and closes the database."""
        if self._closed:
            return
        self._closed = True
        atexit.unregister(self.close)
        self._stop.set()
        if self._thread is not None:
            self._thread.join()
        self._held.close()

    def _search(self, view: type[View]) -> Search:
        """The workers of this process. Ctrl-C is heard by those that the main thread waits for."""
        slots = self._crew.slots(self._handle.definition)
        waited_for = view is Watcher and threading.current_thread() is threading.main_thread()
        stop = stop_requests if waited_for else self._closing
        self._places.require_usable()
        return Search(Supervisor(self._handle.storage, self._places, self._crew, stop=stop), slots, view)

    def _run(self, search: Search, confirm: int) -> None:
        self._reason = search.run(self._handle)
        search.confirm_in_short(self._handle, confirm)

    def _run_apart(self, search: Search, confirm: int) -> None:
        try:
            self._run(search, confirm)
        except Interrupted as stopped:
            self._reason = f"stopped; {stopped}"
        except BaseException as error:  # for `wait`
            self._error = error

    @contextmanager
    def _closing(self) -> Iterator[threading.Event]:
        """The event that `close` sets."""
        yield self._stop

    def _kept_run(self, number: int) -> Path:
        return require_run(self._places.artifacts_of(self.optuna), self.optuna, number)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def __repr__(self) -> str:
        if self._closed:
            return f"<OpenStudy {self.name!r}: closed>"
        now = summary.current(self._handle)
        best = self.best
        found = "" if best is None else f", best {best.bits_per_byte:.4f} bits per byte (trial {best.number})"
        return f"<OpenStudy {self.name!r}: {now.state}, {now.done} trials{found}>"

    def _repr_html_(self) -> str | None:
        """What a notebook shows of it; where it is closed, deleted or out of reach, its `repr`."""
        if self._closed:
            return None
        try:
            return notebook.html(queries.in_short(self._handle, BOARD_ROWS))
        except UserError:
            return None


@contextmanager
def _interruptible() -> Iterator[None]:
    """Raises KeyboardInterrupt for a Ctrl-C, after which the workers have saved their trials."""
    try:
        yield
    except Interrupted as stopped:
        raise KeyboardInterrupt(f"stopped; {stopped}") from None

"""A search by workers of this process: until the budget is spent, then a short confirmation of the best trials."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from optuna.trial import FrozenTrial

from models.files import reason
from models.wording import counted
from tuner.errors import StudyError, WorkerError
from tuner.results import confirmation
from tuner.results.kept_runs import fetched
from tuner.results.summary import current
from tuner.storage.handle import StudyHandle
from tuner.workers.processes import Slot
from tuner.workers.supervisor import Supervisor, Watcher

if TYPE_CHECKING:
    from models.training.metrics import Score

logger = logging.getLogger(__name__)

FEWEST_CONFIRMED, SHORT_SEEDS = 3, 2
"""Completed trials from which on a search confirms the best of them, and the fresh seeds it takes for each."""


@dataclass
class Search:
    """The workers of this process, and what shows their studies."""

    supervisor: Supervisor
    slots: Sequence[Slot]
    view: Callable[[StudyHandle], AbstractContextManager[Watcher]]
    corpus_path: str | Path | None = None
    """Where the text is on this machine, if elsewhere than the study says."""

    def run(self, study: StudyHandle, begins: str | None = None) -> str:
        """Lets the workers work until the study ends; returns why it ended. `begins` is said at the start.

        Raises what `Supervisor.supervise` raises.
        """
        reason = study.why_ended()
        if reason is not None:  # workers would take a while to start, only to find that
            with self.view(study) as view:
                view.say(f"study {study.name}: {reason}; there is nothing to train")
            return reason
        if begins is None:
            begins = (
                f"{counted(len(self.slots), 'worker')} on {', '.join(sorted({slot.device for slot in self.slots}))}"
            )
        return self._supervise(study, self.slots, begins)

    def confirm(self, study: StudyHandle, chosen: Sequence[FrozenTrial], seeds: int) -> confirmation.Result:
        """Returns what the confirmation of these trials found: what is stored, or what the workers find out now."""
        result = confirmation.stored(study.optuna_study, chosen, seeds)
        if result is not None:
            return result
        companion = confirmation.enter(study, chosen, seeds)
        kept = self.supervisor.places.writable_artifacts_of(companion.optuna_study)
        slots = self.slots[: len(chosen) * seeds]
        best = f"the best {len(chosen)} again, with {seeds} fresh seeds each"
        self._supervise(companion, slots, f"{counted(len(slots), 'worker')} for {best}")
        score = partial(_tested, "cpu" if slots[0].device == "cpu" else "auto")
        trained = companion.optuna_study
        result = confirmation.conclude(study.optuna_study, trained, chosen, seeds, partial(fetched, kept), score)
        for number in confirmation.runs_of_others(trained, result):
            kept.remove_run(number)
        return result

    def confirm_in_short(self, study: StudyHandle, top: int) -> None:
        """Confirms the `top` best trials of a finished search; what goes wrong there takes nothing from the search."""
        now = current(study)
        if now.spent < 1 or not top:
            return
        if now.counts.complete < FEWEST_CONFIRMED:
            logger.warning("Not confirmed: fewer than %d trials were completed.", FEWEST_CONFIRMED)
            return
        try:
            self.confirm(study, confirmation.candidates(study.optuna_study, None)[:top], SHORT_SEEDS)
        except (StudyError, WorkerError) as error:
            logger.warning("Not confirmed: %s", error)

    def _supervise(self, study: StudyHandle, slots: Sequence[Slot], begins: str) -> str:
        kept = self.supervisor.places.writable_artifacts_of(study.optuna_study)
        arguments = [study.name, *(["--corpus", str(self.corpus_path)] if self.corpus_path else [])]
        return self.supervisor.supervise(study, kept, slots, begins, arguments, self.view(study))


def _tested(device: str, run_folder: Path) -> Score | None:
    """The score of a run on the test split; None, and a warning, as where the text is not on this machine."""
    from models.runs.run import score_test

    try:
        return score_test(run_folder, device)
    except Exception as error:  # the choice stands without it
        logger.warning("%s: not scored on the test split: %s", run_folder, reason(error))
        return None

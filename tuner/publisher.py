"""Publishes figures of all studies to the dashboard while they run, in the dashboard's process."""

from __future__ import annotations

import threading

import optuna
from optuna.storages import RDBStorage
from optuna_dashboard import save_plotly_graph_object

from tuner import plots
from tuner.courier import is_outage
from tuner.ledger import Ledger
from tuner.study import stored_study

REFRESH_SECONDS = 5.0
"""How often figures are looked after."""


class Publisher(threading.Thread):
    """Draws the figures of all studies anew when trials have ended, so that no worker has to."""

    def __init__(self, storage: RDBStorage) -> None:
        super().__init__(name="publisher", daemon=True)
        self.storage = storage
        self.ended = threading.Event()
        self.drawn: dict[str, tuple[optuna.Study, int]] = {}

    def run(self) -> None:
        while not self.ended.is_set():
            try:
                self.publish()
            except Exception as error:
                if not is_outage(error):
                    raise
            self.ended.wait(REFRESH_SECONDS)

    def publish(self) -> None:
        """Draws the figures of studies in which trials were completed since the last time."""
        for name in optuna.get_all_study_names(self.storage):
            study, before = self.drawn.get(name) or (optuna.load_study(study_name=name, storage=self.storage), 0)
            complete = Ledger(self.storage, study._study_id).counts().complete
            if complete != before:  # counting is cheap, reading trials is not
                self._draw(study)
            self.drawn[name] = (study, complete)

    def _draw(self, study: optuna.Study) -> None:
        definition = stored_study(study.user_attrs["study"])
        for name, figure in plots.dashboard_figures(definition, study.get_trials(deepcopy=False)).items():
            save_plotly_graph_object(study, figure, graph_object_id=name)

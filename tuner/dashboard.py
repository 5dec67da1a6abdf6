"""The Optuna dashboard on the tuner's storage."""

from __future__ import annotations

import threading
from collections.abc import Callable
from socketserver import ThreadingMixIn
from typing import TYPE_CHECKING
from wsgiref.simple_server import WSGIRequestHandler, WSGIServer, make_server

import optuna
from optuna.storages import RDBStorage
from optuna_dashboard import save_plotly_graph_object, wsgi

from tuner import plots
from tuner.courier import is_outage
from tuner.errors import WorkerError
from tuner.ledger import Ledger

if TYPE_CHECKING:
    from optuna.artifacts._protocol import ArtifactStore

REFRESH_SECONDS = 5.0
"""How often figures are looked after."""


class _Threading(ThreadingMixIn, WSGIServer):
    """One thread for each connection: browsers open some that they use later, and nobody else must wait for those."""

    daemon_threads = True


class _Quiet(WSGIRequestHandler):
    def log_message(self, format: str, *arguments: object) -> None:
        """Says nothing of each request."""


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
        figure = plots.quality_and_diversity(study.get_trials(deepcopy=False))
        if figure is not None:
            save_plotly_graph_object(study, figure, graph_object_id="quality-and-diversity")


def serve(storage: RDBStorage, attachments: ArtifactStore, host: str, port: int, on_ready: Callable[[], None]) -> None:
    """Serves until Ctrl-C; raises WorkerError when the port is taken."""
    application = wsgi(storage, artifact_store=attachments)
    try:
        server = make_server(host, port, application, server_class=_Threading, handler_class=_Quiet)
    except OSError as error:
        raise WorkerError(f"{host}:{port}: {error.strerror}; choose another --port") from error
    with server:
        publisher = Publisher(storage)
        publisher.start()
        on_ready()
        try:
            server.serve_forever()
        finally:
            publisher.ended.set()
            publisher.join()

"""The Optuna dashboard on the tuner's storage."""

from __future__ import annotations

from collections.abc import Callable
from socketserver import ThreadingMixIn
from typing import TYPE_CHECKING
from wsgiref.simple_server import WSGIRequestHandler, WSGIServer, make_server

from optuna.storages import RDBStorage
from optuna_dashboard import wsgi

from tuner.errors import WorkerError
from tuner.publisher import Publisher

if TYPE_CHECKING:
    from optuna.artifacts._protocol import ArtifactStore


class _Threading(ThreadingMixIn, WSGIServer):
    """One thread for each connection: browsers open some that they use later, and nobody else must wait for those."""

    daemon_threads = True


class _Quiet(WSGIRequestHandler):
    def log_message(self, format: str, *arguments: object) -> None:
        """Says nothing of each request."""


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

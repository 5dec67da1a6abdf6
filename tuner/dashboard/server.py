"""The HTTP server: cheroot with TLS, which gives silent connections no thread."""

from __future__ import annotations

import logging
import ssl
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cheroot import wsgi
from cheroot.server import HeaderReader, HTTPConnection, HTTPRequest
from cheroot.ssl.builtin import BuiltinSSLAdapter

from tuner.errors import ServerConfigError, WorkerError

if TYPE_CHECKING:
    from _typeshed.wsgi import WSGIApplication

THREADS = 24
MOST_CONNECTIONS = 200
MOST_HEADER_BYTES = 32 * 1024


class _Headers(HeaderReader):
    """Leaves out X_Forwarded_For, which a proxy lets through and WSGI cannot tell from X-Forwarded-For."""

    def _allow_header(self, key_name: bytes) -> bool:  # cheroot has such a class, which fails in each request
        return b"_" not in key_name


class _Request(HTTPRequest):
    header_reader = _Headers()


class _Connection(HTTPConnection):
    RequestHandlerClass = _Request

    def communicate(self) -> bool:
        try:
            return bool(super().communicate())  # type: ignore[no-untyped-call]
        except ssl.SSLError:  # the handshake failed, or the client speaks plain HTTP
            return False


class _Certificate(BuiltinSSLAdapter):
    """Leaves the handshake to the thread that reads the request: in the one that accepts, all would wait for it."""

    def wrap(self, sock: Any) -> tuple[Any, dict[str, str]]:
        wrapped = self.context.wrap_socket(sock, server_side=True, do_handshake_on_connect=False)
        return wrapped, {"wsgi.url_scheme": "https", "HTTPS": "on"}


class Server(wsgi.Server):
    """Serves an application at an address; `prepare` binds it, `serve` goes on until `stop`."""

    ConnectionClass = _Connection
    keep_alive_conn_limit = MOST_CONNECTIONS
    max_request_header_size = MOST_HEADER_BYTES

    def __init__(self, host: str, port: int, application: WSGIApplication, most_bytes: int) -> None:
        super().__init__((host, port), application, numthreads=THREADS, server_name="tuner", request_queue_size=64)
        self.max_request_body_size = most_bytes
        self.address, self.refusal = f"{host}:{port}", ""

    def certify(self, certificate: Path, key: Path) -> None:
        """Serves TLS with these files. Raises ServerConfigError."""
        for path in (certificate, key):
            if not path.is_file():
                raise ServerConfigError(f"{path}: no such file")
        try:
            self.ssl_adapter = _Certificate(str(certificate), str(key))
        except (ssl.SSLError, OSError) as error:
            raise ServerConfigError(f"{certificate}, {key}: not a certificate and its key ({error})") from error

    def prepare(self) -> None:
        """Takes the address. Raises WorkerError when it is taken."""
        try:
            super().prepare()
        except OSError as error:
            raise WorkerError(f"{self.address}: {self.refusal or error}; choose another --port") from error

    def bind(self, *arguments: Any) -> Any:
        try:
            return super().bind(*arguments)
        except OSError as error:
            self.refusal = str(error.strerror)
            raise

    @staticmethod
    def bind_socket(socket_: Any, bind_addr: Any) -> Any:
        """Binds a socket, and closes one that cannot be, as cheroot does not."""
        try:
            socket_.bind(bind_addr)
        except OSError:
            socket_.close()
            raise
        return socket_

    def process_conn(self, conn: Any) -> None:
        """Gives a connection to a thread once something has come: browsers open some that they use later."""
        if conn.last_used is None:
            self._connections.put(conn)  # type: ignore[attr-defined]
        else:
            super().process_conn(conn)

    def error_log(self, msg: str = "", level: int = logging.INFO, traceback: bool = False) -> None:
        """Says nothing of each request or lost connection."""
        if level >= logging.ERROR:
            super().error_log(msg, level, traceback)

"""A dashboard that is served as `tuner dashboard` serves it, and a client that asks it what browsers do not."""

from __future__ import annotations

import http.client
import re
import ssl
import threading
from collections.abc import Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlencode

from optuna.storages import RDBStorage
from werkzeug.datastructures import Headers
from werkzeug.security import generate_password_hash

from tests.tuner.conftest import Heard
from tuner.artifacts.store import Artifacts
from tuner.dashboard.app import ServerConfig, server

PASSWORD = "correct horse"
QUICK = generate_password_hash(PASSWORD, "scrypt:128:8:1")
"""A hash that costs nothing."""

USERS = f"# who may enter\nolga:operator:{QUICK}\n\nrolf:reader:{QUICK}\n"


@dataclass
class Answer:
    status: int
    headers: Headers
    text: str

    @property
    def cookie(self) -> str:
        """The session that an answer begins."""
        return self.headers["Set-Cookie"].partition(";")[0]


class Client:
    """Asks one server; follows nothing, keeps nothing."""

    def __init__(self, host: str, port: int, said: list[str], context: ssl.SSLContext | None = None) -> None:
        self.host, self.port, self.said, self.context = host, port, said, context

    @property
    def address(self) -> str:
        return f"http{'s' if self.context else ''}://{self.host}:{self.port}"

    def ask(self, method: str, path: str, body: Any = None, **headers: str) -> Answer:
        """Asks with headers, written with _ for -; a mapping is sent as a form."""
        given = {name.replace("_", "-"): value for name, value in headers.items()}
        if isinstance(body, dict):
            body = urlencode(body)
            given.setdefault("Content-Type", "application/x-www-form-urlencoded")
        with closing(self._connection()) as connection:
            connection.request(method, path, body, given)
            response = connection.getresponse()
            return Answer(response.status, Headers(response.getheaders()), response.read().decode(errors="replace"))

    def get(self, path: str, **headers: str) -> Answer:
        return self.ask("GET", path, **headers)

    def log_in(self, name: str, password: str = PASSWORD, **headers: str) -> Answer:
        return self.ask("POST", "/login", {"name": name, "password": password}, **headers)

    def cookie(self, name: str) -> str:
        return self.log_in(name).cookie

    def _connection(self) -> http.client.HTTPConnection:
        if self.context is None:
            return http.client.HTTPConnection(self.host, self.port, timeout=30)
        return http.client.HTTPSConnection(self.host, self.port, timeout=30, context=self.context)


@contextmanager
def served(storage: RDBStorage, folder: Path, context: ssl.SSLContext | None = None, **door: Any) -> Iterator[Client]:
    """Serves a dashboard at a free port of this machine, with this door."""
    made = server(storage, Artifacts(folder / "study").attachments(), ServerConfig(port=0, **door))
    made.prepare()
    thread = threading.Thread(target=made.serve)
    thread.start()
    try:
        with Heard() as said:
            yield Client(*made.bind_addr, said, context)  # type: ignore[call-arg]
    finally:
        made.stop()
        thread.join()


def written(path: Path, text: str, mode: int = 0o600) -> Path:
    path.write_text(text)
    path.chmod(mode)
    return path


def said_on(page: str) -> str:
    """What a page of ours tells in answer to a form."""
    found = re.search(r'<p class="(?:said|problem)"[^>]*>(.*?)</p>', page, re.DOTALL)
    return found[1] if found else ""

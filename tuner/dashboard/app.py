"""The WSGI application: Optuna's dashboard behind our login, with our pages beside it."""

from __future__ import annotations

import logging
import socket
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from optuna.storages import RDBStorage
from optuna_dashboard import wsgi
from werkzeug.middleware.proxy_fix import ProxyFix

from tuner.dashboard.auth import MOST_BYTES, Authenticator, AuthMiddleware
from tuner.dashboard.compression import CompressionMiddleware
from tuner.dashboard.error_middleware import ErrorMiddleware
from tuner.dashboard.importance import ImportanceMiddleware
from tuner.dashboard.narrow_screens import NarrowScreenMiddleware
from tuner.dashboard.pages import Kept, application, is_away
from tuner.dashboard.publisher import Publisher
from tuner.dashboard.rate_limit import RateLimiter
from tuner.dashboard.security_headers import is_loopback
from tuner.dashboard.server import Server
from tuner.dashboard.sessions import Sessions, session_key
from tuner.dashboard.users import ReloadingFile, User, Users, parse_password, parse_users, warn_if_open
from tuner.errors import ServerConfigError
from tuner.storage.leases import Leases
from tuner.study.definition import is_ours

if TYPE_CHECKING:
    from _typeshed.wsgi import WSGIApplication

    from tuner.optuna_internals import ArtifactStore

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class ServerConfig:
    """Where the dashboard is served, and who may log in; without users, every user of this machine has access."""

    host: str = "127.0.0.1"
    port: int = 8080
    users_file: Path | None = None
    login: str | None = None
    operator_password_file: Path | None = None
    session_key_file: Path | None = None
    certificate: Path | None = None
    key: Path | None = None
    behind_proxy: bool = False

    @property
    def is_locked(self) -> bool:
        """Whether a login is required."""
        return bool(self.users_file or self.login or self.operator_password_file)

    def require_safe(self) -> None:
        """Raises ServerConfigError for a server that would be open to other machines, or that cannot start."""
        users = "give users, who then have to log in: --users FILE, with lines that `tuner password NAME` prints"
        if not self.is_locked and not is_loopback(self.host):
            raise ServerConfigError(
                f"{self.host}: anyone who can reach this address could stop and delete studies; {users}"
            )
        if not self.is_locked and self.behind_proxy:
            raise ServerConfigError(
                f"--behind-proxy: anyone who can reach the proxy could stop and delete studies; {users}"
            )
        if (self.certificate is None) != (self.key is None):
            raise ServerConfigError("--certificate and --key: give both, or none")

    @property
    def address(self) -> str:
        """Where a browser on this machine finds it, or one elsewhere when it is served to all."""
        host = socket.gethostname() if self.host in ("0.0.0.0", "::") else self.host
        scheme = "http" if self.certificate is None else "https"
        return f"{scheme}://{f'[{host}]' if ':' in host else host}:{self.port}"

    def users(self) -> Users:
        """All users that may enter. Raises ServerConfigError."""
        sources: list[Callable[[], dict[str, User]]] = []
        if self.users_file is not None:
            sources.append(ReloadingFile(self.users_file, parse_users).current)
        if self.operator_password_file is not None:
            sources.append(ReloadingFile(self.operator_password_file, parse_password).current)
        if self.login:
            given = parse_users(self.login, "TUNER_LOGIN")
            sources.append(lambda: given)
        return Users(sources)


def guarded(
    storage: RDBStorage, attachments: ArtifactStore, door: ServerConfig, kept: Kept | None = None
) -> WSGIApplication:
    """Returns the whole application: Optuna's dashboard and our pages, behind the door. Raises ServerConfigError.

    `kept` returns the artifacts of a study, for the texts in its report.
    """
    door.require_safe()
    key = session_key(door.session_key_file)
    lock = Authenticator(Sessions(key, door.users()), RateLimiter()) if door.is_locked else None
    dashboard = ErrorMiddleware(wsgi(storage, artifact_store=attachments), partial(is_away, storage))
    optunas = NarrowScreenMiddleware(ImportanceMiddleware(dashboard, partial(completed, storage)))
    gate = AuthMiddleware(application(storage, lock, key, kept), CompressionMiddleware(optunas), lock)
    return ProxyFix(gate, x_for=1, x_proto=1) if door.behind_proxy else gate


def completed(storage: RDBStorage, study_id: int) -> int | None:
    """Returns how many trials of a study are complete; None if there is none or it is not the tuner's."""
    try:
        attributes = storage.get_study_user_attrs(study_id)
    except KeyError:
        return None
    return Leases(storage, study_id).counts().complete if is_ours(attributes) else None


def server(storage: RDBStorage, attachments: ArtifactStore, door: ServerConfig, kept: Kept | None = None) -> Server:
    """Returns a server of the whole application. Raises ServerConfigError."""
    made = Server(door.host, door.port, guarded(storage, attachments, door, kept), MOST_BYTES)
    if door.certificate is not None and door.key is not None:
        made.certify(door.certificate, door.key)
        warn_if_open(door.key)
    elif door.is_locked and not door.behind_proxy and not is_loopback(door.host):
        logger.warning("passwords travel in clear text: give --certificate and --key, or put a proxy with TLS in front")
    return made


def serve(
    storage: RDBStorage,
    attachments: ArtifactStore,
    door: ServerConfig,
    on_ready: Callable[[], None],
    kept: Kept | None = None,
) -> None:
    """Serves until Ctrl-C. Raises ServerConfigError, and WorkerError when the port is taken."""
    made = server(storage, attachments, door, kept)
    made.prepare()
    publisher = Publisher(storage)
    publisher.start()
    try:
        on_ready()
        made.serve()
    finally:
        made.stop()
        publisher.ended.set()
        publisher.join()

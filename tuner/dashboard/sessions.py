"""Login sessions: signed cookies that end after twelve hours, at log-out, or with the user's password."""

from __future__ import annotations

import hashlib
import hmac
import secrets
import time
from pathlib import Path

from itsdangerous import BadData, URLSafeTimedSerializer

from tuner.dashboard.users import User, Users, read_text
from tuner.errors import ServerConfigError

SECONDS = 12 * 3600
SHORTEST_KEY = 32


def session_key(path: Path | None) -> str:
    """Returns the key in a file, or a random one, with which all sessions end when the dashboard does."""
    if path is None:
        return secrets.token_hex(32)
    key = read_text(path).strip()
    if len(key) < SHORTEST_KEY:
        raise ServerConfigError(
            f"{path}: a key of fewer than {SHORTEST_KEY} characters; make one: openssl rand -hex 32"
        )
    return key


class Sessions:
    """Sessions of users; what a cookie says is believed when we have signed it."""

    def __init__(self, key: str, users: Users, seconds: float = SECONDS) -> None:
        self.key, self.users, self.seconds = key, users, seconds
        self._signer = URLSafeTimedSerializer(key, salt="session", signer_kwargs={"digest_method": hashlib.sha256})
        self._ended: dict[str, float] = {}

    def begin(self, user: User) -> str:
        """Returns the cookie of a new session."""
        return str(self._signer.dumps([secrets.token_hex(8), user.name, self._mark(user)]))

    def user(self, cookie: str) -> User | None:
        """Returns whose session a cookie is, if it still is one."""
        told = self._told(cookie)
        user = None if told is None else self.users.find(told[1])
        if told is None or user is None or told[0] in self._ended:
            return None
        return user if hmac.compare_digest(told[2], self._mark(user)) else None

    def end(self, cookie: str) -> None:
        """Ends a session, also for anyone who has copied its cookie."""
        told, now = self._told(cookie), time.monotonic()
        if told is not None:
            kept = {session: ended for session, ended in self._ended.items() if now - ended < self.seconds}
            self._ended = kept | {told[0]: now}

    def _told(self, cookie: str) -> tuple[str, str, str] | None:
        try:
            session, name, mark = self._signer.loads(cookie, max_age=int(self.seconds))
        except BadData:
            return None
        return session, name, mark

    def _mark(self, user: User) -> str:
        """What changes with the user's password."""
        return hmac.digest(self.key.encode(), user.hash.encode(), "sha256").hex()[:32]

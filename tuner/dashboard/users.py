"""Users of the dashboard: lines of name:role:hash, read again when their file changes."""

from __future__ import annotations

import logging
import os
import re
import secrets
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from werkzeug.security import check_password_hash, generate_password_hash

from tuner.errors import ServerConfigError

logger = logging.getLogger(__name__)

READER, OPERATOR = "reader", "operator"
NAME = r"[A-Za-z0-9][A-Za-z0-9._@-]{0,63}"
FEWEST_CHARACTERS = 8
HASHED_AT_ONCE = 2
"""Passwords hashed at the same time: each takes 32 MiB and a tenth of a second, and strangers can ask for it."""

MOUNTED = Path("/run/secrets")
"""Where a container finds its secrets: as open as they must be to be read there, in a folder that its host closes."""

_LINE = re.compile(rf"({NAME}):({READER}|{OPERATOR}):(scrypt:([0-9]{{1,7}}):([0-9]{{1,2}}):([0-9]{{1,2}})\$\S+\$\S+)")
_MOST_MEMORY = 2**28


@dataclass(frozen=True)
class User:
    """A person who may enter."""

    name: str
    role: str
    hash: str

    @property
    def may_change(self) -> bool:
        """Whether this is an operator; a reader may only look."""
        return self.role == OPERATOR


ANONYMOUS = User("", OPERATOR, "")
"""The user of every request where no login is required."""


def line(name: str, role: str, password: str) -> str:
    """Returns the line of a user. Raises ServerConfigError."""
    if not re.fullmatch(NAME, name):
        raise ServerConfigError(
            f"{name!r}: a name has letters, digits and . _ @ -, at most 64 of them, and begins with no sign"
        )
    return f"{name}:{role}:{generate_password_hash(_good(password, 'the password'))}"


def _good(password: str, where: str) -> str:
    if len(password) < FEWEST_CHARACTERS:
        raise ServerConfigError(f"{where}: shorter than {FEWEST_CHARACTERS} characters")
    return password


def parse_users(text: str, where: str) -> dict[str, User]:
    """Returns users by name, from a line each; empty lines and # comments are left out. Raises ServerConfigError."""
    users: dict[str, User] = {}
    for number, written in enumerate(text.splitlines(), 1):
        if written.strip() and not written.startswith("#"):
            user = _parsed(written.strip(), f"{where}, line {number}")
            if user.name in users:
                raise ServerConfigError(f"{where}, line {number}: {user.name} stands there twice")
            users[user.name] = user
    if not users:
        raise ServerConfigError(f"{where}: no users in it; make one with `tuner password NAME`")
    return users


def _parsed(written: str, where: str) -> User:
    found = _LINE.fullmatch(written)
    if found is None:  # and do not show the line: it may hold a password
        raise ServerConfigError(
            f"{where}: not name:reader:hash or name:operator:hash, as `tuner password NAME` prints it"
        )
    cost, block, lanes = map(int, found.group(4, 5, 6))
    if cost < 128 or cost & (cost - 1) or not block or not lanes or 128 * cost * block * lanes > _MOST_MEMORY:
        raise ServerConfigError(f"{where}: its hash takes more than {_MOST_MEMORY >> 20} MiB, or is none")
    return User(*found.group(1, 2, 3))


def parse_password(text: str, where: str) -> dict[str, User]:
    """Returns one operator, named operator, whose plain password the text is."""
    password = _good(text.rstrip("\r\n"), where)
    return {OPERATOR: User(OPERATOR, OPERATOR, generate_password_hash(password))}


class ReloadingFile:
    """A file of users; it is read again when it has changed, and a bad change is told and leaves things as they are."""

    def __init__(self, path: Path, parse: Callable[[str, str], dict[str, User]]) -> None:
        self.path, self.parse = path, parse
        self.stamp: object = None
        self.stamp, self.users = self._stamp(), self._read()
        warn_if_open(path)

    def current(self) -> dict[str, User]:
        """Returns the users as the file has them now."""
        stamp = self._stamp()
        if stamp != self.stamp:
            self.stamp = stamp
            try:
                self.users = self._read()
            except ServerConfigError as error:
                logger.warning("%s; the users stay as they were", error)
        return self.users

    def _stamp(self) -> object:
        try:
            found = self.path.stat()
        except OSError:
            return None
        return found.st_mtime_ns, found.st_size, found.st_ino

    def _read(self) -> dict[str, User]:
        return self.parse(read_text(self.path), str(self.path))


def read_text(path: Path) -> str:
    """Returns what a file of secrets holds. Raises ServerConfigError."""
    try:
        return path.read_text(encoding="utf-8")
    except OSError as error:
        raise ServerConfigError(f"{path}: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise ServerConfigError(f"{path}: not UTF-8 text") from error


def warn_if_open(path: Path) -> None:
    """Warns of a file of secrets that every user of this machine may read; of a container's, its host takes care."""
    if os.name == "posix" and path.parent != MOUNTED and path.stat().st_mode & 0o004:
        logger.warning("%s: every user of this machine may read it; chmod 640 keeps it to you and your group", path)


class Users:
    """All users there are, and whether a password is theirs."""

    def __init__(
        self,
        sources: Sequence[Callable[[], dict[str, User]]],
        check: Callable[[str, str], bool] = check_password_hash,
    ) -> None:
        """`check` tells whether a hash is that of a password."""
        self.sources, self.check = sources, check
        self._turn = threading.BoundedSemaphore(HASHED_AT_ONCE)
        named = [name for source in sources for name in source()]
        doubled = sorted({name for name in named if named.count(name) > 1})
        if doubled:
            raise ServerConfigError(f"users that are given in several places: {', '.join(doubled)}")
        known = next(iter(sources[0]().values()))
        self._unknown = generate_password_hash(secrets.token_hex(), known.hash.partition("$")[0])

    def find(self, name: str) -> User | None:
        """Returns the user of that name."""
        return next((users[name] for users in (source() for source in self.sources) if name in users), None)

    def verified(self, name: str, password: str) -> User | None:
        """Returns the user if the password is right; for an unknown one it takes as long to say no."""
        user = self.find(name)
        with self._turn:
            right = self.check(self._unknown if user is None else user.hash, password)
        return user if right else None

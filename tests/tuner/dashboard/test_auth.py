"""Who comes through the dashboard's door, with what, from where; on a real socket and a real database."""

import base64
import json
import os
import pty
import re
import socket
import ssl
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing
from pathlib import Path
from typing import Any

import optuna
import pytest
from click.testing import CliRunner, Result
from optuna.distributions import BaseDistribution, FloatDistribution
from optuna.storages import RDBStorage
from optuna.trial import TrialState
from optuna_dashboard import wsgi
from werkzeug.wrappers import Request

from tests.tuner.conftest import WRITTEN, Heard
from tests.tuner.dashboard.serving import PASSWORD, QUICK, USERS, Answer, Client, said_on, served, written
from tuner import cli
from tuner.artifacts.store import Artifacts
from tuner.dashboard import app, rate_limit
from tuner.dashboard.app import ServerConfig
from tuner.dashboard.auth import CHANGES, is_served
from tuner.dashboard.pages import safe_next
from tuner.dashboard.rate_limit import RateLimiter
from tuner.dashboard.sessions import Sessions, session_key
from tuner.dashboard.users import Users, parse_password, parse_users
from tuner.errors import ServerConfigError
from tuner.results import queries, summary
from tuner.storage.blocking import Blockage
from tuner.storage.connection import open_storage
from tuner.storage.leases import Leases
from tuner.study.definition import Study
from tuner.watch import tables

Small = Callable[..., Study]
Enter = Callable[[Study], optuna.Study]


@pytest.fixture(scope="module")
def locked(storage: RDBStorage, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Client]:
    folder = tmp_path_factory.mktemp("locked")
    with served(storage, folder, users_file=written(folder / "users", USERS)) as client:
        yield client


@pytest.fixture(scope="module")
def unlocked(storage: RDBStorage, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Client]:
    with served(storage, tmp_path_factory.mktemp("unlocked")) as client:
        yield client


@pytest.fixture(scope="module")
def reader(locked: Client) -> str:
    return locked.cookie("rolf")


@pytest.fixture(scope="module")
def operator(locked: Client) -> str:
    return locked.cookie("olga")


@pytest.fixture
def found(small: Small, enter: Enter) -> optuna.Study:
    return enter(small())


def basic(name: str, password: str = PASSWORD) -> str:
    return "Basic " + base64.b64encode(f"{name}:{password}".encode()).decode()


def page_of(found: optuna.Study) -> str:
    return f"/tuner/{found._study_id}"


def state_of(found: optuna.Study, storage: RDBStorage) -> str:
    return Leases(storage, found._study_id).state()


def test_pages_tell_which_study_waits_for_a_lock_and_for_whom(
    unlocked: Client, found: optuna.Study, monkeypatch: pytest.MonkeyPatch
) -> None:
    blocked = Blockage(7, "ada<b>", None, 3, "host", 1, 1, 12.3)
    monkeypatch.setattr(queries, "blockages", lambda connection, workers: {found._study_id: blocked})
    assert "A worker has waited 12 s for worker 3 (process 1 on host, " in unlocked.get(page_of(found)).text
    assert "ada&lt;b&gt;" in unlocked.get(page_of(found)).text
    assert "<dt>blocked for</dt><dd>0:00:12</dd>" in unlocked.get("/tuner/").text
    monkeypatch.undo()
    assert "has waited" not in unlocked.get(page_of(found)).text


# Without a login.

BEHIND = [
    *("/", "/dashboard", "/dashboard/studies/1", "/api/studies", "/api/meta", "/static/bundle.js", "/favicon.ico"),
    *(
        "/tuner",
        "/tuner/",
        "/tuner/1",
        "/metrics",
        "/csv/1",
        "/artifacts/1/1/a",
        "/incompatible-rdb-schema",
        "/nothing",
    ),
    *("/login/", "/healthz/", "/./dashboard", "/%6cogin/x", "/login/../dashboard", "/LOGIN"),
]


@pytest.mark.parametrize("method", ["GET", "HEAD", "POST", "PUT", "DELETE", "OPTIONS", "TRACE"])
def test_nothing_is_served_without_a_login(locked: Client, method: str) -> None:
    for path in BEHIND:
        answer = locked.ask(method, path)
        assert answer.status in (303, 401, 405), answer
        assert answer.headers.get("Location", "/login").startswith("/login")


def test_the_login_page_and_the_health_are_served_without_a_login(locked: Client) -> None:
    assert 'type="password"' in locked.get("/login").text
    assert locked.get("/login/style.css").headers["Content-Type"].startswith("text/css")
    assert locked.get("/healthz").text == "fine\n"


def test_who_is_sent_to_the_login_comes_back_to_the_page_that_was_asked(locked: Client) -> None:
    sent = locked.get("/dashboard/studies/7?tab=a%20b").headers["Location"]
    page = locked.get(sent).text
    (where,) = re.findall(r'name="next" value="([^"]*)"', page)
    assert where == "/dashboard/studies/7?tab=a%20b"
    answer = locked.ask("POST", "/login", {"name": "rolf", "password": PASSWORD, "next": where})
    assert (answer.status, answer.headers["Location"]) == (303, where)


@pytest.mark.parametrize(
    "elsewhere",
    [
        *("//evil.example", "https://evil.example/", "/\\evil.example", "\\\\evil.example", "/\t/evil.example", "//"),
        *("evil.example", "", "///evil.example", "/%0d\n", "http:evil.example", "/\x7f", "javascript:x", "https:/evil"),
    ],
)
def test_a_login_leads_to_pages_of_ours_alone(elsewhere: str) -> None:
    assert safe_next(elsewhere) == "/dashboard"


# Passwords.


@pytest.mark.parametrize(
    ("name", "password"), [("olga", "wrong"), ("nobody", PASSWORD), ("", ""), ("olga\0", PASSWORD)]
)
def test_a_wrong_login_is_refused_and_begins_nothing(locked: Client, name: str, password: str) -> None:
    answer = locked.log_in(name, password)
    assert (answer.status, said_on(answer.text)) == (403, "Name or password is wrong.")
    assert "Set-Cookie" not in answer.headers


def test_an_unknown_user_is_hashed_like_a_known_one() -> None:
    methods: list[str] = []

    def check(stored: str, password: str) -> bool:
        methods.append(stored.partition("$")[0])
        return False

    known = parse_users(f"olga:operator:{QUICK}", "users")
    some = Users([lambda: known], check)
    assert some.verified("olga", "x") is some.verified("nobody", "x") is None
    assert methods == ["scrypt:128:8:1"] * 2


def test_guessing_is_stopped_and_a_right_password_then_waits_too(storage: RDBStorage, tmp_path: Path) -> None:
    with served(storage, tmp_path, users_file=written(tmp_path / "users", USERS)) as client:
        assert [client.log_in("olga", f"guess {number}").status for number in range(6)] == [403] * 5 + [429]
        late = client.log_in("olga")
        assert late.status == 429
        assert int(late.headers["Retry-After"]) <= 31
        assert client.get("/metrics", Authorization=basic("olga")).status == 429
        assert client.log_in("rolf").status == 303
        assert client.said == ["a wrong login from 127.0.0.1"] * 5


def test_right_logins_are_not_counted_and_time_heals_wrong_ones() -> None:
    now = [0.0]
    some = RateLimiter(lambda: now[0])
    for _ in range(100):
        assert some.take("10.0.0.1", "olga") == 0
        some.give_back("10.0.0.1", "olga")
    assert [some.take("10.0.0.1", "olga") > 0 for _ in range(6)] == [False] * 5 + [True]
    now[0] = rate_limit.OF_USER.seconds
    assert [some.take("10.0.0.1", "olga") > 0 for _ in range(2)] == [False, True]
    assert some.take("10.0.0.2", "olga") == 0


@pytest.mark.parametrize("address", ["10.0.0.1", "2001:db8::{}"])
def test_an_address_that_guesses_names_is_stopped_too(address: str) -> None:
    some = RateLimiter(lambda: 0.0)
    waits = [some.take(address.format(number), f"user{number}") > 0 for number in range(40)]
    assert waits == [False] * 30 + [True] * 10


def test_what_is_remembered_of_guesses_is_bounded() -> None:
    some = RateLimiter(most_kept=10)
    for number in range(100):
        some.take(f"10.0.0.{number}", "x" * 1000)
    assert len(some) == 10


# Users.


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("olga", "line 2: not name:reader:hash"),
        (f"olga:king:{QUICK}", "line 2: not name:reader:hash"),
        ("olga:reader:secret-in-clear", "line 2: not name:reader:hash"),
        (f":reader:{QUICK}", "line 2: not name:reader:hash"),
        (f"ol ga:reader:{QUICK}", "line 2: not name:reader:hash"),
        ("olga:reader:scrypt:1048576:16:1$salt$00", "line 2: its hash takes more than 256 MiB"),
        ("olga:reader:scrypt:15:8:1$salt$00", "line 2: its hash"),
        (f"rolf:operator:{QUICK}", "line 2: rolf stands there twice"),
    ],
)
def test_a_malformed_line_is_refused_by_its_number_and_not_shown(line: str, message: str) -> None:
    with pytest.raises(ServerConfigError) as caught:
        parse_users(f"rolf:reader:{QUICK}\n{line}\n", "users")
    assert str(caught.value).startswith(f"users, {message}")
    assert "secret-in-clear" not in str(caught.value)


def test_a_file_without_users_is_refused() -> None:
    with pytest.raises(ServerConfigError, match="no users in it"):
        parse_users("# nobody\n", "users")


def test_a_file_that_others_may_read_is_warned_of(tmp_path: Path) -> None:
    with Heard() as said:
        ServerConfig(users_file=written(tmp_path / "users", USERS, 0o640)).users()
        assert said == []
        ServerConfig(users_file=written(tmp_path / "users", USERS, 0o644)).users()
    assert said == [
        f"{tmp_path / 'users'}: every user of this machine may read it; chmod 640 keeps it to you and your group"
    ]


def test_a_secret_of_a_container_is_as_open_as_it_must_be(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tuner.dashboard.users.MOUNTED", tmp_path)
    with Heard() as said:
        ServerConfig(users_file=written(tmp_path / "users", USERS, 0o644)).users()
    assert said == []


def test_users_come_from_a_file_the_environment_and_a_secret_together(tmp_path: Path) -> None:
    door = ServerConfig(
        users_file=written(tmp_path / "users", USERS),
        login=f"eva:reader:{QUICK}\nuwe:reader:{QUICK}",
        operator_password_file=written(tmp_path / "secret", "from a secret\n"),
    )
    some = door.users()
    assert [user.role for name in ("olga", "rolf", "eva", "uwe", "operator") if (user := some.find(name))] == [
        *("operator", "reader", "reader", "reader", "operator")
    ]
    assert some.verified("operator", "from a secret") == some.find("operator")
    assert some.verified("operator", "from a secret\n") is None
    with pytest.raises(ServerConfigError, match="in several places: olga"):
        ServerConfig(users_file=door.users_file, login=f"olga:reader:{QUICK}").users()


def test_a_short_or_missing_secret_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ServerConfigError, match="shorter than 8 characters"):
        parse_password("1234567\n", "secret")
    with pytest.raises(ServerConfigError, match=r"none: No such file or directory"):
        ServerConfig(users_file=tmp_path / "none").users()


# Sessions.


def test_a_session_begins_with_a_cookie_that_scripts_and_other_pages_do_not_get(locked: Client) -> None:
    told = locked.log_in("rolf").headers["Set-Cookie"]
    assert {"HttpOnly", "Path=/", "SameSite=Lax", "Max-Age=43200"} <= set(told.split("; "))
    assert told.startswith("tuner=")
    assert locked.get("/tuner/", Cookie=told.partition(";")[0]).status == 200


@pytest.mark.parametrize(
    "cookie", ["tuner=", "tuner=x.y.z", "other=1", 'tuner="\\000"', "tuner=WyJhIiwib2xnYSIsImIiXQ.a.b"]
)
def test_a_cookie_that_we_did_not_sign_is_none(locked: Client, cookie: str) -> None:
    assert locked.get("/tuner/", Cookie=cookie).status == 303


def test_a_log_out_ends_the_session_for_copies_of_its_cookie_too(locked: Client) -> None:
    cookie, other = locked.cookie("rolf"), locked.cookie("rolf")
    answer = locked.ask("POST", "/logout", {}, Cookie=cookie)
    assert (answer.status, answer.headers["Location"]) == (303, "/login")
    assert "Max-Age=0" in answer.headers["Set-Cookie"]
    assert locked.get("/tuner/", Cookie=cookie).status == 303
    assert locked.get("/tuner/", Cookie=other).status == 200


def test_sessions_end_when_the_password_changes_or_the_user_goes(storage: RDBStorage, tmp_path: Path) -> None:
    path = written(tmp_path / "users", USERS)
    with served(storage, tmp_path, users_file=path) as client:
        olga, rolf = client.cookie("olga"), client.cookie("rolf")

        def still() -> list[int]:
            return [client.get("/tuner/", Cookie=cookie).status for cookie in (olga, rolf)]

        assert still() == [200, 200]
        written(path, f"olga:reader:{QUICK}\nrolf:reader:{QUICK.replace('$', '$x', 1)}\n# changed\n")
        assert still() == [200, 303]
        assert client.ask("POST", "/tuner/1/pause", {}, Cookie=olga).status == 403  # no operator any more
        written(path, "nonsense")
        assert still() == [200, 303]
        assert client.said[-1].endswith("; the users stay as they were")
        written(path, f"eva:reader:{QUICK}")
        assert still() == [303, 303]


def test_sessions_have_an_age_and_a_key(tmp_path: Path) -> None:
    known = parse_users(USERS, "users")
    some = Users([lambda: known])
    key = session_key(written(tmp_path / "key", "k" * 32 + "\n"))
    cookie = Sessions(key, some).begin(known["olga"])
    assert Sessions(key, some).user(cookie) == known["olga"]  # as after a restart
    assert Sessions(key, some, seconds=-1).user(cookie) is None
    assert Sessions(session_key(None), some).user(cookie) is None
    with pytest.raises(ServerConfigError, match="fewer than 32 characters"):
        session_key(written(tmp_path / "key", "short"))


# Roles.

CHANGING = [
    ("POST", "/api/studies"),
    ("POST", "/api/studies/1/rename"),
    ("DELETE", "/api/studies/1"),
    ("PUT", "/api/studies/1/note"),
    ("POST", "/api/trials/1/tell"),
    ("POST", "/api/trials/1/user-attrs"),
    ("POST", "/api/artifacts/1"),
    ("DELETE", "/api/artifacts/1/1/a"),
    ("POST", "/incompatible-rdb-schema"),
    ("POST", "/tuner/1/pause"),
    ("POST", "/tuner/1/enqueue"),
]


def test_a_reader_may_only_look(locked: Client, reader: str) -> None:
    for method, path in CHANGING:
        answer = locked.ask(method, path, "{}", Cookie=reader, Content_Type="application/json")
        assert answer.status == 403
        assert "rolf may only look; an operator may do this." in answer.text
        if path.startswith("/api/"):
            assert json.loads(answer.text)["reason"]  # what Optuna's dashboard shows
            assert locked.ask(method, path, "{}", Authorization=basic("rolf")).status == 403


def test_an_operator_may_change_what_optunas_dashboard_changes(
    locked: Client, operator: str, found: optuna.Study
) -> None:
    note = json.dumps({"version": 1, "body": "promising"})
    path = f"/api/studies/{found._study_id}"
    assert locked.ask("PUT", f"{path}/note", note, Cookie=operator, Content_Type="application/json").status == 204
    assert json.loads(locked.get(path, Cookie=operator).text)["note"]["body"] == "promising"


CLOSED = [
    ("POST", "/api/studies"),
    ("POST", "/api/trials/{trial}/tell"),
    ("POST", "/api/trials/{trial}/tell/"),
    ("POST", "/api/trials/{trial}/user-attrs"),
    ("POST", "/api/studies/{study}/{trial}/skip"),
    ("POST", "/api/studies/{study}/preference"),
    ("POST", "/api/studies/{study}/preference/1"),
    ("DELETE", "/api/studies/{study}/preference/1"),
    ("PUT", "/api/studies/{study}/preference_feedback_component"),
    ("POST", "/api/llm/trial_filter_query"),
    ("POST", "/incompatible-rdb-schema"),
]


@pytest.mark.parametrize(("method", "path"), CLOSED)
def test_what_workers_alone_do_is_closed_to_operators_too(
    locked: Client, unlocked: Client, operator: str, found: optuna.Study, method: str, path: str
) -> None:
    trial = found.ask()
    where = path.format(study=found._study_id, trial=trial._trial_id)
    body = json.dumps({"state": "Complete", "values": [0.0001], "user_attrs": {"configuration": {}}, "study_name": "x"})
    for client, login in ((locked, {"Cookie": operator}), (unlocked, {})):
        answer = client.ask(method, where, body, Content_Type="application/json", **login)
        assert answer.status == 403
        assert "Only workers do this" in answer.text
    assert found.trials[-1].state == TrialState.RUNNING
    assert found.trials[-1].user_attrs == {}


def test_every_change_that_optunas_dashboard_offers_is_decided_on(storage: RDBStorage) -> None:
    offered = {(route.method, route.rule) for route in wsgi(storage).routes if route.method in CHANGES}
    names = {"study_id:int": "1", "trial_id:int": "2", "history_id": "x", "artifact_id:re:[0-9a-fA-F-]+": "0a-1"}
    served = set()
    for method, rule in offered:
        path = rule
        for name, value in names.items():
            path = path.replace(f"<{name}>", value)
        assert "<" not in path
        if is_served(Request({"REQUEST_METHOD": method, "PATH_INFO": path})):
            served.add((method, path))
    assert served == {
        ("POST", "/api/studies/1/rename"),
        ("DELETE", "/api/studies/1"),
        ("PUT", "/api/studies/1/note"),
        ("PUT", "/api/studies/1/2/note"),
        ("POST", "/api/artifacts/1"),
        ("POST", "/api/artifacts/1/2"),
        ("DELETE", "/api/artifacts/1/0a-1"),
        ("DELETE", "/api/artifacts/1/2/0a-1"),
    }
    assert len(offered) == 20


def test_programs_send_name_and_password_where_programs_ask(locked: Client) -> None:
    for path in ("/metrics", "/api/studies"):
        answer = locked.get(path, Authorization=basic("rolf"))
        assert answer.status == 200
        assert "Set-Cookie" not in answer.headers
        assert locked.get(path, Authorization=basic("rolf", "wrong")).status == 401
    assert locked.get("/tuner/", Authorization=basic("rolf")).status == 303
    assert locked.get("/metrics").headers["WWW-Authenticate"] == 'Basic realm="tuner"'
    assert "Basic" not in locked.get("/api/studies").headers["WWW-Authenticate"]  # browsers would open a window


# Foreign pages.

FOREIGN = [
    {"Sec_Fetch_Site": "cross-site"},
    {"Sec_Fetch_Site": "same-site"},
    {"Origin": "https://evil.example"},
    {"Origin": "null"},
    {"Origin": "http://127.0.0.1"},
    {"Origin": ""},
]


@pytest.mark.parametrize("headers", FOREIGN, ids=str)
@pytest.mark.parametrize("login", ["cookie", "password", "none"])
def test_what_a_foreign_page_asks_is_refused_whatever_the_login(
    locked: Client, unlocked: Client, operator: str, login: str, headers: dict[str, str]
) -> None:
    given = {"cookie": {"Cookie": operator}, "password": {"Authorization": basic("olga")}, "none": {}}[login]
    client = unlocked if login == "none" else locked
    for method, path in [*CHANGING, ("POST", "/login"), ("POST", "/logout")]:
        answer = client.ask(method, path, "{}", Content_Type="application/json", **given, **headers)
        assert answer.status == 403
        assert "comes from a page that is none of ours" in answer.text


def test_our_own_pages_and_programs_are_not_foreign(
    locked: Client, operator: str, found: optuna.Study, storage: RDBStorage
) -> None:
    for own in ({"Origin": locked.address}, {"Sec_Fetch_Site": "same-origin", "Origin": "null"}, {}):
        assert locked.ask("POST", f"{page_of(found)}/pause", {}, Cookie=operator, **own).status == 303
    assert state_of(found, storage) == "paused"


@pytest.mark.parametrize("host", ["evil.example", "127.0.0.1.evil.example", "10.0.0.1:80", "", "[", "localhost.evil"])
def test_without_a_login_a_name_that_is_not_this_machines_is_refused(unlocked: Client, host: str) -> None:
    for path in ("/dashboard", "/api/studies", "/metrics", "/healthz"):
        assert unlocked.get(path, Host=host).status in (400, 403)


@pytest.mark.parametrize("host", ["localhost:8080", "127.0.0.1", "[::1]:80", "LOCALHOST"])
def test_without_a_login_this_machine_is_open_to_itself(unlocked: Client, host: str) -> None:
    for path in ("/dashboard", "/api/studies", "/tuner/", "/metrics", "/healthz"):
        assert unlocked.get(path, Host=host).status == 200
    assert unlocked.get("/login").headers["Location"] == "/tuner/"


# What browsers are told.


@pytest.mark.parametrize(
    "path", ["/dashboard", "/api/studies", "/tuner/", "/login", "/healthz", "/nothing", "/metrics"]
)
def test_every_answer_is_protected(locked: Client, operator: str, path: str) -> None:
    told = locked.get(path, Cookie=operator).headers
    assert told["X-Content-Type-Options"] == "nosniff"
    assert told["Referrer-Policy"] == "same-origin"
    assert told["Cache-Control"] == "no-store"
    assert "frame-ancestors 'none'" in told["Content-Security-Policy"]
    assert "unsafe-inline" not in told["Content-Security-Policy"].partition("style-src")[0]
    assert told["Server"] == "tuner"
    assert "Strict-Transport-Security" not in told
    assert len(told.getlist("Content-Security-Policy")) == 1


def test_an_uploaded_page_runs_nothing_and_is_read_by_no_other(
    locked: Client, operator: str, found: optuna.Study
) -> None:
    body = {"file": "data:text/html;base64," + base64.b64encode(b"<script>1</script>").decode(), "filename": "x.html"}
    uploads, kind = f"/api/artifacts/{found._study_id}", {"Content_Type": "application/json"}
    artifact = json.loads(locked.ask("POST", uploads, json.dumps(body), Cookie=operator, **kind).text)["artifact_id"]
    answer = locked.get(f"/artifacts/{found._study_id}/{artifact}", Cookie=operator)
    assert answer.text == "<script>1</script>"
    assert "default-src 'none'" in answer.headers["Content-Security-Policy"]
    assert "sandbox" in answer.headers["Content-Security-Policy"]
    assert "Access-Control-Allow-Origin" not in answer.headers


def test_large_requests_are_refused(locked: Client, operator: str) -> None:
    assert locked.ask("POST", "/login", {"name": "x" * 20_000, "password": "y"}).status == 413
    too_long = {"Cookie": operator, "Content_Length": str(9 * 2**20)}
    assert locked.ask("POST", "/api/studies", **too_long).status == 413
    assert locked.ask("POST", "/api/studies", iter([b"{}"]), Cookie=operator).status == 411
    assert locked.get("/" + "x" * 40_000).status in (413, 414)


def test_silent_connections_keep_nobody_waiting(locked: Client) -> None:
    with ExitStack() as stack:
        for _ in range(60):
            stack.enter_context(closing(socket.create_connection((locked.host, locked.port))))
        assert locked.get("/healthz").status == 200


# TLS and proxies.


@pytest.fixture(scope="module")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    folder = tmp_path_factory.mktemp("certificate")
    made, key = folder / "certificate.pem", folder / "key.pem"
    command = [
        "openssl",
        "req",
        "-x509",
        "-newkey",
        "ec",
        "-pkeyopt",
        "ec_paramgen_curve:prime256v1",
        "-nodes",
        "-days",
        "2",
        "-subj",
        "/CN=tuner",
    ]
    names = ["-addext", "subjectAltName=IP:127.0.0.1,DNS:tuner.example"]
    subprocess.run([*command, *names, "-keyout", key, "-out", made], check=True, capture_output=True)
    return made, key


def test_tls_is_served_from_certificate_files(
    storage: RDBStorage, tmp_path: Path, certificate: tuple[Path, Path]
) -> None:
    made, key = certificate
    context = ssl.create_default_context(cafile=str(made))
    door = {"users_file": written(tmp_path / "users", USERS), "certificate": made, "key": key}
    with served(storage, tmp_path, context, **door) as client:
        silent = socket.create_connection((client.host, client.port))  # says no hello: nobody else waits for it
        plain = Client(client.host, client.port, [])
        with closing(silent):
            told = client.log_in("olga")
            assert told.status == 303
            assert told.headers["Set-Cookie"].startswith("__Host-tuner=")
            assert "Secure" in told.headers["Set-Cookie"].split("; ")
            assert client.get("/tuner/", Cookie=told.cookie).status == 200
            named = client.get("/login", Host="tuner.example").headers
            assert named["Strict-Transport-Security"] == "max-age=31536000"
            assert "Strict-Transport-Security" not in client.get("/login").headers  # other programs are here, too
            with pytest.raises(OSError, match=r"closed|reset|Remote end"):
                plain.get("/login")
            assert client.get("/healthz").status == 200


def test_a_certificate_that_cannot_be_used_is_refused(
    storage: RDBStorage, tmp_path: Path, certificate: tuple[Path, Path]
) -> None:
    made, key = certificate
    attachments = Artifacts(tmp_path / "study").attachments()
    for door, message in [
        (ServerConfig(certificate=made, key=tmp_path / "none"), "none: no such file"),
        (ServerConfig(certificate=key, key=made), "not a certificate and its key"),
        (ServerConfig(certificate=made), "--certificate and --key: give both"),
    ]:
        with pytest.raises(ServerConfigError, match=message):
            app.server(storage, attachments, door)


def test_behind_a_proxy_it_knows_who_asks_and_that_it_is_tls(storage: RDBStorage, tmp_path: Path) -> None:
    with served(storage, tmp_path, users_file=written(tmp_path / "users", USERS), behind_proxy=True) as client:
        outside = {"X_Forwarded_Proto": "https", "X_Forwarded_For": "10.9.9.9, 203.0.113.7", "Host": "tuner.example"}
        told = client.log_in("olga", Origin="https://tuner.example", **outside)
        assert told.headers["Set-Cookie"].startswith("__Host-tuner=")
        assert "Strict-Transport-Security" in told.headers
        assert client.log_in("olga", Origin="http://tuner.example", **outside).status == 403
        client.log_in("olga", "wrong", **outside)
        assert client.said == ["a wrong login from 203.0.113.7"]


def test_without_a_proxy_nobody_says_who_they_are(locked: Client) -> None:
    locked.log_in("nobody", "wrong", X_Forwarded_For="203.0.113.7")
    assert locked.said[-1] == "a wrong login from 127.0.0.1"


def test_a_header_that_only_looks_like_the_proxys_is_left_out(storage: RDBStorage, tmp_path: Path) -> None:
    with served(storage, tmp_path, users_file=written(tmp_path / "users", USERS), behind_proxy=True) as client:
        with closing(socket.create_connection((client.host, client.port))) as connection:
            lines = ["GET /metrics HTTP/1.0", "X-Forwarded-For: 203.0.113.7", "X_Forwarded_For: 10.9.9.9"]
            lines += [f"Authorization: {basic('olga', 'wrong')}", "", ""]
            connection.sendall("\r\n".join(lines).encode())
            assert b"401" in connection.makefile("rb").readline()
        assert client.said == ["a wrong login from 203.0.113.7"]


# Doors that would stand open.


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "10.0.0.1", "tuner.example", "169.254.0.1"])
def test_any_other_address_is_refused_without_users(host: str) -> None:
    with pytest.raises(ServerConfigError, match=r"could stop and delete studies; give users.*--users FILE"):
        ServerConfig(host=host).require_safe()
    ServerConfig(host=host, login="x").require_safe()


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost", "::1", "127.8.8.8"])
def test_this_machine_needs_no_users(host: str) -> None:
    ServerConfig(host=host).require_safe()
    with pytest.raises(ServerConfigError, match="anyone who can reach the proxy"):
        ServerConfig(host=host, behind_proxy=True).require_safe()


def test_passwords_in_clear_text_are_warned_of(storage: RDBStorage, tmp_path: Path) -> None:
    attachments = Artifacts(tmp_path / "study").attachments()
    with Heard() as said:
        app.server(storage, attachments, ServerConfig(host="0.0.0.0", login=USERS))
    assert said == ["passwords travel in clear text: give --certificate and --key, or put a proxy with TLS in front"]


@pytest.mark.parametrize(
    ("door", "address"),
    [
        (ServerConfig(), "http://127.0.0.1:8080"),
        (ServerConfig(host="::1", port=1), "http://[::1]:1"),
        (ServerConfig(host="0.0.0.0"), f"http://{socket.gethostname()}:8080"),
        (ServerConfig(certificate=Path("c"), key=Path("k")), "https://127.0.0.1:8080"),
    ],
)
def test_the_address_that_is_reported_can_be_opened(door: ServerConfig, address: str) -> None:
    assert door.address == address


# The commands.


def invoked(*arguments: object, given: str | None = None, **variables: str) -> Result:
    return CliRunner().invoke(cli.commands, [str(each) for each in arguments], given, env=variables)


def test_a_password_becomes_a_line_that_lets_in_and_shows_none() -> None:
    done = invoked("password", "anna", "--role", "operator", given="correct horse\nmore\n")
    (anna,) = parse_users(done.stdout, "users").values()
    assert (anna.name, anna.role) == ("anna", "operator")
    assert Users([lambda: {"anna": anna}]).verified("anna", PASSWORD) == anna
    assert PASSWORD not in done.output
    assert invoked("password", "ben", given="correct horse").stdout.startswith("ben:reader:scrypt:")


def test_a_password_is_asked_for_twice_at_a_terminal() -> None:
    program = [sys.executable, "-m", "tuner", "password", "anna"]
    mine, theirs = pty.openpty()
    asked = subprocess.Popen(program, stdin=theirs, stdout=subprocess.PIPE, stderr=theirs, start_new_session=True)
    os.close(theirs)
    seen = b""
    for prompt in (b"Password: ", b"confirmation: "):
        while not seen.endswith(prompt):
            seen += os.read(mine, 100)
        os.write(mine, b"correct horse\n")
    line = asked.communicate()[0].decode()
    os.close(mine)
    assert asked.returncode == 0
    assert parse_users(line, "users")["anna"].role == "reader"
    assert b"horse" not in seen


@pytest.mark.parametrize(("name", "given"), [("anna", "short"), ("anna", ""), ("an:na", PASSWORD), ("", PASSWORD)])
def test_a_bad_name_or_password_is_refused(name: str, given: str) -> None:
    done = invoked("password", name, given=given)
    assert isinstance(done.exception, ServerConfigError)
    assert done.output == ""


def test_the_dashboard_is_refused_at_other_addresses_before_a_database_is_asked() -> None:
    done = invoked("dashboard", "--host", "0.0.0.0", "--storage", "postgresql://nobody@127.0.0.1:1/none")
    assert isinstance(done.exception, ServerConfigError)


def test_users_may_be_given_in_the_environment(data_folder: Path, tmp_path: Path) -> None:
    variables = {"TUNER_DATA": str(data_folder), "TUNER_ARTIFACTS": str(tmp_path), "TUNER_LOGIN": "x:king:y"}
    done = invoked("dashboard", "--host", "0.0.0.0", **variables)
    assert str(done.exception).startswith("TUNER_LOGIN, line 1: not name:reader:hash")
    variables |= {"TUNER_LOGIN": "", "TUNER_OPERATOR_PASSWORD_FILE": str(written(tmp_path / "secret", "short"))}
    assert "secret: shorter than 8" in str(invoked("dashboard", "--host", "0.0.0.0", **variables).exception)
    variables |= {"TUNER_OPERATOR_PASSWORD_FILE": "", "TUNER_USERS": str(tmp_path / "none")}
    assert "none: No such file" in str(invoked("dashboard", **variables).exception)


# The operator's page.


@pytest.fixture
def steer(locked: Client, operator: str, found: optuna.Study) -> Callable[..., Answer]:
    """Sends a form as a browser does, and follows."""

    def send(what: str, **form: str) -> Answer:
        answer = locked.ask("POST", f"{page_of(found)}/{what}", form, Cookie=operator)
        return locked.get(answer.headers["Location"], Cookie=operator) if answer.status == 303 else answer

    return send


def test_an_operator_steers_with_the_words_of_the_command_line(
    steer: Callable[..., Answer], found: optuna.Study, storage: RDBStorage
) -> None:
    name = found.study_name
    assert said_on(steer("pause").text) == f"paused; no worker is there; tuner resume {name} continues it"
    assert state_of(found, storage) == "paused"
    assert said_on(steer("resume").text) == f"running; no worker is there; start some with: tuner work {name}"
    assert said_on(steer("stop").text) == "stopped; no worker is there"
    assert state_of(found, storage) == "stopped"
    assert (
        said_on(steer("enqueue", values="learning_rate=0.003  architecture='gru'").text) == "trial 0 waits for a worker"
    )
    assert found.trials[0].system_attrs["fixed_params"] == {"learning_rate": 0.003, "architecture": "gru"}
    found.tell(found.ask(), state=optuna.trial.TrialState.FAIL)
    assert said_on(steer("retry", trial="0").text) == "trial 0 is tried again as trial 1"


@pytest.mark.parametrize(
    ("what", "form", "message"),
    [
        ("enqueue", {"values": "learning_rat=0.1"}, "learning_rat is not searched; did you mean learning_rate?"),
        ("enqueue", {"values": "learning_rate"}, "write name=value"),
        ("enqueue", {"values": "learning_rate='0.1"}, "cannot be read as on a command line: no closing quotation"),
        ("enqueue", {"values": " "}, "write name=value"),
        ("enqueue", {}, "write name=value"),
        ("enqueue", {"values": "learning_rate=.nan"}, "is not among what is searched"),
        ("enqueue", {"values": "architecture=<script>alert(1)</script>"}, "&lt;script&gt;"),
        ("enqueue", {"values": "architecture=\0"}, "architecture"),
        ("retry", {"trial": "0"}, "has no trial 0; it has none yet"),
        ("retry", {"trial": "²"}, "write the number"),
        ("retry", {"trial": "9" * 50}, "write the number"),
        ("retry", {}, "write the number"),
    ],
)
def test_what_cannot_be_is_said_kindly_and_changes_nothing(
    steer: Callable[..., Answer], found: optuna.Study, what: str, form: dict[str, str], message: str
) -> None:
    answer = steer(what, **form)
    assert answer.status == 400
    assert message.replace("'", "&#39;") in said_on(answer.text)
    assert "<script" not in answer.text
    assert found.trials == []


def test_what_is_said_after_a_form_is_said_by_us_alone(locked: Client, operator: str, found: optuna.Study) -> None:
    for said in ("Your password has expired", "WyJhIl0.a.b"):
        assert said_on(locked.get(f"{page_of(found)}?said={said}".replace(" ", "+"), Cookie=operator).text) == ""


def test_a_reader_sees_the_page_without_forms(locked: Client, reader: str, operator: str, found: optuna.Study) -> None:
    page = locked.get(page_of(found), Cookie=reader).text
    assert found.study_name in page
    assert re.findall('action="([^"]*)"', page) == ["/logout"]
    assert f"{page_of(found)}/pause" in locked.get(page_of(found), Cookie=operator).text


def test_the_page_shows_the_best_trials_and_the_workers(
    small: Small, enter: Enter, locked: Client, reader: str, storage: RDBStorage
) -> None:
    found = enter(small())
    rates: dict[str, BaseDistribution] = {"learning_rate": FloatDistribution(1e-3, 1e-1, log=True)}
    found.add_trial(
        optuna.trial.create_trial(params={"learning_rate": 0.003}, distributions=rates, value=1.25, user_attrs=WRITTEN)
    )
    leases = Leases(storage, found._study_id)
    leases.join("w<1>", "host<b>", 1, "cuda:0", 1)
    page = locked.get(page_of(found), Cookie=reader).text
    best = summary.leaderboard(found.trials)[0]
    assert f"<td>{best.number}</td><td>{best.value:.4f}</td>" in page
    assert tables.configured(best) in page
    assert "host&lt;b&gt;" in page
    assert f"/dashboard/studies/{found._study_id}" in page
    board = locked.get("/tuner/", Cookie=reader).text
    assert f"<dd>{best.value:.4f}</dd>" in board
    leases.leave("w<1>")


def test_names_from_study_files_are_no_markup(small: Small, enter: Enter, locked: Client, reader: str) -> None:
    found = enter(small(name="<img src=x onerror=alert(1)>$(rm) 'x'"))
    for path in ("/tuner/", page_of(found)):
        page = locked.get(path, Cookie=reader).text
        assert "<img" not in page
        assert "&lt;img src=x" in page


def test_a_study_that_is_not_there_or_not_ours_has_no_page(locked: Client, operator: str, storage: RDBStorage) -> None:
    foreign = optuna.create_study(study_name="of another program", storage=storage)
    paths = [f"/tuner/{foreign._study_id}", "/tuner/2147483647", "/tuner/2147483648", "/tuner/-1", "/tuner/x"]
    assert [locked.get(path, Cookie=operator).status for path in paths] == [404] * 5
    optuna.delete_study(study_name="of another program", storage=storage)


# Trouble.


def test_without_its_database_it_says_so(fresh_url: str, ask: Any, tmp_path: Path) -> None:
    with open_storage(fresh_url) as away, served(away, tmp_path) as client:
        assert client.get("/healthz").status == 200
        away.engine.dispose()
        ask("alter database fresh allow_connections false")
        answers = {path: client.get(path) for path in ("/healthz", "/tuner/", "/metrics", "/api/studies", "/tuner/1")}
        ask("alter database fresh allow_connections true")
        assert {path: answer.status for path, answer in answers.items()} == dict.fromkeys(answers, 503)
        assert answers["/healthz"].text == "away\n"
        assert "It does not answer; training goes on" in answers["/tuner/"].text
        assert client.get("/tuner/").status == 200


@pytest.mark.parametrize(
    ("method", "path", "body"),
    [
        ("GET", "/api/studies/99999999999", None),
        ("GET", "/api/studies/999999/plot/slice", None),
        ("GET", "/api/studies/1?after=x", None),
        ("POST", "/api/studies", "[]"),
        ("POST", "/api/studies", None),
        ("PUT", "/api/studies/999999/note", '{"version": 1, "body": 1}'),
        ("POST", "/api/trials/999999/tell", '{"state": 7}'),
        ("GET", "/csv/99999999999", None),
        ("GET", "/artifacts/999999/999999/a", None),
    ],
)
def test_nonsense_is_the_fault_of_who_asks(
    locked: Client, operator: str, method: str, path: str, body: str | None
) -> None:
    answer = locked.ask(method, path, body, Cookie=operator, Content_Type="application/json")
    assert 400 <= answer.status < 500
    assert "Traceback" not in answer.text


def test_the_dashboards_program_is_served_to_whoever_accepts_it_plain(locked: Client, operator: str) -> None:
    with closing(socket.create_connection((locked.host, locked.port))) as connection:
        lines = ["HEAD /static/bundle.js HTTP/1.0", f"Host: {locked.host}", f"Cookie: {operator}", "", ""]
        connection.sendall("\r\n".join(lines).encode())
        assert b" 200 " in connection.makefile("rb").readline()

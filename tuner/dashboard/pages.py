"""Our own pages beside Optuna's dashboard: login, running studies, steering, Prometheus metrics."""

from __future__ import annotations

import logging
import shlex
from collections.abc import Callable
from functools import partial
from typing import Any
from urllib.parse import urlsplit

import flask
import optuna
from flask import Blueprint, Flask, abort, current_app, render_template, request, url_for
from itsdangerous import BadData, URLSafeTimedSerializer
from optuna.storages import RDBStorage
from sqlalchemy import text
from werkzeug.exceptions import HTTPException
from werkzeug.utils import redirect
from werkzeug.wrappers import Response

from models.errors import UserError
from models.wording import duration
from tuner.artifacts.store import Artifacts
from tuner.control import steering
from tuner.dashboard.auth import USER, Authenticator, cookie_name
from tuner.dashboard.responses import TITLES, answer
from tuner.dashboard.users import ANONYMOUS, User
from tuner.errors import StudyError
from tuner.results import queries, summary
from tuner.storage.handle import StudyHandle, open_study
from tuner.storage.outages import is_outage
from tuner.study.definition import is_ours
from tuner.watch import html_report, prometheus, tables

logger = logging.getLogger(__name__)

Said = Response | str | tuple[str, int]
Kept = Callable[[optuna.Study], Artifacts]

ROWS = 5
SAID_SECONDS = 60.0
FORM_BYTES = 16 * 1024
STYLE = "style.css"

pages = Blueprint("pages", __name__)


def application(storage: RDBStorage, lock: Authenticator | None, key: str, kept: Kept | None = None) -> Flask:
    """Returns the WSGI application of our pages; without a lock no user has to log in.

    `kept` returns the artifacts of a study, for the texts in its report.
    """
    app = Flask(__name__, static_folder=None)
    app.config["MAX_CONTENT_LENGTH"] = FORM_BYTES
    app.extensions["tuner"] = Service(storage, lock, key, kept)
    app.register_blueprint(pages)
    app.register_error_handler(Exception, _unless_away)
    app.jinja_env.filters.update(duration=duration, quoted=shlex.quote)
    app.jinja_env.globals.update(quality=summary.quality, configured=tables.configured, hints=tables.hints)
    return app


class Service:
    """What the pages need."""

    def __init__(self, storage: RDBStorage, lock: Authenticator | None, key: str, kept: Kept | None) -> None:
        self.storage, self.lock, self.kept = storage, lock, kept
        self.signer = URLSafeTimedSerializer(key, salt="said")

    def study(self, study_id: int) -> StudyHandle:
        """Returns a study of the tuner; another one is no page of ours."""
        try:
            name = self.storage.get_study_name_from_id(study_id)
        except KeyError:
            abort(404, "There is no such study.")
        found = optuna.load_study(study_name=name, storage=self.storage)
        if not is_ours(found.user_attrs):
            abort(404, "This study was not made by the tuner.")
        return open_study(self.storage, name)


def _service() -> Service:
    service: Service = current_app.extensions["tuner"]
    return service


def _user() -> User:
    user: User = request.environ.get(USER, ANONYMOUS)
    return user


# Logging in and out.


@pages.get("/login/style.css")
def style() -> Response:
    """The one style sheet."""
    return flask.send_from_directory(f"{current_app.root_path}/static", STYLE)


@pages.get("/login")
def login() -> Said:
    """Asks for name and password."""
    return _asked(None) if _service().lock else redirect("/tuner/", 303)


@pages.post("/login")
def begin() -> Said:
    """Begins a session when name and password are right."""
    lock = _service().lock
    if lock is None:
        return redirect("/tuner/", 303)
    user = lock.login(request, request.form.get("name", ""), request.form.get("password", ""))
    if user is None:
        return _asked("Name or password is wrong."), 403
    if isinstance(user, Response):
        return user
    response = redirect(safe_next(request.form.get("next", "")), 303)
    secure, seconds = request.is_secure, int(lock.sessions.seconds)
    cookie = partial(response.set_cookie, cookie_name(request), max_age=seconds, path="/")
    cookie(lock.sessions.begin(user), secure=secure, httponly=True, samesite="Lax")
    return response


@pages.post("/logout")
def end() -> Said:
    """Ends the session."""
    lock, name = _service().lock, cookie_name(request)
    if lock is not None:
        lock.sessions.end(request.cookies.get(name, ""))
    response = redirect("/login", 303)
    response.delete_cookie(name, path="/", secure=request.is_secure, httponly=True, samesite="Lax")
    return response


def _asked(problem: str | None) -> str:
    return render_template("login.html", problem=problem, next=safe_next(request.values.get("next", "")))


def safe_next(path: str) -> str:
    """Returns where to go after the login: a page of this dashboard, wherever a link would like to lead."""
    parts = urlsplit(path if path.isprintable() and "\\" not in path else "")
    own = path.startswith("/") and not path.startswith("//") and not parts.scheme and not parts.netloc and parts.path
    return path if own else "/dashboard"


# What runs.


@pages.get("/tuner/")
def studies() -> Said:
    """All studies."""
    return render_template("studies.html", user=_user(), studies=queries.rows(_service().storage))


@pages.get("/tuner/<int(max=2147483647):study_id>")
def study(study_id: int) -> Said:
    """One study, and for operators what steers it."""
    try:
        said = _service().signer.loads(request.args.get("said", ""), max_age=int(SAID_SECONDS))
    except BadData:
        said = None
    return _shown(study_id, said=said)


@pages.get("/tuner/<int(max=2147483647):study_id>/report")
def report(study_id: int) -> Said:
    """The report of a study, as `tuner report` writes it."""
    service = _service()
    study = service.study(study_id)
    return html_report.report(study, None if service.kept is None else service.kept(study.optuna_study))


def _shown(study_id: int, **more: Any) -> str:
    now = queries.in_short(_service().study(study_id), ROWS)
    best = summary.leaderboard(now.trials)
    return render_template("study.html", user=_user(), study_id=study_id, now=now, best=best, **more)


# What steers it: the commands of the same names.


@pages.post("/tuner/<int(max=2147483647):study_id>/<any(pause, resume, stop, retry, enqueue):what>")
def steer(study_id: int, what: str) -> Said:
    """Asks something of a study and says what came of it."""
    service = _service()
    study = service.study(study_id)
    try:
        said = STEERING[what](study)
    except UserError as error:
        return _shown(study_id, problem=str(error), written=request.form), 400
    logger.info("%s: %s %s: %s", _user().name or "a user", what, study.name, said)
    return redirect(url_for("pages.study", study_id=study_id, said=service.signer.dumps(said)), 303)


def _retry(study: StudyHandle) -> str:
    number = request.form.get("trial", "").strip()
    if not (number.isascii() and number.isdigit() and len(number) < 10):
        raise StudyError("write the number of a failed or pruned trial")
    return steering.retry(study, int(number))


def _enqueue(study: StudyHandle) -> str:
    try:
        assignments = shlex.split(request.form.get("values", ""))
    except ValueError as error:
        raise StudyError(f"this cannot be read as on a command line: {str(error).lower()}") from error
    if not assignments:
        raise StudyError("write name=value, such as learning_rate=0.003; several with spaces between them")
    return steering.enqueue(study, steering.assigned(assignments))


STEERING: dict[str, Callable[[StudyHandle], str]] = {
    "pause": steering.pause,
    "resume": steering.resume,
    "stop": steering.stop,
    "retry": _retry,
    "enqueue": _enqueue,
}


# For machines.


@pages.get("/metrics")
def metrics() -> Said:
    """What Prometheus scrapes."""
    body, content_type = prometheus.exposition(_service().storage, request.headers.get("Accept", ""))
    return Response(body, content_type=content_type)


@pages.get("/healthz")
def healthz() -> Said:
    """Whether the database answers, and nothing else."""
    return Response("away\n", 503) if is_away(_service().storage) else Response("fine\n")


def is_away(storage: RDBStorage) -> bool:
    """Whether the database does not answer."""
    try:
        with storage.engine.connect() as connection:
            connection.execute(text("select 1"))
    except Exception as error:
        if is_outage(error):
            return True
        raise
    return False


def _unless_away(error: Exception) -> Response:
    """Says that the database is away, or what was wrong with a request; our own mistakes go on to the log."""
    if is_outage(error):
        return answer(request.path, 503, "It does not answer; training goes on and waits for it, and so can you.")
    if isinstance(error, UserError):
        return answer(request.path, 400, str(error))
    if not isinstance(error, HTTPException):
        raise error
    if error.code not in TITLES:  # such as a redirect
        return error.get_response()
    return answer(request.path, error.code, error.description or "")

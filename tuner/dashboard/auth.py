"""Authenticates and authorises every request, before anything else sees it."""

from __future__ import annotations

import logging
import re
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Any
from urllib.parse import quote, urlencode

from werkzeug.datastructures import Headers
from werkzeug.utils import redirect
from werkzeug.wrappers import Request, Response

from tuner.dashboard.rate_limit import RateLimiter
from tuner.dashboard.responses import answer, is_for_programs
from tuner.dashboard.security_headers import hostname, is_loopback, secure
from tuner.dashboard.sessions import Sessions
from tuner.dashboard.users import ANONYMOUS, User

if TYPE_CHECKING:
    from _typeshed.wsgi import StartResponse, WSGIApplication

logger = logging.getLogger(__name__)

USER = "tuner.user"
"""Where a request that came through carries who asks."""

LOOKS = ("GET", "HEAD")
CHANGES = ("POST", "PUT", "DELETE")
OPEN = ("/login", "/login/style.css", "/healthz")
"""What is served without a login."""

_STUDY, _FILE = "/api/studies/[0-9]{1,10}", "/api/artifacts/[0-9]{1,10}(?:/[0-9]{1,10})?"
_SERVED = {
    "POST": re.compile(rf"{_STUDY}/rename|{_FILE}"),
    "PUT": re.compile(rf"{_STUDY}(?:/[0-9]{{1,10}})?/note"),
    "DELETE": re.compile(rf"{_STUDY}|{_FILE}/[0-9A-Fa-f-]+"),
}
"""What may be changed by way of Optuna's dashboard; it offers more, such as to end a trial that a worker trains."""

MOST_BYTES = 8 * 2**20
"""The largest request: a file that a person adds to a trial in Optuna's dashboard."""


class AuthMiddleware:
    """Lets requests through to our pages and to Optuna's dashboard, and protects what they answer."""

    def __init__(self, pages: WSGIApplication, dashboard: WSGIApplication, lock: Authenticator | None) -> None:
        self.pages, self.dashboard, self.lock = pages, dashboard, lock

    def __call__(self, environ: dict[str, Any], start_response: StartResponse) -> Iterable[bytes]:
        request = Request(environ)

        def start(status: str, headers: list[tuple[str, str]], *error: Any) -> Callable[[bytes], object]:
            protected = Headers(headers)
            secure(request, protected)
            return start_response(status, list(protected), *error)

        application = self._refusal(request) or (self.pages if is_ours(request.path) else self.dashboard)
        return application(environ, start)

    def _refusal(self, request: Request) -> Response | None:
        """What is answered to a request that does not come through."""
        return self._odd(request) or self._from_elsewhere(request) or self._not_allowed(request)

    def _odd(self, request: Request) -> Response | None:
        if request.method not in LOOKS + CHANGES:
            refused = answer(request.path, 405, "This method is not served here.")
            refused.headers["Allow"] = ", ".join(LOOKS + CHANGES)
            return refused
        if "Transfer-Encoding" in request.headers:
            return answer(request.path, 411, "Say how long the request is: Content-Length.")
        if (request.content_length or 0) > MOST_BYTES:
            return answer(request.path, 413, f"A request has at most {MOST_BYTES >> 20} MiB.")
        return None

    def _from_elsewhere(self, request: Request) -> Response | None:
        if self.lock is None and not is_loopback(hostname(request.host)):
            # A page can let its own name point to this machine, and is then of one origin with us.
            return answer(request.path, 403, "Without a login, this is open at localhost alone; see docs/dashboard.md.")
        if request.method in CHANGES and is_foreign(request):
            return answer(request.path, 403, "This request comes from a page that is none of ours.")
        return None

    def _not_allowed(self, request: Request) -> Response | None:
        if request.path in OPEN:
            return None
        user = ANONYMOUS if self.lock is None else self.lock.user(request)
        if isinstance(user, Response):
            return user
        if user is None:
            return _login(request)
        if request.method in CHANGES and not user.may_change and request.path != "/logout":
            return answer(request.path, 403, f"{user.name} may only look; an operator may do this.")
        if request.method in CHANGES and not is_ours(request.path) and not is_served(request):
            return answer(request.path, 403, "Only workers do this, and never by HTTP: see docs/dashboard.md.")
        request.environ[USER] = user
        return None


class Authenticator:
    """Finds out who asks: by the cookie of a session, or for programs by name and password."""

    def __init__(self, sessions: Sessions, attempts: RateLimiter) -> None:
        self.sessions, self.attempts = sessions, attempts

    def user(self, request: Request) -> User | Response | None:
        """Returns who asks, None for an unknown user, or the answer to too many guesses."""
        user = self.sessions.user(request.cookies.get(cookie_name(request), ""))
        given = request.authorization
        if user is not None or given is None or given.type != "basic" or not is_for_programs(request.path):
            return user
        return self.login(request, given.username or "", given.password or "")

    def login(self, request: Request, name: str, password: str) -> User | Response | None:
        """Returns the user of that name and password, None when it is wrong, or what to answer who has to wait."""
        address = (request.remote_addr or "")[:45]  # as long as they get; behind a proxy it is a header
        address = address if address.isprintable() else "?"
        wait = self.attempts.take(address, name)
        if wait > 0:
            refused = answer(request.path, 429, f"Too many wrong logins; try again in {wait:.0f} seconds.")
            refused.headers["Retry-After"] = f"{wait + 1:.0f}"
            return refused
        user = self.sessions.users.verified(name, password)
        if user is None:
            logger.warning("a wrong login from %s", address)
        else:
            self.attempts.give_back(address, name)
        return user


def is_ours(path: str) -> bool:
    """Whether a page is ours and not of Optuna's dashboard."""
    return path in ("/login", "/login/style.css", "/logout", "/healthz", "/metrics", "/tuner") or path.startswith(
        "/tuner/"
    )


def is_served(request: Request) -> bool:
    """Whether a change is one that operators may ask of Optuna's dashboard."""
    return _SERVED[request.method].fullmatch(request.path) is not None


def is_foreign(request: Request) -> bool:
    """Whether a browser says that another site's page made a request; programs that are no browser say nothing."""
    site = request.headers.get("Sec-Fetch-Site")
    if site is not None:
        return site not in ("same-origin", "none")
    origin = request.headers.get("Origin")  # an older browser, or one on plain HTTP
    return origin is not None and origin != request.host_url.rstrip("/")


def cookie_name(request: Request) -> str:
    """The session's cookie; with TLS its name keeps other hosts of the domain, and plain HTTP, from setting it."""
    return "__Host-tuner" if request.is_secure else "tuner"


def _login(request: Request) -> Response:
    if is_for_programs(request.path):
        refused = answer(request.path, 401, "Log in first, or send name and password (HTTP Basic).")
        # For /api a scheme that browsers do not know: they would ask for a password in a window of their own.
        refused.headers["WWW-Authenticate"] = f'{"Basic" if request.path == "/metrics" else "Login"} realm="tuner"'
        return refused
    if request.method in CHANGES or request.path == "/":
        return redirect("/login", 303)
    query = f"?{request.query_string.decode('latin-1')}" if request.query_string else ""
    return redirect("/login?" + urlencode({"next": quote(request.path) + query}), 303)

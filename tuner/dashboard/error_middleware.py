"""Turns errors of Optuna's dashboard into proper responses."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Any

from tuner.dashboard.responses import answer

if TYPE_CHECKING:
    from _typeshed.wsgi import StartResponse, WSGIApplication
    from werkzeug.wrappers import Response


class ErrorMiddleware:
    """Optuna's dashboard, with 400 or 503 where it says 500.

    Whatever goes wrong in its handlers, a misspelt body, a trial that is not there, a figure that a study of one
    objective cannot have, it catches, prints and answers with 500. Which it was cannot be told from outside; so when
    the database answers, the request was at fault: 400. Its trace stays on standard error.
    """

    def __init__(self, dashboard: WSGIApplication, is_away: Callable[[], bool]) -> None:
        self.dashboard, self.is_away = dashboard, is_away

    def __call__(self, environ: dict[str, Any], start_response: StartResponse) -> Iterable[bytes]:
        environ.setdefault("HTTP_ACCEPT_ENCODING", "identity")  # it looks this up in every request
        begun: list[Any] = []

        def start(*status_and_headers: Any) -> Callable[[bytes], object]:
            begun[:] = status_and_headers
            return bytes.__len__

        body = self.dashboard(environ, start)  # it begins its answers before it returns
        if begun[0].startswith("500"):
            return self._blamed(environ["PATH_INFO"])(environ, start_response)
        start_response(*begun)
        return body

    def _blamed(self, path: str) -> Response:
        if self.is_away():
            return answer(path, 503, "The database does not answer; training goes on and waits for it, and so can you.")
        return answer(path, 400, "The dashboard cannot do that: something of it is not there, or not as it should be.")

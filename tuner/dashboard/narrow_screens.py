"""Optuna's pages on a phone: tables of our notes scroll by themselves, and the page is no wider than the screen."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

from werkzeug.wrappers import Response

if TYPE_CHECKING:
    from _typeshed.wsgi import StartResponse, WSGIApplication

END_OF_HEAD = b"</head>"

STYLE = b"""<style>
@media (max-width: 600px) {
  main { min-width: 0 }
  .MuiCardContent-root { padding: 8px }
  .MuiCardContent-root table { display: block; overflow-x: auto }
  .MuiCardContent-root code { overflow-wrap: anywhere }
}
</style>
"""


class NarrowScreenMiddleware:
    """Optuna's dashboard, with a style for narrow screens in its pages."""

    def __init__(self, dashboard: WSGIApplication) -> None:
        self.dashboard = dashboard

    def __call__(self, environ: dict[str, Any], start_response: StartResponse) -> Iterable[bytes]:
        if not environ["PATH_INFO"].startswith("/dashboard") or environ["REQUEST_METHOD"] != "GET":
            return self.dashboard(environ, start_response)
        answer = Response.from_app(self.dashboard, environ)
        if answer.mimetype == "text/html":
            answer.set_data(answer.get_data().replace(END_OF_HEAD, STYLE + END_OF_HEAD, 1))
        return answer(environ, start_response)

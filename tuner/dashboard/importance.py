"""Optuna's chart of importance, without what cannot matter, and empty where too few trials say anything."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Any

from werkzeug.wrappers import Response

from models.config import DECODING
from tuner.results.analysis import FEWEST

if TYPE_CHECKING:
    from _typeshed.wsgi import StartResponse, WSGIApplication

ROUTE = re.compile(r"/api/studies/([0-9]{1,9})/param_importances")


class ImportanceMiddleware:
    """Optuna's dashboard, with less in its answers about the importance of parameters.

    It weighs every parameter for every objective from the second trial on. But a decoding parameter is chosen on the
    trained model and has no say in its bits per byte, and a handful of trials ranks parameters by chance.
    """

    def __init__(self, dashboard: WSGIApplication, completed: Callable[[int], int | None]) -> None:
        """`completed` counts the completed trials of a study by its id; None for one that is not the tuner's."""
        self.dashboard, self.completed = dashboard, completed

    def __call__(self, environ: dict[str, Any], start_response: StartResponse) -> Iterable[bytes]:
        asked = ROUTE.fullmatch(environ["PATH_INFO"])
        if asked is None or environ["REQUEST_METHOD"] != "GET":
            return self.dashboard(environ, start_response)
        answer = Response.from_app(self.dashboard, environ)
        completed = self.completed(int(asked[1])) if answer.status_code == 200 else None
        if completed is not None:
            answer.set_data(json.dumps({"param_importances": known(json.loads(answer.get_data()), completed)}))
        return answer(environ, start_response)


def known(sent: dict[str, Any], completed: int) -> list[list[dict[str, Any]]]:
    """Returns what is known of importance for each objective; the shares of the first, bits per byte, add up to 1."""
    objectives: list[list[dict[str, Any]]] = sent["param_importances"]
    if completed < FEWEST:
        return [[] for _ in objectives]
    first = [one for one in objectives[0] if one["name"] not in DECODING]
    total = sum(one["importance"] for one in first)
    return [[one | {"importance": one["importance"] / total if total else 0.0} for one in first], *objectives[1:]]

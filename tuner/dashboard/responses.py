"""Error responses: JSON for programs, plain text for browsers."""

from __future__ import annotations

import json

from werkzeug.wrappers import Response

TITLES = {
    400: "That is not possible",
    401: "Log in",
    403: "That is not allowed",
    404: "There is no such page",
    405: "That is not possible",
    411: "That is not possible",
    413: "That is too much",
    429: "Wait a moment",
    503: "The database is away",
}


def is_for_programs(path: str) -> bool:
    """Whether a path is asked by programs and scripts, which read JSON and follow no login page."""
    return path == "/metrics" or path.startswith("/api/")


def answer(path: str, status: int, reason: str) -> Response:
    """Returns an answer that says why not."""
    if is_for_programs(path):
        return Response(json.dumps({"reason": reason}), status, content_type="application/json")
    return Response(f"{TITLES[status]}. {reason}\n", status, content_type="text/plain; charset=utf-8")

"""Long answers travel compressed, to others who take it."""

import gzip
import json
from pathlib import Path

import pytest
from optuna.storages import RDBStorage
from werkzeug.test import Client
from werkzeug.wrappers import Response

from tests.tuner.dashboard.serving import USERS, served, written
from tuner.dashboard import compression
from tuner.dashboard.compression import LONG, CompressionMiddleware

THERE, HERE = {"REMOTE_ADDR": "203.0.113.9"}, {"REMOTE_ADDR": "127.0.0.1"}
GZIP = {"Accept-Encoding": "gzip, br"}
TEXT = json.dumps(["a trial"] * LONG)


@pytest.mark.parametrize(
    ("text", "kind", "place", "headers", "is_packed"),
    [
        (TEXT, "application/json", THERE, GZIP, True),
        (TEXT, "application/json", HERE, GZIP, False),
        (TEXT, "application/json", THERE, {}, False),
        (TEXT, "application/json", THERE, {"Accept-Encoding": "gzip;q=0"}, False),
        ("[]", "application/json", THERE, GZIP, False),
        (TEXT, "application/octet-stream", THERE, GZIP, False),
    ],
)
def test_long_answers_are_compressed_for_others_who_take_it(
    text: str, kind: str, place: dict[str, str], headers: dict[str, str], is_packed: bool
) -> None:
    answer = Client(CompressionMiddleware(Response(text, mimetype=kind))).get("/", environ_base=place, headers=headers)
    assert (answer.headers.get("Content-Encoding") == "gzip") is is_packed
    assert (gzip.decompress(answer.data) if is_packed else answer.data).decode() == text
    assert int(answer.headers["Content-Length"]) == len(answer.data)
    assert ("Accept-Encoding" in answer.headers.get("Vary", "")) is (kind.endswith("json") and place is THERE)


def test_studies_are_sent_compressed_through_a_proxy(
    storage: RDBStorage, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(compression, "LONG", 1)
    with served(storage, tmp_path, users_file=written(tmp_path / "users", USERS), behind_proxy=True) as client:
        asked = {"Cookie": client.cookie("rolf"), "Accept_Encoding": "gzip"}
        through = client.get("/api/studies", X_Forwarded_For="203.0.113.9", **asked)
        assert (through.status, through.headers["Content-Encoding"]) == (200, "gzip")
        assert "Content-Encoding" not in client.get("/api/studies", **asked).headers

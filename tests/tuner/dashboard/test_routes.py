"""Every route, ours and those behind the login, with what a program that knows their form makes up: none breaks."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from typing import Any
from urllib.parse import quote

import flask
import optuna
import pytest
import schemathesis
from hypothesis import HealthCheck, given, settings
from optuna_dashboard import wsgi
from schemathesis import GenerationMode
from schemathesis.schemas import APIOperation

from tests.tuner.conftest import complete
from tests.tuner.dashboard.serving import USERS, Client, served, written
from tuner.control import create
from tuner.dashboard.auth import OPEN
from tuner.dashboard.pages import pages
from tuner.storage.connection import open_storage
from tuner.storage.embedded import attached
from tuner.study.definition import Study

EXAMPLES = 10
ID = {"type": "integer", "enum": [1, 2, 3]}
TEXT, WHOLE, NUMBER = {"type": "string"}, {"type": "integer"}, {"type": "number"}
MANY = {"type": "array", "maxItems": 3}
STUDY, TRIAL = "/api/studies/{study_id}", "/api/trials/{trial_id}"

ROUTES: list[tuple[str, str, dict[str, Any]]] = [
    # method, path, fields: of a form for our pages, of JSON for Optuna's
    ("get", "/login", {}),
    ("post", "/login", {"name": TEXT, "password": TEXT, "next": TEXT}),
    ("get", "/login/style.css", {}),
    ("post", "/logout", {}),
    ("get", "/healthz", {}),
    ("get", "/metrics", {}),
    ("get", "/tuner/", {}),
    ("get", "/tuner/{study_id}", {}),
    ("get", "/tuner/{study_id}/report", {}),
    ("post", "/tuner/{study_id}/{what}", {"trial": TEXT, "values": TEXT}),
    ("get", "/", {}),
    ("get", "/dashboard", {}),
    ("get", "/dashboard/{name}", {}),
    ("get", "/static/{name}", {}),
    ("get", "/favicon.ico", {}),
    ("get", "/incompatible-rdb-schema", {}),
    ("post", "/incompatible-rdb-schema", {}),
    ("get", "/api/meta", {}),
    ("get", "/api/studies", {}),
    ("post", "/api/studies", {"study_name": TEXT, "directions": MANY | {"items": {"enum": ["minimize", "maximize"]}}}),
    ("get", STUDY, {}),
    ("get", STUDY + "/param_importances", {}),
    ("get", STUDY + "/plot/{plot}", {}),
    ("put", STUDY + "/note", {"version": WHOLE, "body": TEXT}),
    (
        "post",
        STUDY + "/preference",
        {"mode": {"enum": ["ChooseWorst"]}, "candidates": MANY | {"items": WHOLE}, "clicked": WHOLE},
    ),
    (
        "put",
        STUDY + "/preference_feedback_component",
        {"output_type": {"enum": ["note", "artifact"]}, "artifact_key": TEXT},
    ),
    ("delete", STUDY + "/preference/{name}", {}),
    ("post", STUDY + "/preference/{name}", {}),
    ("post", STUDY + "/{trial_id}/skip", {}),
    ("put", STUDY + "/{trial_id}/note", {"version": WHOLE, "body": TEXT}),
    ("post", TRIAL + "/tell", {"state": {"enum": ["Complete", "Fail"]}, "values": MANY | {"items": NUMBER}}),
    ("post", TRIAL + "/user-attrs", {"user_attrs": {"type": "object"}}),
    (
        "post",
        "/api/artifacts/{study_id}",
        {"file": {"enum": ["data:text/plain;base64,YQ==", "data:"]}, "filename": TEXT},
    ),
    (
        "post",
        "/api/artifacts/{study_id}/{trial_id}",
        {"file": {"enum": ["data:text/plain;base64,YQ==", "data:"]}, "filename": TEXT},
    ),
    ("delete", "/api/artifacts/{study_id}/{name}", {}),
    ("delete", "/api/artifacts/{study_id}/{trial_id}/{name}", {}),
    ("post", "/api/llm/trial_filter_query", {"user_query": TEXT, "last_response": {"type": "object"}}),
    ("post", "/api/llm/re_generate_plotly_graph_query", {"user_query": TEXT, "last_response": {"type": "object"}}),
    ("post", "/api/llm/generate_plotly_graph_query", {"user_query": TEXT, "last_response": {"type": "object"}}),
    ("get", "/artifacts/{study_id}/{name}", {}),
    ("get", "/artifacts/{study_id}/{trial_id}/{name}", {}),
    ("get", "/csv/{study_id}", {}),
    ("post", STUDY + "/rename", {"study_name": TEXT}),
    ("delete", STUDY, {"remove_associated_artifacts": {"type": "boolean"}}),
]
IN_PATHS = {
    "study_id": ID,
    "trial_id": ID,
    "name": TEXT | {"minLength": 1},
    "plot": {"enum": ["contour", "slice", "parallel_coordinate", "rank", "edf", "timeline", "pareto_front"]},
    "what": {"enum": ["pause", "resume", "stop", "retry", "enqueue"]},
}
IN_QUERIES = {"/login": "next", "/tuner/{study_id}": "said", STUDY: "after", "/csv/{study_id}": "trial_ids"}


def described(path: str, fields: dict[str, Any]) -> dict[str, Any]:
    """An operation as OpenAPI has it."""
    names = [part.strip("{}") for part in path.split("/") if part.startswith("{")]
    parameters = [{"name": name, "in": "path", "required": True, "schema": IN_PATHS[name]} for name in names]
    if path in IN_QUERIES:
        parameters.append({"name": IN_QUERIES[path], "in": "query", "schema": TEXT})
    kind = "application/json" if path.startswith("/api") else "application/x-www-form-urlencoded"
    schema = {"type": "object", "properties": fields, "required": list(fields)}
    given = {"requestBody": {"content": {kind: {"schema": schema}}}} if fields else {}
    return {"parameters": parameters, "responses": {"200": {"description": "fine"}}} | given


def document() -> dict[str, Any]:
    """All routes as OpenAPI has them."""
    paths: dict[str, Any] = {}
    for method, path, fields in ROUTES:
        paths.setdefault(path, {})[method] = described(path, fields)
    return {"openapi": "3.0.2", "info": {"title": "dashboard", "version": "1"}, "paths": paths}


OPERATIONS: list[APIOperation[Any, Any, Any, Any]] = [
    found.ok()  # type: ignore[union-attr]
    for found in schemathesis.openapi.from_dict(document()).get_all_operations()
]


@pytest.fixture(scope="module")
def client(
    ask: Callable[[str], Any], data_folder: Any, small: Callable[..., Study], tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Client]:
    """A dashboard on a database of its own, for what is made up may delete any study."""
    ask("create database fuzzed")
    folder = tmp_path_factory.mktemp("fuzzed")
    with (
        attached(data_folder) as server,
        open_storage(f"postgresql://tuner@/fuzzed?host={quote(server['host'])}") as own,
    ):
        for study in (small(), small()):
            found = create.enter(own, study).optuna_study
            for value in (1.0, 2.0):
                complete(found, found.ask({"x": optuna.distributions.FloatDistribution(0, 1)}), value)
            found.ask()
        with served(own, folder, users_file=written(folder / "users", USERS)) as client:
            yield client
    ask("drop database fuzzed with (force)")


@pytest.fixture(scope="module")
def operator(client: Client) -> str:
    return client.cookie("olga")


@pytest.fixture(scope="module")
def leaver(client: Client) -> str:
    """A session that may be ended."""
    return client.cookie("olga")


def cases(operation: APIOperation[Any, Any, Any, Any]) -> Any:
    """Requests as they should be, and where something can be wrong with them, also as they should not."""
    fine = operation.as_strategy(generation_mode=GenerationMode.POSITIVE)
    wrong = operation.as_strategy(generation_mode=GenerationMode.NEGATIVE)
    return fine | wrong if "{" in operation.path or operation.body else fine


def named(operation: APIOperation[Any, Any, Any, Any]) -> str:
    return operation.label


@pytest.mark.parametrize("operation", OPERATIONS, ids=named)
@pytest.mark.filterwarnings("ignore::hypothesis.errors.NonInteractiveExampleWarning")
def test_no_request_breaks_a_route_and_none_is_served_without_a_login(
    client: Client, operator: str, leaver: str, operation: APIOperation[Any, Any, Any, Any]
) -> None:
    login = {"Cookie": leaver if operation.path == "/logout" else operator}

    @settings(
        max_examples=EXAMPLES,
        deadline=None,
        derandomize=True,
        database=None,
        suppress_health_check=list(HealthCheck),
    )
    @given(case=cases(operation))
    def made_up(case: Any) -> None:
        asked = case.as_transport_kwargs(base_url=client.address)
        for headers in ({}, login):
            response = case.call(base_url=client.address, headers=headers, allow_redirects=False, timeout=30)
            assert response.status_code < 500, (asked, response.text)
            assert b"Traceback" not in response.content
            assert response.headers["x-content-type-options"] == ["nosniff"]
            if not headers and case.path not in OPEN:
                assert response.status_code in (303, 401, 411), (asked, response.text)

    made_up()


def test_every_route_is_tried() -> None:
    """What Optuna's dashboard and our pages serve stands in the list above."""
    tried = {(method.upper(), shape(path)) for method, path, _ in ROUTES}
    optunas: Any = wsgi(optuna.storages.InMemoryStorage())
    assert {(route.method, shape(route.rule)) for route in optunas.routes} <= tried
    app = flask.Flask("ours")
    app.register_blueprint(pages)
    for rule in app.url_map.iter_rules():
        if rule.endpoint.startswith("pages."):
            for method in (rule.methods or set()) - {"HEAD", "OPTIONS"}:
                assert (method, shape(rule.rule)) in tried


def shape(path: str) -> str:
    """A path with * for each of its variables."""
    return re.sub(r"/?<:re:.*>$|<[^>]*>|\{[^}]*\}", "*", path).replace("/dashboard*", "/dashboard")

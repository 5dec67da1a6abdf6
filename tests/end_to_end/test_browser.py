"""A person with a real browser at the door: kept out, let in, and steering a study that runs."""

from __future__ import annotations

import re
import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest
from playwright.sync_api import Browser, BrowserContext, Page, expect
from werkzeug.security import generate_password_hash

PASSWORD = "correct horse"
STUDY = """\
name: watched
corpus: {builtin: markov}
threads: 1
trial: {tokens: 8_000, rungs: 2}
budget: {trials: 1000}
pruner: none
parameters:
  architecture: "slow:Slow"
  learning_rate: {type: float, low: 1e-3, high: 1e-1, log: true}
  dropout: {type: float, low: 0.0, high: 0.3}
  hidden_size: 16
  batch_size: 8
  sequence_length: 32
"""
SLOW = '''\
"""A generator that is asleep most of the time, and leaves the processor to the browser."""

import time

from torch import nn


class Slow(nn.Module):
    carries_state = True

    def __init__(self, config, vocabulary_size):
        super().__init__()
        self.embedding = nn.Embedding(vocabulary_size, config.hidden_size)
        self.recurrence = nn.GRU(config.hidden_size, config.hidden_size, batch_first=True)
        self.logits = nn.Linear(config.hidden_size, vocabulary_size)

    def forward(self, tokens, state=None):
        if self.training:
            time.sleep(0.05)
        hidden, state = self.recurrence(self.embedding(tokens), state)
        return self.logits(hidden), state
'''
PATIENCE = 60_000
"""Milliseconds that a page may take on a busy machine."""


class Desk:
    """A study that two workers work on, its dashboard, and a browser."""

    def __init__(self, place: Any, browser: Browser) -> None:
        self.place, self.browser = place, browser
        users = [
            f"{name}:{name}:{generate_password_hash(PASSWORD, 'scrypt:128:8:1')}" for name in ("reader", "operator")
        ]
        for name, text in (("watched.yaml", STUDY), ("slow.py", SLOW), ("users", "\n".join(users))):
            place.write(name, text)
        (place.home / "users").chmod(0o600)
        with closing(socket.create_server(("127.0.0.1", 0))) as free:
            port = free.getsockname()[1]
        self.address = f"http://127.0.0.1:{port}"
        self.study = place.start("run", "watched.yaml", "-n", 2)
        self.dashboard = place.start("dashboard", "--users", "users", "--port", port)
        self.number = self.study.until(self.study_id)
        self.dashboard.until(lambda: "Dashboard: " in self.dashboard.said)
        self.study.until(lambda: len(self.workers()) == 2)

    @property
    def page_of_study(self) -> str:
        return f"{self.address}/dashboard/studies/{self.number}"

    def study_id(self) -> int:
        with self.place.opened() as storage:
            return int(storage.get_study_id_from_name("watched"))

    def workers(self) -> list[Any]:
        return list(self.place.workers("watched"))

    def doing(self) -> set[str]:
        return {worker.doing for worker in self.workers()}

    def log_in(self, page: Page, name: str, password: str = PASSWORD) -> None:
        page.get_by_label("Name").fill(name)
        page.get_by_label("Password").fill(password)
        page.get_by_role("button", name="Log in").click()


@pytest.fixture(scope="module")
def desk(browser: Browser, new_place: Callable[[str], Any]) -> Iterator[Desk]:
    with new_place("desk") as place:
        yield Desk(place, browser)


@pytest.fixture
def context(desk: Desk) -> Iterator[BrowserContext]:
    """A browser that nobody has used yet."""
    context = desk.browser.new_context(base_url=desk.address)
    context.set_default_timeout(PATIENCE)
    yield context
    context.close()


@pytest.fixture
def page(context: BrowserContext) -> Page:
    expect.set_options(timeout=PATIENCE)
    return context.new_page()


def test_who_is_not_logged_in_sees_the_login_alone(page: Page, desk: Desk) -> None:
    for path in ("/", "/dashboard", f"/tuner/{desk.number}", f"/csv/{desk.number}"):
        page.goto(path)
        expect(page).to_have_title("Log in")
    assert page.request.get("/api/studies").status == 401
    assert page.request.get("/metrics").status == 401
    assert "watched" not in page.content()


def test_a_wrong_password_is_refused(page: Page, desk: Desk) -> None:
    page.goto("/dashboard")
    desk.log_in(page, "operator", "wrong horse")
    expect(page.get_by_role("alert")).to_have_text("Name or password is wrong.")
    page.goto("/dashboard")
    expect(page).to_have_title("Log in")


@contextmanager
def foreign_page(html: str) -> Iterator[str]:
    """The address of a page at another port."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(200)
            self.send_header("Content-Type", "text/html")
            self.end_headers()
            self.wfile.write(html.encode())

        def log_message(self, *arguments: Any) -> None: ...

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}/"
        server.shutdown()
        thread.join()


def test_a_form_on_a_foreign_page_changes_nothing(page: Page, desk: Desk) -> None:
    page.goto(f"/tuner/{desk.number}")
    desk.log_in(page, "operator")
    expect(page.get_by_role("button", name="Stop")).to_be_visible()
    form = f'<form method="post" action="{desk.address}/tuner/{desk.number}/stop"><button>You won</button></form>'
    with foreign_page(form) as address:  # of one site with us, so that the browser sends our cookie
        page.goto(address)
        with page.expect_response("**/stop") as caught:
            page.get_by_role("button", name="You won").click()
        assert "tuner=" in caught.value.request.all_headers()["cookie"]
        assert caught.value.status == 403
        expect(page.get_by_text("comes from a page that is none of ours")).to_be_visible()
    page.goto(f"/tuner/{desk.number}")
    expect(page.locator("h1 .state")).to_have_text("running")


def test_an_operator_pauses_a_running_study_and_lets_it_go_on(page: Page, desk: Desk) -> None:
    page.goto(f"/tuner/{desk.number}")
    desk.log_in(page, "operator")
    desk.study.until(lambda: "the study is paused" not in desk.doing())
    page.get_by_role("button", name="Pause").click()
    expect(page.get_by_role("status")).to_contain_text("paused; 2 workers save their trials and wait")
    desk.study.until(lambda: desk.doing() == {"the study is paused"})
    finished = len(desk.place.trials("watched"))
    page.get_by_label("Try these values next").fill("learning_rate=3")
    page.get_by_role("button", name="Enqueue").click()
    expect(page.get_by_role("alert")).to_contain_text("learning_rate 3 is not among what is searched")
    page.get_by_label("Try these values next").fill("learning_rate=0.0123")
    page.get_by_role("button", name="Enqueue").click()
    expect(page.get_by_role("status")).to_have_text(f"trial {finished} waits for a worker")
    page.get_by_role("button", name="Resume").click()
    expect(page.get_by_role("status")).to_have_text("running; 2 workers continue")
    desk.study.until(lambda: desk.place.trials("watched")[finished].params.get("learning_rate") == 0.0123)


def test_on_a_phone_no_page_is_wider_than_the_screen(page: Page, desk: Desk) -> None:
    page.set_viewport_size({"width": 390, "height": 844})
    page.goto("/tuner/")
    desk.log_in(page, "reader")
    note = (f"/dashboard/studies/{desk.number}/note", page.get_by_text("last heartbeat"))
    ours = (f"/tuner/{desk.number}", page.get_by_role("heading", name="Best trials"))
    for address, shown in (note, ours, ("/tuner/", page.get_by_role("link", name="watched"))):
        page.goto(address)
        expect(shown.first).to_be_attached()
        assert page.evaluate("document.documentElement.scrollWidth") == 390, address


def test_a_reader_sees_study_and_figures_and_nothing_is_kept_out_that_the_dashboard_needs(
    page: Page, desk: Desk
) -> None:
    said: list[str] = []
    page.on("console", lambda message: said.append(message.text))
    page.on("pageerror", lambda error: said.append(str(error)))
    desk.study.until(lambda: sum(trial.state.is_finished() for trial in desk.place.trials("watched")) >= 3)
    page.goto(desk.page_of_study)
    desk.log_in(page, "reader")
    expect(page).to_have_url(desk.page_of_study)
    expect(page.locator(".js-plotly-plot").first).to_be_visible()
    for path in ("trials?numbers=0", "note"):
        page.goto(f"{desk.page_of_study}/{path}")
        expect(page.get_by_text("watched", exact=False).first).to_be_visible()
    page.goto(f"{desk.page_of_study}/analytics")
    expect(page.locator(".js-plotly-plot").nth(3)).to_be_visible()
    page.goto("/dashboard")
    expect(page.get_by_text("watched").first).to_be_visible()
    page.goto(f"/tuner/{desk.number}")
    expect(page.get_by_role("button")).to_have_text(["Log out"])
    assert not [line for line in said if re.search("Content.Security|refused|violat|Error", line, re.IGNORECASE)], said
    page.get_by_role("button", name="Log out").click()
    page.goto("/dashboard")
    expect(page).to_have_title("Log in")

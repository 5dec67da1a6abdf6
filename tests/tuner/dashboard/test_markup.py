"""Texts of models, names, hosts, errors and notes as markup, on every page, in a real browser: nothing of it acts."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import optuna
import pytest
from optuna.distributions import CategoricalDistribution
from optuna.storages import RDBStorage
from optuna.trial import TrialState, create_trial
from optuna_dashboard import save_note
from playwright.sync_api import Browser, BrowserContext, Page, Request

from tests.tuner.conftest import WRITTEN
from tests.tuner.dashboard.serving import PASSWORD, USERS, Client, served, written
from tuner.artifacts.store import Artifacts
from tuner.dashboard.publisher import Publisher
from tuner.results import queries
from tuner.storage.handle import StudyHandle
from tuner.storage.leases import Leases
from tuner.study.definition import Study, stored_study
from tuner.trials.attachments import SAMPLES_ATTRIBUTE
from tuner.watch import html_report
from tuner.watch.notes import BEGIN, END, joined

EVIL = "https://evil.example"
PAYLOADS = [
    "<script>window.hacked=1;alert(1)</script>",
    f'<img src="{EVIL}/i" onerror="window.hacked=1">',
    "<img src=x onerror=window.hacked=1>",
    '"><svg onload=window.hacked=1>',
    f'<meta http-equiv="refresh" content="0;url={EVIL}/m">',
    f'<iframe srcdoc="<script>parent.hacked=1</script>"></iframe><iframe src="{EVIL}/f"></iframe>',
    f'<link rel="stylesheet" href="{EVIL}/l"><style>@import "{EVIL}/s"; body {{ background: url({EVIL}/b) }}</style>',
    f'<base href="{EVIL}/"><form action="{EVIL}/p"><input autofocus onfocus="window.hacked=1"></form>',
    f"![picture]({EVIL}/p.png) [click](javascript:window.hacked=1) [data](data:text/html,<script>alert(1)</script>)",
    f"[ref]: {EVIL}/r\n![ref] <{EVIL}/a> [//]: # (a comment",
    "$$\\href{javascript:window.hacked=1}{x} \\require{html} \\style{position:fixed}{y}$$ $\\unicode{x41}$",
    '```mermaid\ngraph TD; A["<img src=x onerror=window.hacked=1>"]-->B; click A "javascript:window.hacked=1"\n```',
    f"{END}\n\n<script>window.hacked=1</script>\n\n{BEGIN}",
    "````\n`````\n~~~\n<!-- -->\n--> ]]> */ </textarea></title></style></pre>",
    "</script><script>window.hacked=1</script>",
    "{{7*7}} ${7*7} {% raw %} <%= 7*7 %>",
    "\u202egpj.exe\u2066\x1b]0;mine\x07\x1b[2J\x00\u2028",
    "w" * 3000,
]
ALL = "\n\n".join(PAYLOADS)


@pytest.fixture(scope="module")
def hostile(
    storage: RDBStorage, small: Callable[..., Study], enter: Any, tmp_path_factory: pytest.TempPathFactory
) -> optuna.Study:
    """A study that is named, described, worked on and noted by an attacker who may write all of it."""
    study = small(20, name=PAYLOADS[1].replace("/", "\u2215") + "{{7*7}}")
    found: optuna.Study = enter(study)
    for number, state in enumerate([TrialState.COMPLETE, TrialState.PRUNED, TrialState.FAIL] * 4):
        choices = CategoricalDistribution(["gru", *PAYLOADS[:6]])
        found.add_trial(
            create_trial(
                state=state,
                value=2.0 + number if state == TrialState.COMPLETE else None,
                params={"architecture": PAYLOADS[number % 6], "</script><img src=x onerror=window.hacked=1>": "gru"},
                distributions=dict.fromkeys(["architecture", "</script><img src=x onerror=window.hacked=1>"], choices),
                intermediate_values={1: 4.0, 2: 3.0},
                user_attrs=WRITTEN
                | {"reason": ALL, "traceback": ALL, "worker": PAYLOADS[0], "device": PAYLOADS[2], "machine": ALL}
                | {"versions": {PAYLOADS[0]: PAYLOADS[1]}, "configuration": {PAYLOADS[2]: PAYLOADS[3]}}
                | {PAYLOADS[1]: PAYLOADS[2], "mine": PAYLOADS[0]},
                system_attrs={SAMPLES_ATTRIBUTE: [{"prompt": one, "text": one} for one in PAYLOADS]},
            )
        )
    save_note(found, ALL)
    save_note(optuna.Trial(found, found.trials[0]._trial_id), ALL)
    leases = Leases(storage, found._study_id)
    leases.join("w-" + found.study_name, PAYLOADS[1], 1, PAYLOADS[2], 1)
    return found


class Witness:
    """A page of a browser, and what happens on it that nobody asked for; the browser itself finds no foreign host."""

    def __init__(self, page: Page, own: str) -> None:
        self.page, self.own = page, own
        self.happened: list[str] = []
        page.on("dialog", self._dialog)
        page.on("popup", lambda other: self.happened.append(f"opened {other.url}"))
        page.on("request", self._note_foreign)
        page.on("requestfailed", self._forget_refused)

    def _dialog(self, dialog: Any) -> None:
        self.happened.append(f"dialog: {dialog.message}")
        dialog.dismiss()

    def _note_foreign(self, request: Request) -> None:
        if not request.url.startswith((self.own, "data:", "blob:")):
            self.happened.append(f"asked for {request.url}")

    def _forget_refused(self, request: Request) -> None:
        """What the page's policy does not allow was never asked for."""
        if request.failure == "csp":
            self.happened.remove(f"asked for {request.url}")

    def visit(self, address: str, awaited: str | None = None) -> str:
        """Opens a page and lets it settle; returns what is to be read on it."""
        if "/dashboard" in address:  # its page asks for what it shows
            with self.page.expect_response(lambda response: "/api/studies" in response.url):
                self.page.goto(address)
            self.page.wait_for_load_state("networkidle")
        else:
            self.page.goto(address)
        if awaited is not None:
            self.page.get_by_text(awaited).first.wait_for(state="attached")
        self.require_nothing_happened()
        return self.page.inner_text("body")

    def require_nothing_happened(self) -> None:
        """Neither when the page was loaded nor once it was painted."""
        self.page.evaluate("new Promise(done => requestAnimationFrame(() => setTimeout(done)))")
        hacked = self.page.evaluate("window.hacked")
        links = self.page.evaluate("[...document.querySelectorAll('a')].map(one => one.getAttribute('href') ?? '')")
        acting = [link for link in links if link.startswith(("javascript:", "data:"))]
        assert (self.happened, hacked, acting, len(self.page.frames)) == ([], None, [], 1)
        assert self.page.url.startswith(self.own)


@pytest.fixture(scope="module")
def client(storage: RDBStorage, hostile: optuna.Study, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Client]:
    folder = tmp_path_factory.mktemp("markup")
    with ExitStack() as stack:
        publisher = Publisher(storage)
        (row,) = [one for one in queries.all_rows(storage) if one.study_id == hostile._study_id]
        publisher._publish_one(row)
        stack.enter_context(publisher.shown())
        yield stack.enter_context(served(storage, folder, users_file=written(folder / "users", USERS)))


@pytest.fixture(scope="module")
def entered(browser: Browser, client: Client) -> Iterator[BrowserContext]:
    """A browser in which an operator has logged in."""
    context = browser.new_context()
    context.set_default_timeout(60_000)
    page = context.new_page()
    page.goto(f"{client.address}/login?next=/tuner/")
    page.get_by_label("Name").fill("olga")
    page.get_by_label("Password").fill(PASSWORD)
    page.get_by_role("button", name="Log in").click()
    page.wait_for_url("**/tuner/")
    page.close()
    yield context
    context.close()


@pytest.fixture
def witness(entered: BrowserContext, client: Client) -> Iterator[Witness]:
    page = entered.new_page()
    yield Witness(page, client.address)
    page.close()


def test_the_login_page_shows_what_a_link_says_as_text(browser: Browser, client: Client) -> None:
    context = browser.new_context()
    watched = Witness(context.new_page(), client.address)
    for payload in PAYLOADS:
        query = quoted(payload)
        watched.visit(f"{client.address}/login?next={query}")
        watched.visit(f"{client.address}/login?next=/x{query}")
    context.close()


def quoted(text: str) -> str:
    from urllib.parse import quote

    return quote(text, safe="", errors="replace")


PAGES = [
    "/tuner/", "/tuner/{study}", "/dashboard", "/dashboard/studies/{study}", "/dashboard/studies/{study}/analytics",
    "/dashboard/studies/{study}/note", "/dashboard/studies/{study}/trials?numbers=0",
    "/dashboard/studies/{study}/trials?numbers=2", "/dashboard/studies/{study}/trialTable",
    "/metrics", "/healthz",
    "/csv/{study}x", "/api/studies/{study}", "/dashboard/compare-studies?ids={study}",
]  # fmt: skip


@pytest.mark.parametrize("path", PAGES)
def test_nothing_from_outside_acts_on_a_page(witness: Witness, hostile: optuna.Study, path: str) -> None:
    shown = "window.hacked" if "note" in path or "numbers" in path else None  # it is there, as text
    assert witness.visit(witness.own + path.format(study=hostile._study_id), shown)


def test_what_a_form_is_given_comes_back_as_text(witness: Witness, hostile: optuna.Study) -> None:
    for payload in (PAYLOADS[0], PAYLOADS[1], PAYLOADS[3], PAYLOADS[14]):
        witness.visit(f"{witness.own}/tuner/{hostile._study_id}")
        witness.page.get_by_label("Try these values next").fill(payload)
        with witness.page.expect_navigation():
            witness.page.get_by_role("button", name="Enqueue").click()
        witness.require_nothing_happened()


def test_the_report_is_text(browser: Browser, storage: RDBStorage, hostile: optuna.Study, tmp_path: Path) -> None:
    study = stored_study(hostile.user_attrs["study"])
    path = tmp_path / "report.html"
    path.write_text(html_report.report(StudyHandle(storage, hostile, study), Artifacts(tmp_path)), encoding="utf-8")
    context = browser.new_context()
    text = Witness(context.new_page(), path.as_uri()).visit(path.as_uri())
    assert "window.hacked" in text
    context.close()


def test_whoever_saves_a_page_saves_what_a_person_wrote_and_nothing_of_ours(
    client: Client, hostile: optuna.Study
) -> None:
    sent = json.loads(client.get(f"/api/studies/{hostile._study_id}", Cookie=client.cookie("olga")).text)
    for note in (sent["note"]["body"], sent["trials"][0]["note"]["body"]):
        assert joined(note, "ours") == joined(ALL, "ours")

"""What all tests share: one thread, caches out of the user's own, and a browser."""

import logging
import os
import shutil
import sys
from collections.abc import Iterator
from typing import Any

import pytest

from models import logs

os.environ["OMP_NUM_THREADS"] = "1"
"""Of PyTorch, here and in the processes that tests start: its threads wait awake, and tests run side by side."""


@pytest.fixture(autouse=True, scope="session")
def _own_cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))
        yield


@pytest.fixture
def own_import_path(monkeypatch: pytest.MonkeyPatch) -> None:
    """Undoes what looking for the user's own generators does to the path of imports."""
    monkeypatch.setattr(sys, "path", [*sys.path])


@pytest.fixture
def logging_as_before() -> Iterator[None]:
    """Undoes what a command line has configured."""
    root, levels = logging.getLogger(), {name: logging.getLogger(name).level for name in ("tuner", "models")}
    handlers = list(root.handlers)
    yield
    root.handlers[:] = handlers
    for name, level in levels.items():
        logging.getLogger(name).setLevel(level)
    logs.PLACE.clear()
    logs.settings.clear()


@pytest.fixture(scope="session")
def browser() -> Iterator[Any]:
    """Debian's Chromium, one for all tests of a process, which knows no host but this one.

    A laptop may be without it, the CI not.
    """
    program = shutil.which("chromium")
    if program is None:
        if os.environ.get("CI") == "true":
            pytest.fail("chromium is missing: .ci/run installs it")
        pytest.skip("needs chromium: apt-get install chromium")
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        launched = playwright.chromium.launch(
            executable_path=program, args=["--no-sandbox", "--host-resolver-rules=MAP * ~NOTFOUND , EXCLUDE 127.0.0.1"]
        )
        yield launched
        launched.close()

"""Logs: a short line for terminals, a full one for workers' files, JSON for machines; silent without a command."""

import json
import logging
import re
import subprocess
import sys

import pytest

from models import logs

pytestmark = pytest.mark.usefixtures("logging_as_before")


def test_a_line_for_people_has_the_time_and_nothing_that_acts(capsys: pytest.CaptureFixture[str]) -> None:
    logs.configure("INFO", "text")
    logs.configure("INFO", "text")  # once more says nothing twice
    logging.getLogger("models.some").info("50 %% of %s", "a\x1b[2Jb")
    logging.getLogger("models.some").debug("details")
    assert re.fullmatch(r"\d\d:\d\d:\d\d 50 % of a␛\[2Jb\n", capsys.readouterr().err)


def test_a_line_of_a_worker_says_where_it_is_from(capsys: pytest.CaptureFixture[str]) -> None:
    logs.configure("INFO", "place")
    logs.PLACE.update(study="small", worker="host-1-1", trial=7)
    logging.getLogger("models.some").warning("too hot")
    said = capsys.readouterr().err
    assert re.fullmatch(r"\d{4}(-\d\d){2} [\d:]{8} WARNING study=small worker=host-1-1 trial=7: too hot\n", said)


def test_json_has_one_object_a_line_with_tracebacks_in_it(capsys: pytest.CaptureFixture[str]) -> None:
    logs.configure("DEBUG", "json")
    logs.PLACE.update(study="small", trial=7)
    try:
        raise ValueError("no\nway")
    except ValueError:
        logging.getLogger("models.some").exception("broken")
    (line,) = capsys.readouterr().err.splitlines()
    found = json.loads(line)
    assert (found["level"], found["logger"], found["study"], found["trial"]) == ("ERROR", "models.some", "small", 7)
    assert found["message"].startswith("broken\nTraceback")
    assert found["message"].endswith("ValueError: no\nway")
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT[\d:]{8}\.\d{3}[+-]\d{4}", found["time"])


def test_who_imports_the_packages_hears_nothing() -> None:
    program = """
import logging, models, tuner
for name in ("models.some", "tuner.some"):
    logging.getLogger(name).error("too hot")
print(logging.getLogger().handlers)
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert (done.stdout, done.stderr) == ("[]\n", "")

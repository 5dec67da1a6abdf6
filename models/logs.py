"""How logs look: one line on the terminal, one with its place in a worker's file, or one JSON object.

Modules log to `logging.getLogger(__name__)`; only a command line calls `configure`, so that `import models` and
`import tuner` say nothing by themselves.
"""

from __future__ import annotations

import json
import logging
import sys
import time
from typing import Any, TextIO

LEVEL, FORMAT = "TUNER_LOG_LEVEL", "TUNER_LOG_FORMAT"
"""The environment variables by which a command tells its worker processes how to log."""

LEVELS = ("DEBUG", "INFO", "WARNING", "ERROR", "CRITICAL")

PLACE: dict[str, Any] = {}
"""What this process is at work on: study, worker and trial, where there are any. It stands in each line of a worker."""


class TerminalFormatter(logging.Formatter):
    """12:03:59 message; for a person who looks on."""

    def format(self, record: logging.LogRecord) -> str:
        return f"{_time(record, '%H:%M:%S')} {_text(self, record)}"


class PlaceFormatter(logging.Formatter):
    """2026-11-26 12:03:59 INFO study=shakespeare worker=3 trial=17: message; for a file of a worker's."""

    def format(self, record: logging.LogRecord) -> str:
        place = " ".join(f"{name}={value}" for name, value in PLACE.items())
        head = f"{_time(record, '%Y-%m-%d %H:%M:%S')} {record.levelname}"
        return f"{head} {place}: {_text(self, record)}" if place else f"{head}: {_text(self, record)}"


class JsonFormatter(logging.Formatter):
    """One JSON object for each line: time, level, logger, message, and study, worker and trial where there are any."""

    def format(self, record: logging.LogRecord) -> str:
        moment = f"{_time(record, '%Y-%m-%dT%H:%M:%S')}.{record.msecs:03.0f}{time.strftime('%z')}"
        facts = {"time": moment, "level": record.levelname, "logger": record.name, **PLACE}
        return json.dumps(facts | {"message": _text(self, record)}, ensure_ascii=False)


FORMATTERS = {"text": TerminalFormatter, "place": PlaceFormatter, "json": JsonFormatter}


class _ErrorStream(logging.StreamHandler[TextIO]):
    """Writes to what standard error is when a line is written."""

    def __init__(self) -> None:
        logging.Handler.__init__(self)

    @property
    def stream(self) -> TextIO:  # type: ignore[override]
        return sys.stderr


settings: dict[str, str] = {}
"""How this process was told to log, as the variables that tell it to another."""


def configure(level: str, form: str) -> None:
    """Logs from here on to standard error, in one of FORMATTERS; called again, it changes how."""
    settings.update({LEVEL: level, FORMAT: form})
    root = logging.getLogger()
    for handler in [one for one in root.handlers if isinstance(one, _ErrorStream)]:
        root.removeHandler(handler)
    handler = _ErrorStream()
    handler.setFormatter(FORMATTERS[form]())
    root.addHandler(handler)
    for name in ("tuner", "models"):
        logging.getLogger(name).setLevel(level)


def _time(record: logging.LogRecord, form: str) -> str:
    return time.strftime(form, time.localtime(record.created))


def _text(formatter: logging.Formatter, record: logging.LogRecord) -> str:
    """The message, and the traceback if there is one, without control characters."""
    from models.safe_text.terminal import lines

    trace = f"\n{formatter.formatException(record.exc_info)}" if record.exc_info else ""
    return lines(record.getMessage() + trace)

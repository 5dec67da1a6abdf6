"""Text generators and their training; useful without the tuner. `load("RUN").generate("Once")` writes with a run."""

import logging
from typing import Any

__all__ = ["load"]

logging.getLogger(__name__).addHandler(logging.NullHandler())  # who imports it decides what is heard


def __getattr__(name: str) -> Any:
    if name == "load":  # imports torch, which configurations and corpora do without
        from models.runs.run import load

        return load
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")

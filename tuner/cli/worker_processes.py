"""Commands that other commands start: one worker, one measurement of speed."""

from __future__ import annotations

import logging
import os
import sys
from contextlib import redirect_stdout
from functools import partial

import click

from models import logs
from tuner.cli import options
from tuner.storage.locations import StorageOptions

logger = logging.getLogger(__name__)


@click.command(name="_worker", hidden=True)
@click.argument("study_name")
@options.places
@click.option("--device", required=True)
@click.option("--threads", type=int, required=True)
@click.option("--corpus", "corpus_path")
@click.option("--study-id", type=int, help="What the study is known by, whatever its name is by now.")
@click.option("--id", "worker_id", required=True)
@options.checkpoint_seconds
def worker(
    study_name: str,
    places: StorageOptions,
    device: str,
    threads: int,
    corpus_path: str | None,
    study_id: int | None,
    worker_id: str,
    checkpoint_seconds: float,
) -> None:
    """One worker process; started by `run` and `work`."""
    import faulthandler

    from models.training.stopping import stop_requests
    from tuner.storage.handle import open_study
    from tuner.workers.worker import work as work_on

    faulthandler.enable()
    logs.configure(os.environ.get(logs.LEVEL, "INFO"), "json" if os.environ.get(logs.FORMAT) == "json" else "place")
    logs.PLACE.update(study=study_name, worker=worker_id)
    with stop_requests() as requested, places.opened() as opened:
        study = open_study(opened, study_name)
        reason = work_on(
            opened,
            study_name,
            study_id=study_id,
            device=device,
            threads=threads,
            artifacts=places.writable_artifacts_of(study.optuna_study),
            requested=requested,
            worker_id=worker_id,
            checkpoint_seconds=checkpoint_seconds,
            corpus_path=corpus_path,
            supervisor=supervisor_of_this(),
        )
    logger.info("ended: %s", reason)


def supervisor_of_this() -> int | None:
    """The process that supervises this one, if any; it passes its own number to its children."""
    from tuner.workers.supervisor_watch import SUPERVISOR

    number = os.environ.pop(SUPERVISOR, "")
    return int(number) if number.isdecimal() else None


@click.command(name="_pace", hidden=True)
def pace() -> None:
    """One worker of the measurement of --per-device auto."""
    from tuner.workers.supervisor_watch import Lifeline

    Lifeline(supervisor_of_this()).end_with_it()
    from tuner.workers.oversubscription import pace as pace_on

    tell = partial(click.echo, file=sys.stdout)
    with redirect_stdout(sys.stderr):  # what a generator of the user's own prints is no answer
        pace_on(sys.stdin.readline, tell)

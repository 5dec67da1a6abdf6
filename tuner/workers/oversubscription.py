"""Measures how many workers get the most done on a device."""

from __future__ import annotations

import json
import logging
import select
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import ExitStack, suppress
from typing import TYPE_CHECKING, Any

from models.errors import CorpusError
from tuner.errors import WorkerError
from tuner.study.definition import Study
from tuner.workers import supervisor_watch
from tuner.workers.processes import Slot, cores, slots, variables

if TYPE_CHECKING:
    from models.config import Config

logger = logging.getLogger(__name__)

SECONDS = 3.0
"""How long a number of workers is looked at, once all of them train."""

WORTHWHILE = 1.05
"""How many times as much twice as many workers must do: more workers need more memory, and learn less of each other."""

MOST = 32
"""Workers on a GPU that are tried; on a CPU, twice as many as it has cores."""

Job = dict[str, Any]
"""What the workers of a measurement train: a study and a configuration, as they are stored."""

DRAWN = 15
WARM_UP_STEPS = 3


def workers_per_device(
    study: Study,
    devices: str,
    threads: int | None,
    *,
    most_workers: int | None = None,
    rate_of: Callable[[Job, list[Slot]], float] | None = None,
) -> int:
    """Returns how many workers on a device train the most together: 1, 2, 4, ... as long as it is worth while.

    They train a typical configuration of the study, for some seconds each time, on the first of `devices`; `rate_of`
    measures them, and at most `most_workers` are tried. Raises DeviceError when a device is not there, WorkerError when
    not even one worker can train.
    """
    measure = rate_of or tokens_per_second
    first = slots(1, devices, threads)[0].device if devices == "auto" else devices.split(",")[0]
    job = {"study": study.stored(), "configuration": typical(study).model_dump(mode="json")}
    count, most = 1, 0.0
    while count <= (most_workers or (2 * cores() if first == "cpu" else MOST)):
        rate = measure(job, slots(None, first, threads, count))
        if rate:
            logger.info("%d on a device: %s tokens/s", count, f"{rate:,.0f}")
        else:
            logger.info("%d on a device: too many", count)
        if not rate or rate < most * WORTHWHILE:
            break
        most, count = rate, 2 * count
    if not most:
        raise WorkerError("--per-device auto: no worker could train a typical configuration; see above")
    return count // 2


def typical(study: Study) -> Config:
    """Returns a configuration of median size among some drawn at random, the same ones each time."""
    import optuna

    from models.nn.network import parameter_count

    optuna.logging.set_verbosity(optuna.logging.WARNING)
    random = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=0))
    drawn = [study.space.suggest(random.ask()) for _ in range(DRAWN)]
    known = _vocabularies(study, drawn)
    sizes = [parameter_count(config, known.get(config.tokenizer, config.vocabulary_size)) for config in drawn]
    return drawn[sizes.index(statistics.median_low(sizes))]


def _vocabularies(study: Study, drawn: list[Config]) -> dict[str, int]:
    """How many tokens there are of kinds that the text decides on; words and byte pairs are as many as one asks for."""
    from models.text.corpus import load_corpus

    kinds = {config.tokenizer for config in drawn} & {"byte", "character"}
    with suppress(CorpusError):  # who trains will say what is wrong with the text
        size = study.space.largest("vocabulary_size")
        return {kind: load_corpus(study.corpus, kind, size).tokenizer.vocabulary_size for kind in kinds}
    return {}


def start_measured(place: Slot) -> subprocess.Popen[str]:
    """Starts a worker of a measurement, which runs `pace` on its standard input and output."""
    command = [sys.executable, "-P", "-m", "tuner", "_pace"]
    environment, pipe = variables(place) | supervisor_watch.environment(), subprocess.PIPE
    return subprocess.Popen(command, env=environment, stdin=pipe, stdout=pipe, text=True, start_new_session=True)


def tokens_per_second(
    job: Job, places: list[Slot], start: Callable[[Slot], subprocess.Popen[str]] = start_measured
) -> float:
    """Returns what a worker in each place does, all at the same time; 0 when one of them could not."""
    patience = job["study"]["timeout"]
    with ExitStack() as stack:
        processes = [stack.enter_context(start(place)) for place in places]
        try:
            for process, place in zip(processes, places, strict=True):
                _tell(process, json.dumps(job | {"device": place.device, "threads": place.threads}))
            if not all(_heard(process, patience) == "ready" for process in processes):
                return 0.0
            for process in processes:
                _tell(process, "go")
            rates = [float(_heard(process, patience) or 0) for process in processes]
            return sum(rates) if all(rate > 0 for rate in rates) else 0.0  # one that has died trains nothing
        except (OSError, ValueError):
            return 0.0
        finally:
            for process in processes:
                process.kill()


def _tell(process: subprocess.Popen[str], text: str) -> None:
    assert process.stdin is not None  # it was asked for
    process.stdin.write(text + "\n")
    process.stdin.flush()


def _heard(process: subprocess.Popen[str], patience: float) -> str:
    """The next line of a process; nothing when it ended, or was silent for `patience` seconds."""
    assert process.stdout is not None
    ready, _, _ = select.select([process.stdout], [], [], patience)
    return process.stdout.readline().strip() if ready else ""


def pace(ask: Callable[[], str], tell: Callable[[str], None]) -> None:
    """One worker of a measurement: gets its job, says when it is ready, and after a word how fast it trained."""
    import torch

    from models.config import Config
    from models.text.corpus import load_corpus
    from models.training.loop import Training, usable_device
    from tuner.study.definition import stored_study

    job = json.loads(ask())
    torch.set_num_threads(job["threads"])
    study, config = stored_study(job["study"]), Config.model_validate(job["configuration"])
    corpus = load_corpus(study.corpus, config.tokenizer, config.vocabulary_size)
    training = Training(config, corpus, study.trial, usable_device(job["device"]))
    for _ in range(WARM_UP_STEPS):
        training.take_step()
    tell("ready")
    ask()
    tell(f"{_rate(training):.1f}")


def _rate(training: Any) -> float:
    """Tokens per second; the last step is read, so that what a GPU still has to do is counted."""
    start, before = time.perf_counter(), training.tokens
    while time.perf_counter() - start < SECONDS:
        for _ in range(10):
            training.take_step()
        _ = training.recent_loss
    return float((training.tokens - before) / (time.perf_counter() - start))

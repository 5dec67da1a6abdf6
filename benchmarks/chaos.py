"""A study whose workers and whose PostgreSQL are killed all the time: what is lost, doubled, or different at its end.

    python benchmarks/chaos.py

Needs psutil; as root on Linux one full disk is part of it.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from statistics import mean
from typing import Any
from urllib.parse import quote

import optuna
import psutil
import sqlalchemy
import torch
from machine import show
from sqlalchemy.exc import SQLAlchemyError

from models.config import Config
from models.text.corpus import load_corpus
from models.training.loop import Evaluation, train
from models.training.observer import TrainingObserver
from tuner.storage.connection import open_storage
from tuner.storage.embedded import attached, revive
from tuner.storage.leases import Leases
from tuner.study.definition import Study, read_study

CHECKPOINT_SECONDS = 1.0
STUDY = """
name: chaos
corpus: {{builtin: markov}}
trial: {{tokens: {tokens}, rungs: 5}}
budget: {{trials: {trials}}}
sampler: {{type: random, seed: 1}}
pruner: {{type: successive_halving, reduction_factor: 2, min_early_stopping_rate: 1}}
threads: 1
parameters:
  architecture: {{type: categorical, choices: [rnn, lstm, gru, transformer]}}
  hidden_size: {{type: int, low: 32, high: 96, step: 32}}
  heads: {{type: categorical, choices: [2, 4], when: {{architecture: transformer}}}}
  learning_rate: {{type: float, low: 1e-3, high: 3e-2, log: true}}
  dropout: {{type: float, low: 0.0, high: 0.3}}
"""


class Server:
    """A PostgreSQL that can be stopped and started again."""

    def __init__(self, folder: Path, address: dict[str, str]) -> None:
        self.folder = folder
        self.url = f"postgresql://{address['username']}@/{address['database']}?host={quote(address['host'])}"

    def stop(self, how: signal.Signals) -> None:
        number = int((self.folder / "cluster" / "postmaster.pid").read_text().split()[0])
        family = [psutil.Process(number), *psutil.Process(number).children()]
        os.kill(number, how)
        end = time.monotonic() + 60
        while any(lives(process) for process in family) and time.monotonic() < end:
            time.sleep(0.05)

    def start(self) -> None:
        revive(self.folder)


def lives(process: psutil.Process) -> bool:
    """Whether a process is more than a zombie, whose parent has not read its exit code."""
    with suppress(psutil.Error):
        return bool(process.status() != psutil.STATUS_ZOMBIE)
    return False


class Team:
    """The commands that hold the workers: the first is `tuner run`, the others `tuner work`."""

    def __init__(self, folder: Path, url: str, size: int) -> None:
        self.folder, self.size = folder, size
        self.environment = os.environ | {
            "TUNER_STORAGE": url,
            "TUNER_ARTIFACTS": str(folder / "artifacts"),
            "TUNER_CHECKPOINT_SECONDS": str(CHECKPOINT_SECONDS),
        }
        self.commands: dict[int, subprocess.Popen[bytes]] = {}

    def start(self, index: int) -> None:
        what = ["run", "chaos.yaml", "--force"] if index == 0 else ["work", "chaos"]
        command = [sys.executable, "-P", "-m", "tuner", *what, "-n", "1"]
        with (self.folder / f"command-{index}.log").open("ab") as log:
            self.commands[index] = subprocess.Popen(
                command, cwd=self.folder, env=self.environment, stdout=log, stderr=log, start_new_session=True
            )

    def restart_ended(self) -> None:
        for index in range(self.size):
            if index not in self.commands or self.commands[index].poll() is not None:
                self.start(index)

    def workers(self) -> dict[str, psutil.Process]:
        """The living workers by their id."""
        found = {}
        for process in psutil.process_iter():
            with suppress(psutil.Error):
                words = process.cmdline()
                told = process.environ().get("TUNER_ARTIFACTS") == self.environment["TUNER_ARTIFACTS"]
                if told and "_worker" in words and process.status() != psutil.STATUS_ZOMBIE:
                    found[words[words.index("--id") + 1]] = process
        return found

    def end(self) -> list[int]:
        """Waits until all have ended by themselves; returns their exit codes."""
        codes = []
        for command in self.commands.values():
            try:
                codes.append(command.wait(120))
            except subprocess.TimeoutExpired:
                codes.append(-1)
                command.kill()
        return codes


class Losses:
    """What each kill of a worker cost at most: the time since its trial was saved, or taken up, waiting included."""

    def __init__(self, url: str, artifacts: Path) -> None:
        self.engine = sqlalchemy.create_engine(url.replace("postgresql:", "postgresql+psycopg2:"))
        self.checkpoints = artifacts / "chaos" / "checkpoints"
        self.since: dict[tuple[str, int], float] = {}
        self.seconds: list[float] = []

    def look(self) -> dict[str, tuple[int, int]]:
        """Returns trial and attempt of each worker that has one; the database may be away."""
        query = (
            "select l.worker_id, t.number, l.attempt from tuner_leases l join trials t using (trial_id)"
            " where t.state = 'RUNNING'"
        )
        with suppress(SQLAlchemyError), self.engine.connect() as connection:
            held = {row[0]: (row[1], row[2]) for row in connection.execute(sqlalchemy.text(query))}
            for worker, (trial, _) in held.items():
                self.since.setdefault((worker, trial), time.time())
            return held
        return {}

    def note(self, worker: str, held: dict[str, tuple[int, int]]) -> None:
        if worker in held:
            trial, attempt = held[worker]
            saved = self.since[worker, trial]
            with suppress(OSError):
                saved = max(saved, (self.checkpoints / f"trial-{trial}.{attempt}.safetensors").stat().st_mtime)
            self.seconds.append(time.time() - saved)


@contextmanager
def small_disk(artifacts: Path, wanted: bool) -> Any:
    """Artifacts on a disk of 64 MB that can be filled, where that is allowed; yields whether it is."""
    artifacts.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=64m", "tmpfs", str(artifacts)]
    mounted = wanted and subprocess.run(mount, capture_output=True).returncode == 0
    try:
        yield mounted
    finally:
        if mounted:
            subprocess.run(["umount", "-l", str(artifacts)], check=True)


def disturb(team: Team, server: Server, artifacts: Path, disk: bool, wanted: argparse.Namespace) -> dict[str, Any]:
    """Lets the study run under fire until its budget is spent; returns what was done to it."""
    dice, losses = random.Random(wanted.seed), Losses(server.url, artifacts)
    done = {"kills": 0, "SIGTERMs": 0, "supervisors killed": 0, "restarts": 0, "outages": 0, "full disks": 0}
    finished = 0
    stops = {int(wanted.trials * part / (wanted.restarts + 1)) for part in range(1, wanted.restarts + 1)}
    outage_at = wanted.trials // 2 if wanted.outage else None
    full_at = wanted.trials * 3 // 5 if disk else None
    next_kill = time.monotonic() + 5
    with open_storage(server.url) as storage:
        while finished < wanted.trials:
            team.restart_ended()
            held = losses.look()
            with suppress(KeyError, SQLAlchemyError, optuna.exceptions.StorageInternalError):
                study_id = storage.get_study_id_from_name("chaos")
                finished = Leases(storage, study_id).counts().finished
            if any(at <= finished for at in stops):
                stops -= {at for at in stops if at <= finished}
                server.stop(dice.choice([signal.SIGINT, signal.SIGKILL]))
                time.sleep(2)
                server.start()
                done["restarts"] += 1
            if outage_at is not None and finished >= outage_at:
                outage_at = None
                server.stop(signal.SIGINT)
                time.sleep(wanted.outage)
                server.start()
                done["outages"] += 1
            if full_at is not None and finished >= full_at:
                full_at = None
                fill(artifacts)
                done["full disks"] += 1
            if time.monotonic() >= next_kill and finished < wanted.trials:
                next_kill = time.monotonic() + wanted.kill_every
                strike(team, losses, held, dice, done)
            time.sleep(0.2)
    return done | {
        "seconds since the last checkpoint, per kill, mean": mean(losses.seconds or [0.0]),
        "most": max(losses.seconds, default=0.0),
    }


def strike(
    team: Team, losses: Losses, held: dict[str, tuple[int, int]], dice: random.Random, done: dict[str, int]
) -> None:
    """Four times in five a worker is killed; else a command is asked to leave, or killed with its worker left alone."""
    chance = dice.random()
    if chance < 0.8:
        workers = team.workers()
        for worker in dice.sample(sorted(workers), min(1, len(workers))):
            losses.note(worker, held)
            with suppress(psutil.Error):
                workers[worker].kill()
                done["kills"] += 1
        return
    command = team.commands[dice.randrange(team.size)]
    if command.poll() is None:
        command.send_signal(signal.SIGTERM if chance < 0.93 else signal.SIGKILL)
        done["SIGTERMs" if chance < 0.93 else "supervisors killed"] += 1


def fill(artifacts: Path) -> None:
    """Fills the disk, waits, and makes room again."""
    filler = artifacts / "filler"
    with suppress(OSError), filler.open("wb", buffering=0) as file:
        while True:
            file.write(bytes(2**16))
    time.sleep(3 * CHECKPOINT_SECONDS + 3)
    filler.unlink()


class _Enough(Exception):
    pass


def undisturbed(study: Study, trial: optuna.trial.FrozenTrial) -> dict[int, float]:
    """Returns the rungs of a trial's configuration, trained as far as the trial was, by one process in one go."""
    config = Config.model_validate(trial.user_attrs["configuration"])
    reported: dict[int, float] = {}

    class Noting(TrainingObserver):
        def on_evaluation(self, evaluation: Evaluation) -> None:
            reported[evaluation.rung] = evaluation.bits_per_byte
            if evaluation.rung == max(trial.intermediate_values):
                raise _Enough

    with suppress(_Enough):
        corpus = load_corpus(study.corpus, config.tokenizer, config.vocabulary_size)
        train(config, corpus, study.trial, observer=Noting())
    return reported


def judge(study: Study, trials: list[optuna.trial.FrozenTrial]) -> dict[str, int]:
    """Counts what went wrong; all but the first should be 0."""
    torch.set_num_threads(1)
    finished = [trial for trial in trials if trial.state.name in ("COMPLETE", "PRUNED")]
    configurations = [json.dumps(trial.user_attrs.get("configuration")) for trial in finished]
    missing = sum(list(trial.intermediate_values) != list(range(1, trial.last_step + 1)) for trial in finished)  # type: ignore[operator]
    short = sum(trial.state.name == "COMPLETE" and trial.last_step != study.trial.rungs for trial in finished)
    different = sum(undisturbed(study, trial) != trial.intermediate_values for trial in finished)
    return {
        "finished": len(finished),
        "lost": len(trials) - len(finished),
        "doubled": len(configurations) - len(set(configurations)),
        "rung reports missing": missing + short,
        "values different from the undisturbed run": different,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--trials", type=int, default=60)
    parser.add_argument("--workers", type=int, default=4)
    parser.add_argument("--tokens", type=int, default=200_000, help="of each trial")
    parser.add_argument("--kill-every", type=float, default=2.0, help="seconds")
    parser.add_argument("--restarts", type=int, default=3, help="of the server")
    parser.add_argument("--outage", type=float, default=60.0, help="seconds without a server, once")
    parser.add_argument("--seed", type=int, default=0)
    wanted = parser.parse_args()
    folder = Path(tempfile.mkdtemp(prefix="chaos-", dir="/tmp"))
    folder.chmod(0o755)
    (folder / "chaos.yaml").write_text(STUDY.format(trials=wanted.trials, tokens=wanted.tokens))
    start = time.monotonic()
    with ExitStack() as stack:
        stack.callback(shutil.rmtree, folder, ignore_errors=True)
        server = Server(folder / "data", stack.enter_context(attached(folder / "data")))
        disk = stack.enter_context(small_disk(folder / "artifacts", wanted=os.geteuid() == 0))
        team = Team(folder, server.url, wanted.workers)
        done = disturb(team, server, folder / "artifacts", disk, wanted)
        codes = team.end()
        seconds = time.monotonic() - start
        with open_storage(server.url) as storage:
            trials = optuna.load_study(study_name="chaos", storage=storage).trials
        result = judge(read_study(folder / "chaos.yaml"), trials)
    for trial in trials:
        if trial.state.name not in ("COMPLETE", "PRUNED"):
            print(trial.number, trial.state.name, trial.user_attrs, file=sys.stderr)
    attempts = [trial.user_attrs.get("attempts", 1) for trial in trials]
    show(
        [{"of": name, "count": value} for name, value in {**done, **result}.items()], seconds=seconds, attempts=attempts
    )
    right = result == dict.fromkeys(result, 0) | {"finished": wanted.trials}
    sys.exit(0 if right and not any(code not in (0, 130, -9) for code in codes) else 1)


if __name__ == "__main__":
    main()

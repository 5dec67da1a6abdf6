"""Starts worker processes on this machine, each with its own device or share of the cores, and ends them."""

from __future__ import annotations

import logging
import os
import signal
import socket
import subprocess
import sys
import time
import uuid
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

from models.errors import DeviceError, UserError
from tuner.errors import LostDeviceError, StorageError, WorkerError
from tuner.workers import supervisor_watch

logger = logging.getLogger(__name__)

# -P: what lies in the folder the user stands in, a models.py perhaps, is not taken for ours.
PROGRAM = (sys.executable, "-P", "-m", "tuner", "_worker")
"""What a worker process runs."""

MOST_BY_DEFAULT = 8
"""More workers than this make a search of a hundred trials mostly random."""

QUICK_SECONDS = 20.0
"""A worker that dies sooner than this after its start, without a trial, counts as unable to work here."""

MOST_QUICK_DEATHS = 5

LOST_SECONDS, MOST_LOSSES = 600.0, 10
"""A GPU that is lost this soon after a worker's start, this many times in a row, is not tried again."""

MOST_WORDS = 8192
"""Characters at the end of a dead worker's log that are kept with its trial."""

FINAL_CODES = {UserError.exit_code, WorkerError.exit_code}
"""Exit codes of mistakes that another process would only repeat."""

AWAY_SECONDS, AWAY_PAUSE = 600.0, 5.0
"""How long workers that cannot reach the database are started again, and after which pauses."""


@dataclass(frozen=True)
class Slot:
    """Where one worker runs. `visible` is what CUDA may see of the machine, None for all."""

    device: str
    threads: int
    visible: str | None = None


@dataclass(frozen=True)
class WorkerExit:
    """How a worker process ended without being asked to."""

    worker_id: str
    code: int
    words: str
    out_of_memory: bool

    @property
    def killed(self) -> bool:
        """Whether a signal from outside ended it."""
        return -self.code in (signal.SIGKILL, signal.SIGTERM, signal.SIGINT, signal.SIGHUP)

    @property
    def crash(self) -> bool:
        """Whether the trial it had may be to blame."""
        return not self.killed and self.code not in {StorageError.exit_code, *FINAL_CODES}

    @property
    def error_line(self) -> str:
        """The line that says most: an error's first, or the last of all."""
        lines = self.words.splitlines() or ["it said nothing"]
        return next((line for line in reversed(lines) if line.startswith("Error: ")), lines[-1])

    @property
    def how(self) -> str:
        return f"by {signal.Signals(-self.code).name}" if self.code < 0 else f"with exit code {self.code}"


def _gpu_count() -> int:
    """How many GPUs torch can use; it is asked only where there is a chance, for its import takes a second."""
    if not any(Path("/dev").glob("nvidia[0-9]*")) and not any(Path("/dev").glob("dxg")):
        return 0
    import torch

    return torch.cuda.device_count()


def slots(
    workers: int | None,
    devices: str,
    threads: int | None,
    per_device: int | None = None,
    *,
    gpu_count: Callable[[], int] = _gpu_count,
) -> list[Slot]:
    """Returns a place for each worker: `per_device` on each, by default one per GPU, else as many as have a core each.

    A worker of several `threads` counts as that many cores; by default there are up to eight workers.

    `devices` is auto, cpu, or a list such as cuda:0,cuda:1. Raises DeviceError when a device is not there.
    """
    chosen = _devices(devices, gpu_count)
    usual = max(1, min(cores() // (threads or 1), MOST_BY_DEFAULT)) if chosen == ["cpu"] else len(chosen)
    count = workers or (len(chosen) * per_device if per_device else usual)
    share = threads or max(1, cores() // count)
    return [_slot(chosen[index % len(chosen)], share) for index in range(count)]


def cores() -> int:
    """Returns how many cores this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def oom_kills() -> int:
    """Returns how many processes the kernel has killed for want of memory; 0 where it does not tell."""
    count = 0
    cgroups = "/sys/fs/cgroup/memory.events", "/sys/fs/cgroup/memory/memory.oom_control"  # version 2, version 1
    for place in ("/proc/vmstat", *cgroups):
        with suppress(OSError):
            lines = Path(place).read_text().splitlines()
            count += sum(int(line.split()[1]) for line in lines if line.startswith("oom_kill "))
    return count


class _Restarts:
    """Whether another worker takes the place of one that died, and after which pause."""

    def __init__(self) -> None:
        self._quick_deaths = 0
        self._away_since: float | None = None

    def pause_after(self, death: WorkerExit, had_trial: bool, lived: float, now: float) -> float | None:
        """Returns the seconds until another worker starts; None when the place is given up."""
        if death.code == StorageError.exit_code:
            return self._pause_without_database(now - lived, now)
        self._away_since = None
        if death.code in FINAL_CODES:
            return None
        if death.code == LostDeviceError.exit_code:
            return self._longer_pause(lived < LOST_SECONDS, MOST_LOSSES)
        is_unable = not had_trial and not death.killed and lived < QUICK_SECONDS
        return self._longer_pause(is_unable, MOST_QUICK_DEATHS)

    def _pause_without_database(self, started: float, now: float) -> float | None:
        if self._away_since is None:
            self._away_since = started
        return AWAY_PAUSE if now - self._away_since <= AWAY_SECONDS else None

    def _longer_pause(self, is_quick: bool, most: int) -> float | None:
        """Longer and longer pauses after quick deaths in a row; None after as many as `most`."""
        self._quick_deaths = self._quick_deaths + 1 if is_quick else 1
        return None if self._quick_deaths >= most else min(2.0 ** (self._quick_deaths - 1) - 1, 60.0)


@dataclass
class _Member:
    """One place of a team and the process that fills it at the moment."""

    place: Slot
    log: Path
    process: subprocess.Popen[bytes] | None = None
    restarts: _Restarts = field(default_factory=_Restarts)
    worker_id: str = ""
    started: float = 0.0
    restart_at: float = 0.0
    given_up: bool = False
    done: bool = False


class WorkerPool:
    """The worker processes of one command; one that dies is replaced, after longer and longer pauses."""

    def __init__(
        self,
        places: Sequence[Slot],
        arguments: Sequence[str],
        environment: Mapping[str, str],
        logs: Path,
        on_exit: Callable[[WorkerExit], bool],
        *,
        program: Sequence[str] = PROGRAM,
        clock: Callable[[], float] = time.monotonic,
        oom_kills: Callable[[], int] = oom_kills,
    ) -> None:
        """`on_exit` frees the trial of a worker and returns whether it had one; `program` is what a worker runs."""
        logs.mkdir(parents=True, exist_ok=True)
        self._command, self._environment = [*program, *arguments], environment
        self._on_exit, self._clock, self._count_oom_kills = on_exit, clock, oom_kills
        us = f"{socket.gethostname()}-{os.getpid()}"  # a number alone is not enough where containers share a folder
        names = [logs / f"worker-{us}-{index + 1}.log" for index in range(len(places))]
        self._members = [_Member(place, log) for place, log in zip(places, names, strict=True)]
        self._oom_kills = oom_kills()
        for member in self._members:
            self._start(member)

    def watch(self) -> bool:
        """Replaces workers that died; returns whether anyone works or will."""
        for member in self._members:
            if member.process is not None and member.process.poll() is not None:
                self._handle_exit(member)
            if member.process is None and not member.given_up and self._clock() >= member.restart_at:
                self._start(member)
        return any(not member.given_up for member in self._members)

    def failed(self) -> bool:
        """Whether no worker ended as it should."""
        return all(member.given_up and not member.done for member in self._members)

    def stop(self, grace: float) -> int:
        """Asks all workers to save their trials and leave; after `grace` seconds they are killed, the trials freed.

        Returns how many were killed.
        """
        self._signal(signal.SIGTERM)
        deadline, killed = self._clock() + grace, 0
        for member in self._members:
            if member.process is not None:
                try:
                    member.process.wait(max(0.0, deadline - self._clock()))
                except subprocess.TimeoutExpired:
                    member.process.kill()
                    member.process.wait()
                    killed += 1
                if member.process.returncode != 0:
                    self._on_exit(self._exit_of(member, member.process.returncode))
        return killed

    def kill(self) -> None:
        """Ends all workers at once and waits until they are gone: any that is left keeps the database up."""
        self._signal(signal.SIGKILL)
        for member in self._members:
            if member.process is not None:
                member.process.wait()

    def _start(self, member: _Member) -> None:
        member.worker_id, member.started = uuid.uuid4().hex, self._clock()
        member.process = _start(member.place, [*self._command, "--id", member.worker_id], self._environment, member.log)
        logger.debug("worker on %s is process %d, log %s", member.place.device, member.process.pid, member.log)

    def _handle_exit(self, member: _Member) -> None:
        """Notes how a process ended, frees its trial, and decides whether another takes its place."""
        assert member.process is not None  # seen by the only caller
        code, member.process = member.process.returncode, None
        if code == 0:
            member.given_up = member.done = True
            return
        death = self._exit_of(member, code)
        had_trial = self._on_exit(death)
        now = self._clock()
        pause = member.restarts.pause_after(death, had_trial, lived=now - member.started, now=now)
        if pause is None:
            member.given_up, then = True, "giving up"
        else:
            member.restart_at = now + pause
            then = "starting another" + (f" in {pause:.0f} s" if pause else "")
        ended = f"worker on {member.place.device} ended {death.how}, {then}"
        logger.warning("%s: %s (all of it: %s)", ended, death.error_line, member.log)

    def _exit_of(self, member: _Member, code: int) -> WorkerExit:
        before, self._oom_kills = self._oom_kills, self._count_oom_kills()
        words = member.log.read_text(errors="replace")[-MOST_WORDS:].strip()
        return WorkerExit(member.worker_id, code, words, code == -signal.SIGKILL and self._oom_kills > before)

    def _signal(self, number: signal.Signals) -> None:
        for member in self._members:
            if member.process is not None and member.process.poll() is None:
                member.process.send_signal(number)


def _start(place: Slot, command: Sequence[str], environment: Mapping[str, str], log: Path) -> subprocess.Popen[bytes]:
    with log.open("ab") as output:
        # A session of its own keeps the terminal's Ctrl-C away: the command that started it asks it to stop.
        return subprocess.Popen(
            [*command, "--device", place.device, "--threads", str(place.threads)],
            env={**variables(place), **environment, **supervisor_watch.environment()},
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output,
            start_new_session=True,
        )


def variables(place: Slot) -> dict[str, str]:
    """Returns the environment of a process in a place."""
    # Threads that wait asleep: where others use the cores, those that spin keep the ones they wait for from running.
    given = {"OMP_WAIT_POLICY": "passive", **os.environ, "OMP_NUM_THREADS": str(place.threads)}
    if place.visible is not None:
        given["CUDA_VISIBLE_DEVICES"] = place.visible  # before torch starts: it would touch every GPU
    return given


def _devices(wanted: str, gpu_count: Callable[[], int]) -> list[str]:
    if wanted == "cpu":
        return ["cpu"]
    count = gpu_count()
    if wanted == "auto":
        return [f"cuda:{index}" for index in range(count)] or ["cpu"]
    named = [name.strip() for name in wanted.split(",")]
    for name in named:
        kind, _, index = name.partition(":")
        if name != "cpu" and (kind != "cuda" or not (index or "0").isdigit()):
            raise DeviceError(f"--devices {name}: no such device; write auto, cpu or cuda:0,cuda:1")
        if kind == "cuda" and int(index or 0) >= count:
            raise DeviceError(f"--devices {name}: this machine has {count} CUDA devices; use cpu")
    return named


def _slot(device: str, threads: int) -> Slot:
    kind, _, index = device.partition(":")
    if kind == "cpu":
        return Slot("cpu", threads, "")
    visible = os.environ.get("CUDA_VISIBLE_DEVICES", "")
    names = visible.split(",") if visible else [str(number) for number in range(int(index or 0) + 1)]
    return Slot("cuda:0", threads, names[int(index or 0)])

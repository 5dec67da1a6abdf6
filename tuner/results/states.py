"""The state of a study: one word for it in every view, and one sentence for what to do next."""

from __future__ import annotations

import shlex
from dataclasses import dataclass

from tuner.storage.leases import PAUSED, RUNNING, STOPPED

IDLE, CONFIRMING, FAILED, FINISHED = "idle", "confirming", "failed", "finished"

STATES = {
    RUNNING: "Workers train its trials.",
    IDLE: "It has trials to train and no worker.",
    PAUSED: "Its workers wait until it is resumed.",
    STOPPED: "It was stopped before its budget was spent.",
    FAILED: "Its first trials all failed, so its workers ended.",
    CONFIRMING: "Workers train its best trials again with fresh seeds.",
    FINISHED: "Its budget is spent.",
}
"""Every state, and what it means."""


@dataclass(frozen=True)
class Companion:
    """The confirmation of a study, as far as the state of the study depends on it."""

    requested: str
    workers: int
    is_over: bool


@dataclass(frozen=True)
class Facts:
    """What the state of a study follows from."""

    requested: str = RUNNING
    """What a person last asked of it: running, paused or stopped."""
    workers: int = 0
    is_spent: bool = False
    has_failed: bool = False
    """Whether its workers end, because its first trials all failed."""
    has_best: bool = False
    companion: Companion | None = None


def state(facts: Facts) -> str:
    """Returns the state of a study, one of STATES."""
    companion = facts.companion
    if companion is not None and companion.workers and not companion.is_over and not facts.workers:
        return CONFIRMING if companion.requested == RUNNING else companion.requested
    if facts.is_spent:
        return FINISHED
    if facts.requested == STOPPED:
        return STOPPED
    if facts.has_failed:
        return FAILED
    if facts.requested == PAUSED:
        return PAUSED
    return RUNNING if facts.workers else IDLE


@dataclass(frozen=True)
class Step:
    """What a person can do next: a sentence, and the commands for it."""

    said: str
    commands: tuple[str, ...] = ()

    def __str__(self) -> str:
        return f"{self.said}: {', then '.join(self.commands)}" if self.commands else self.said


def next_step(name: str, facts: Facts) -> Step | None:
    """Returns what a person can do next; None where there is only to wait."""
    now, companion = state(facts), facts.companion
    work, resume, why = _command("work", name), _command("resume", name), _command("status", name, "--failed")
    if now == FINISHED and companion is not None and not companion.is_over:
        return Step("Its confirmation was interrupted; the command that began it continues it")
    if now == FINISHED and not facts.has_best:
        return Step("No trial was completed within the limits; see why", (why,))
    steps = {
        IDLE: Step("No worker is there; start some", (work,)),
        PAUSED: Step("Let it go on", (resume,)),
        STOPPED: Step("Let it go on", (resume, work)),
        FAILED: Step("See why, mend it, and let it go on", (why, resume, work)),
        FINISHED: Step("Export the best", (_command("export", name),)),
    }
    return steps.get(now)


def _command(*words: str) -> str:
    return shlex.join(["tuner", *words])

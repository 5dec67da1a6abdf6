"""The checkpoints of a trial, one per attempt."""

from __future__ import annotations

import logging
import time
from contextlib import suppress
from pathlib import Path

from models.training.loop import Training
from tuner.artifacts.layout import checkpoint_name
from tuner.artifacts.store import Artifacts

logger = logging.getLogger(__name__)


class Checkpoints:
    """The checkpoints of one trial, each attempt with a file of its own, so that no worker spoils another's."""

    def __init__(self, artifacts: Artifacts, number: int, attempt: int) -> None:
        self.artifacts, self.number, self.attempt = artifacts, number, attempt
        self.saved = time.monotonic()

    def newest_first(self) -> list[Path]:
        """Returns the files of earlier attempts, which a training may go on from; what they left half written goes."""
        found = []
        for attempt in range(self.attempt - 1, 0, -1):
            try:
                self.artifacts.remove_drafts(checkpoint_name(self.number, attempt))
                self.artifacts.fetch(checkpoint_name(self.number, attempt))
            except OSError as error:
                logger.warning("a checkpoint of trial %d cannot be read: %s", self.number, error.strerror)
            path = self.artifacts.folder / checkpoint_name(self.number, attempt)
            found += [path] if path.exists() else []
        return found

    @property
    def age(self) -> float:
        """Seconds since the last checkpoint, or since the attempt began."""
        return time.monotonic() - self.saved

    def save(self, training: Training) -> None:
        """Saves a checkpoint; a full disk is no reason to stop, the one before stays."""
        path = self.artifacts.folder / checkpoint_name(self.number, self.attempt)
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            training.save(path)
            self.artifacts.share(checkpoint_name(self.number, self.attempt))
            logger.debug("checkpoint of trial %d at step %d", self.number, training.step)
        except OSError as error:
            logger.warning(
                "no checkpoint of trial %d: %s (%s); training goes on", self.number, error.strerror, path.parent
            )
        self.saved = time.monotonic()

    def delete(self) -> None:
        """Deletes them all; one that cannot be reached is left where it is."""
        for attempt in range(1, self.attempt + 1):
            with suppress(OSError):
                self.artifacts.remove(checkpoint_name(self.number, attempt))

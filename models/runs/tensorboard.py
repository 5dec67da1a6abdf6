"""Writes TensorBoard's files for a run."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

from models.errors import ConfigError

if TYPE_CHECKING:
    from models.training.loop import Evaluation

EVENTS = "events.out.tfevents."
"""How the names of TensorBoard's files begin."""

CURVES = ("training_loss", "bits_per_byte", "nats_per_token", "perplexity", "tokens_per_second")


def require_tensorboard() -> None:
    """Raises ConfigError when TensorBoard is not installed."""
    try:
        import torch.utils.tensorboard  # noqa: F401
    except ImportError as error:
        raise ConfigError(
            f"--tensorboard: {error}; install it with `pip install tensorboard`, or leave the option away"
        ) from error


def board(folder: Path) -> Callable[[Evaluation], None]:
    """Returns what writes an evaluation into TensorBoard's files in `folder`, over the training tokens."""
    from torch.utils.tensorboard import SummaryWriter

    # A run that goes on tells of all its rungs again: what was written of them before is out of date.
    writer = SummaryWriter(str(folder), purge_step=0)

    def tell(evaluation: Evaluation) -> None:
        values = asdict(evaluation)
        values["tokens_per_second"] = evaluation.tokens / max(evaluation.seconds, 1e-9)
        for name in CURVES:
            writer.add_scalar(name, values[name], evaluation.tokens)
        writer.flush()

    return tell

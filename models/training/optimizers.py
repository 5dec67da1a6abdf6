"""Optimizers, and the schedule of their learning rate."""

from __future__ import annotations

import inspect
import math
from collections.abc import Iterator
from functools import cache
from typing import Any

import torch
from torch import Tensor, nn

from models.config import Config


def relative_learning_rate(config: Config, progress: float) -> float:
    """Learning rate relative to its peak when `progress` (0 to 1) of the budget is spent."""
    if progress < config.warmup:
        return progress / config.warmup
    after = (progress - config.warmup) / (1 - config.warmup) if config.warmup < 1 else 0.0
    end = config.final_learning_rate
    relative: dict[str, float] = {
        "constant": 1.0,
        "linear": 1 - (1 - end) * after,
        "exponential": end**after,
        "cosine": end + (1 - end) * (1 + math.cos(math.pi * after)) / 2,
    }
    return relative[config.schedule]


def set_learning_rate(optimizer: torch.optim.Optimizer, rate: float) -> None:
    """Sets the rate of the next step, in place where it is a tensor that a captured step reads."""
    for group in optimizer.param_groups:
        if isinstance(group["lr"], Tensor):
            group["lr"].fill_(rate)
        else:
            group["lr"] = rate


def build_optimizers(
    config: Config, model: nn.Module, vocabulary_size: int, captured: bool = False
) -> Iterator[torch.optim.Optimizer]:
    """Yields the optimizers that move the weights; weight decay applies to matrices alone.

    Those of `captured` steps, adam and adamw, keep their learning rate in a tensor.

    Muon (Jordan et al. 2024) moves the matrices between the embedding and the logits, with updates scaled to the
    size of AdamW's (Liu et al. 2025) so that one learning rate serves both; AdamW moves the rest.
    """
    parameters = [weight for weight in model.parameters() if weight.requires_grad]
    rate, decay = config.learning_rate, config.weight_decay
    live = torch.tensor(rate, device=parameters[0].device) if captured else rate
    if config.optimizer == "muon":
        ends = {id(weight) for weight in embeddings_and_logits(model, vocabulary_size)}
        hidden = [weight for weight in parameters if weight.dim() == 2 and id(weight) not in ends]
        if hidden:
            yield _eager(torch.optim.Muon)(hidden, rate, decay, config.momentum, adjust_lr_fn="match_rms_adamw")
        parameters = [weight for weight in parameters if weight.dim() != 2 or id(weight) in ends]
    groups = [
        {"params": [weight for weight in parameters if weight.dim() >= 2], "weight_decay": decay},
        {"params": [weight for weight in parameters if weight.dim() < 2], "weight_decay": 0.0},
    ]
    betas = (config.beta1, config.beta2)
    if config.optimizer == "sgd":
        yield _eager(torch.optim.SGD)(groups, rate, config.momentum, fused=True)
    elif config.optimizer == "rmsprop":
        yield _eager(torch.optim.RMSprop)(groups, rate, momentum=config.momentum)
    elif config.optimizer == "adam":
        yield _eager(torch.optim.Adam)(groups, live, betas, fused=True, capturable=captured)
    else:
        yield _eager(torch.optim.AdamW)(groups, live, betas, fused=True, capturable=captured)


@cache
def _eager(kind: Any) -> Any:
    """Returns an optimizer class without what PyTorch's compiler has to be imported for, longer than all else of it.

    Its methods import it only to tell it to keep out of them.
    """
    names = ("add_param_group", "load_state_dict", "state_dict", "zero_grad")
    plain = {name: inspect.unwrap(getattr(kind, name)) for name in names}
    return type(kind.__name__, (kind,), plain | {"step": torch.no_grad()(inspect.unwrap(kind.step))})


def embeddings_and_logits(model: nn.Module, vocabulary_size: int) -> list[nn.Parameter]:
    """Returns the weights by which tokens come into a model and logits out of it, whatever the sizes of others.

    These are the weights of every nn.Embedding, and of the last nn.Linear that gives as many numbers as there are
    tokens. Where a custom generator has no such module, its first or last bare matrix with a side of that
    size stands for it.
    """
    modules = list(model.modules())
    bare = [
        weight
        for module in modules
        if not type(module).__module__.startswith("torch.nn.")
        for weight in module.parameters(recurse=False)
        if weight.dim() == 2 and vocabulary_size in weight.shape
    ]
    embeddings = [module.weight for module in modules if isinstance(module, nn.Embedding)]
    logits = [
        module.weight for module in modules if isinstance(module, nn.Linear) and module.out_features == vocabulary_size
    ]
    return [*(embeddings or bare[:1]), *(logits[-1:] or bare[-1:])]

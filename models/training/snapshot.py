"""The tensors of a training in progress, of its whole batch however that is split, and a training that goes on."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from models.nn.network import State
from models.training.checkpoint import batch_dimensions, filled, flat, under, weights

if TYPE_CHECKING:
    from models.training.loop import Training


def tensors_of(training: Training) -> dict[str, Tensor]:
    """Returns what a checkpoint holds; a team calls it together."""
    team = training.team
    loss_sum = torch.tensor(team.total(training.loss_sum.item()) / team.size, dtype=torch.float64)
    tensors = {f"model.{name}": tensor for name, tensor in weights(training.model).items()}
    tensors |= moments(training.optimizers)
    tensors |= {f"best.{name}": weight for name, weight in (training.best_weights or {}).items()}
    # A state may hold a tensor twice; a file may not.
    tensors |= {f"state.{index}": tensor.clone() for index, tensor in enumerate(_whole_state(training))}
    tensors |= {"loss_sum": loss_sum, "random.cpu": torch.get_rng_state()}
    if training.device.type == "cuda":
        tensors["random.cuda"] = torch.cuda.get_rng_state(training.device)
    return tensors


def restore(training: Training, tensors: dict[str, Tensor]) -> None:
    """Gives a training all but the weights of a checkpoint. Raises various errors when it is of another training."""
    for number, optimizer in enumerate(training.optimizers):
        _restore_moments(optimizer, f"optimizer.{number}.", tensors)
    training.best_weights = under("best.", tensors) or None
    _share_out(training, under("state.", tensors))
    training.loss_sum = tensors["loss_sum"].to(training.device)
    torch.set_rng_state(tensors["random.cpu"])
    if "random.cuda" in tensors and training.device.type == "cuda":
        torch.cuda.set_rng_state(tensors["random.cuda"], training.device)


def are_moments_of(optimizers: list[torch.optim.Optimizer], tensors: dict[str, Tensor]) -> bool:
    """Whether the moments in a checkpoint are those of the weights that each optimizer moves."""
    for key, moment in under("optimizer.", tensors).items():
        number, index, name = key.split(".", 2)
        if int(number) >= len(optimizers):
            return False
        optimizer = optimizers[int(number)]
        moved = _moved_by(optimizer)
        other = isinstance(optimizer, torch.optim.Muon) and name != "momentum_buffer"
        if other or int(index) >= len(moved) or (moment.dim() and moment.shape != moved[int(index)].shape):
            return False
    return True


def moments(optimizers: list[torch.optim.Optimizer]) -> dict[str, Tensor]:
    """Returns what optimizers keep for each weight, by its name in a checkpoint; the tensors themselves, no copies."""
    return {
        f"optimizer.{number}.{index}.{name}": moment
        for number, optimizer in enumerate(optimizers)
        for index, moments in optimizer.state_dict()["state"].items()
        for name, moment in moments.items()
        if isinstance(moment, Tensor)
    }


def _restore_moments(optimizer: torch.optim.Optimizer, prefix: str, tensors: dict[str, Tensor]) -> None:
    restored = optimizer.state_dict()
    restored["state"] = {}
    moved = _moved_by(optimizer)
    for key, moment in under(prefix, tensors).items():
        index, name = key.split(".", 1)
        if moment.numel() != 1 and moment.shape != moved[int(index)].shape:
            raise ValueError(f"{prefix}{key} has another shape than its weights")
        restored["state"].setdefault(int(index), {})[name] = moment
    optimizer.load_state_dict(restored)


def _moved_by(optimizer: torch.optim.Optimizer) -> list[Tensor]:
    return [weight for group in optimizer.param_groups for weight in group["params"]]


def _whole_state(training: Training) -> list[Tensor]:
    """The carried tensors of the whole batch, joined from its pieces and then from the processes of the team."""
    pieces = [flat(state) for state in training.states]
    if len(pieces) == training.team.size == 1 or not pieces[0]:
        return pieces[0]
    whole = []
    for index, dimension in enumerate(batch_dimensions(training.model, training.device)):
        if dimension is None:  # the same for any number of texts
            whole.append(pieces[0][index])
        else:
            joined = torch.cat([piece[index] for piece in pieces], dimension)
            whole.append(training.team.gathered(joined, dimension))
    return whole


def _share_out(training: Training, tensors: dict[str, Tensor]) -> None:
    """Gives each piece its part of the carried tensors, in the shape that the model itself gives its state."""
    if not tensors:
        return
    whole = [tensors[str(index)].to(training.device) for index in range(len(tensors))]
    model, device, rows = training.model, training.device, training.rows
    if len(training.states) == training.team.size == 1:
        shape = _state_of(model, rows, device)
        if [tensor.shape for tensor in whole] != [tensor.shape for tensor in flat(shape)]:
            raise ValueError("the carried state has another shape")
        training.states = [filled(shape, iter(whole))]
        return
    dimensions, first = batch_dimensions(model, device), training.team.rank * rows
    for number in range(len(training.states)):
        start, end = number * training.piece, min((number + 1) * training.piece, rows)
        parts = [
            tensor if dimension is None else tensor.narrow(dimension, first + start, end - start).contiguous()
            for tensor, dimension in zip(whole, dimensions, strict=True)
        ]
        training.states[number] = filled(_state_of(model, end - start, device), iter(parts))


def _state_of(model: nn.Module, rows: int, device: torch.device) -> State:
    """What a model in training carries on from `rows` rows."""
    model.eval()  # a model may count or average what it is trained on, and this is not
    with torch.no_grad():
        _, state = model(torch.zeros((rows, 1), dtype=torch.int64, device=device), None)
    model.train()
    return state

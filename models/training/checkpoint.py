"""Checkpoints of a training: tensors and facts, written completely and verified when read."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Container, Iterator, Mapping
from pathlib import Path
from typing import Any, TypeVar, cast

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from models.files import reason, require_plain, written_whole
from models.nn.network import State

Saved = TypeVar("Saved")

_FLOATS = re.compile("B?F[0-9]+")
"""What safetensors calls the formats of floating-point numbers."""


FORMER_NAMES = {
    "widen": "embedding_proj",
    "attention.widen": "attention.qkv_proj",
    "attention.narrow": "attention.out_proj",
    "feed_forward.widen": "feed_forward.up_proj",
    "feed_forward.narrow": "feed_forward.down_proj",
}
"""What version 0.1 called the linear layers of a transformer, before its blocks and in each of them."""

_BLOCK = re.compile(r"(?:blocks\.\d+\.)?")


class BadCheckpoint(Exception):
    """A checkpoint that is damaged, or of another version, configuration or corpus."""


def write_checkpoint(path: Path, tensors: dict[str, Tensor], facts: dict[str, Any]) -> None:
    """Writes tensors and facts beside `path` and puts them in place in one move."""
    tensors = as_written(tensors)
    text = json.dumps(facts)
    write_tensors(path, tensors, {"facts": text, "digest": _digest(tensors, text)})


def as_written(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """The tensors as a file holds them: on the CPU, in one piece, without a past."""
    return {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}


def write_tensors(path: Path, tensors: dict[str, Tensor], metadata: dict[str, str] | None = None) -> None:
    """Writes a safetensors file aside and puts it in place in one move; raises OSError, and leaves nothing then."""
    try:
        with written_whole(path) as draft:
            draft.touch()
            mode = draft.stat().st_mode
            save_file(tensors, draft, metadata)
            draft.chmod(mode)  # the library lets only the owner read its files
    except SafetensorError as error:  # what the library makes of a full disk
        raise OSError(0, str(error), str(path)) from error


def read_checkpoint(path: Path, most: int | None = None) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Returns the tensors and facts of a checkpoint; raises BadCheckpoint when it is damaged, or of more bytes."""
    try:
        require_plain(path, most)
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except (OSError, SafetensorError, MemoryError) as error:
        raise BadCheckpoint(f"{path}: not readable as a checkpoint ({reason(error)})") from error
    facts = metadata.get("facts", "{}")
    if metadata.get("digest") != _digest(tensors, facts):
        raise BadCheckpoint(f"{path}: damaged, its digest does not match")
    try:
        known = json.loads(facts)
    except (ValueError, RecursionError) as error:
        raise BadCheckpoint(f"{path}: its facts cannot be read") from error
    if not isinstance(known, dict):
        raise BadCheckpoint(f"{path}: its facts are none")
    return tensors, known


def weights(model: nn.Module) -> dict[str, Tensor]:
    """Returns every weight and kept buffer once, tied ones under their first name."""
    kept: dict[str, Tensor] = dict(model.named_parameters())
    state = model.state_dict()
    kept.update((name, buffer) for name, buffer in model.named_buffers() if name in state)
    return {name: tensor.detach() for name, tensor in kept.items()}


def load_weights(model: nn.Module, saved: dict[str, Tensor]) -> None:
    """Copies saved weights into a model that has the same; raises ValueError, and changes nothing, otherwise."""
    own = weights(model)
    saved = with_current_names(saved, own)
    shapes, saved_shapes = ({name: tensor.shape for name, tensor in each.items()} for each in (own, saved))
    if shapes != saved_shapes:
        differing = sorted({name for name, _ in shapes.items() ^ saved_shapes.items()})
        raise ValueError(f"weights of another model: {', '.join(differing)}")
    for name, tensor in own.items():
        tensor.copy_(saved[name])


def with_current_names(saved: Mapping[str, Saved], own: Container[str]) -> dict[str, Saved]:
    """Returns what a file of any version holds for each weight, under the names that a model has for its `own`."""
    renamed: dict[str, Saved] = {}
    for name, value in saved.items():
        current = name if name in own else _current_name(name)
        renamed[name if current in saved else current] = value
    return renamed


def _current_name(name: str) -> str:
    block = cast(re.Match[str], _BLOCK.match(name))[0]
    module = name.removeprefix(block).removesuffix(".weight")
    return f"{block}{FORMER_NAMES[module]}.weight" if module in FORMER_NAMES else name


def require_weights(path: Path, model: nn.Module) -> None:
    """Raises ValueError unless a safetensors file holds the weights of `model`, which may be on the meta device.

    Only names, shapes and kinds of numbers are looked at: neither the file nor the model takes memory.
    """
    require_plain(path)
    with safe_open(path, framework="pt") as file:
        slices = {name: file.get_slice(name) for name in file.keys()}  # noqa: SIM118
        found = {
            name: (tuple(one.get_shape()), _FLOATS.match(one.get_dtype()) is not None) for name, one in slices.items()
        }
    own = {name: (tuple(tensor.shape), tensor.is_floating_point()) for name, tensor in weights(model).items()}
    found = with_current_names(found, own)
    if found != own:
        differing = sorted({name for name, _ in found.items() ^ own.items()})
        raise ValueError(f"weights of another model: {', '.join(differing)[:200]}")


def require_finite(model: nn.Module) -> None:
    """Raises ValueError when a weight is no finite number: nothing can be written with it."""
    for name, parameter in model.named_parameters():
        if not parameter.isfinite().all():
            raise ValueError(f"{name} holds numbers that are not finite")


def detached(state: State) -> State:
    return filled(state, (tensor.detach() for tensor in flat(state)))


def flat(state: State) -> list[Tensor]:
    """The tensors of a state: None, a tensor, or tuples and lists of those."""
    if state is None:
        return []
    return [state] if isinstance(state, Tensor) else [tensor for part in state for tensor in flat(part)]


def filled(shape: State, tensors: Iterator[Tensor]) -> State:
    """A state of the same shape with other tensors."""
    if shape is None:
        return None
    if isinstance(shape, Tensor):
        return next(tensors)
    make = getattr(type(shape), "_make", type(shape))  # a named tuple is not made from a list
    return make([filled(part, tensors) for part in shape])


@torch.no_grad()
def batch_dimensions(model: nn.Module, device: torch.device) -> list[int | None]:
    """Finds out where the batch is in each tensor of a model's state: in which dimension two texts and three differ.

    None stands for a tensor that is the same for any number of texts. The model is left in the mode it was in.
    """
    was_training = model.training
    model.eval()  # a model may count or average what it is trained on, and this is not
    two, three = (flat(model(torch.zeros(texts, 1, dtype=torch.int64, device=device), None)[1]) for texts in (2, 3))
    model.train(was_training)
    sizes = [list(zip(one.shape, other.shape, strict=True)) for one, other in zip(two, three, strict=True)]
    return [next((place for place, pair in enumerate(pairs) if pair == (2, 3)), None) for pairs in sizes]


def under(prefix: str, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name.removeprefix(prefix): tensor for name, tensor in tensors.items() if name.startswith(prefix)}


def _digest(tensors: dict[str, Tensor], facts: str) -> str:
    digest = hashlib.sha256(facts.encode())
    for name in sorted(tensors):
        digest.update(f"{name} {tensors[name].dtype} {list(tensors[name].shape)}".encode())
        digest.update(tensors[name].flatten().view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()

"""Recurrences where torch's own will not do: in half precision on a CPU, and with dropout between layers on a GPU.

On a CPU, torch's own tanh and GRU take up to half as long again; it has a fast training of its own for the LSTM alone.
Here a step is one product of matrices and a few passes over small arrays; hidden states lie as columns, (C, B), the
order in which such products are fastest, and the gradients of the weights are one product over all steps.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from functools import partial
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from models.nn.dropout import dropped

# Sizes: B sequences, T tokens, C hidden units, I inputs of a step, G gates (1 or 3).

_sigmoid_backward = torch.ops.aten.sigmoid_backward.grad_input
_tanh_backward = torch.ops.aten.tanh_backward.grad_input


def implementation(recurrence: nn.RNNBase, hidden: Tensor) -> Callable[[Tensor, Any], tuple[Tensor, Any]]:
    """Returns what does the work of `recurrence` here."""
    if is_unrolled(recurrence, hidden):
        return partial(unroll, recurrence)
    if hidden.is_cuda and recurrence.training and recurrence.dropout:
        return partial(layer_by_layer, recurrence)
    return recurrence


def layer_by_layer(recurrence: nn.RNNBase, hidden: Tensor, state: Any) -> tuple[Tensor, Any]:
    """Does what `recurrence(hidden, state)` does, (T, B, I) -> (T, B, C), in single precision.

    cuDNN's own dropout between layers draws from numbers that live as long as the process: no checkpoint holds them,
    and a CUDA graph cannot capture how they begin.
    """
    run: Any = {"LSTM": torch.lstm, "GRU": torch.gru, "RNN_TANH": torch.rnn_tanh}[recurrence.mode]
    if state is None:
        zeros = hidden.new_zeros(recurrence.num_layers, hidden.size(1), recurrence.hidden_size, dtype=torch.float32)
        state = (zeros, zeros) if recurrence.mode == "LSTM" else zeros
    ends = []
    with torch.autocast(hidden.device.type, enabled=False), warnings.catch_warnings():
        warnings.filterwarnings("ignore", "RNN module weights are not part of single contiguous chunk")
        hidden = hidden.float()
        for layer, weights in enumerate(recurrence.all_weights):
            if layer:
                hidden = dropped(hidden, recurrence.dropout if recurrence.training else 0.0)
            start = _of_layer(state, layer)
            hidden, *end = run(hidden, start, weights, True, 1, 0.0, recurrence.training, False, False)
            ends.append(end)
    whole = tuple(torch.cat(parts) for parts in zip(*ends, strict=True))
    return hidden, whole if recurrence.mode == "LSTM" else whole[0]


def _of_layer(state: Any, layer: int) -> Any:
    """A layer's part of a recurrence's state, in single precision."""
    if isinstance(state, Tensor):
        return state[layer : layer + 1].float()
    return tuple(part[layer : layer + 1].float() for part in state)


def is_unrolled(recurrence: nn.RNNBase, hidden: Tensor) -> bool:
    """Whether `unroll` does the work of `recurrence` here."""
    here = hidden.device.type == "cpu" and torch.is_autocast_enabled("cpu")
    return here and recurrence.mode in ("RNN_TANH", "GRU") and torch.get_autocast_dtype("cpu") == torch.bfloat16


def unroll(recurrence: nn.RNNBase, hidden: Tensor, state: Tensor | None) -> tuple[Tensor, Tensor]:
    """Does what `recurrence(hidden, state)` does: (T, B, I), (layers, B, C) -> (T, B, C) bfloat16, (layers, B, C)."""
    step = _Tanh if recurrence.mode == "RNN_TANH" else _Gated
    if state is None:
        state = hidden.new_zeros(recurrence.num_layers, hidden.size(1), recurrence.hidden_size)
    ends = []
    for layer, (weights, start) in enumerate(zip(recurrence.all_weights, state, strict=True)):
        if layer:
            hidden = dropped(hidden, recurrence.dropout if recurrence.training else 0.0)
        hidden, end = step.apply(hidden, start, *weights)  # type: ignore[no-untyped-call]
        ends.append(end)
    return hidden, torch.stack(ends)


class _Tanh(torch.autograd.Function):
    """h = tanh(W_i x + b_i + W_h h + b_h), from step to step (Elman 1990)."""

    @staticmethod
    def forward(
        context: Any, inputs: Tensor, start: Tensor, w_i: Tensor, w_h: Tensor, b_i: Tensor, b_h: Tensor
    ) -> tuple[Tensor, Tensor]:
        inputs, w_i, w_h = _halves(inputs, w_i, w_h)
        states = _beginning(start, len(inputs))
        _project(inputs, w_i, b_i + b_h, out=states[1:])
        recurrent = torch.empty_like(states[0])
        for before, after in pairwise(states):
            torch.mm(w_h, before, out=recurrent)
            after.add_(recurrent).tanh_()
        context.save_for_backward(inputs, w_i, w_h, states)
        return _as_rows(states)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(context: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        inputs, w_i, w_h, states = context.saved_tensors
        deltas, ahead = _as_columns(*gradients)
        back = w_h.t().contiguous()
        for delta, after in zip(reversed(deltas.unbind()), reversed(states[1:].unbind()), strict=True):
            delta.add_(ahead)
            _tanh_backward(delta, after, grad_input=delta)
            torch.mm(back, delta, out=ahead)
        flat = _over_time(deltas)
        bias = flat.float().sum(1)
        return *_gradients(flat, flat, inputs, w_i, states, ahead), bias, bias


class _Gated(torch.autograd.Function):
    """h = (1 - z) n + z h, where n = tanh(W x + r (W h)); z and r are gates (Cho et al. 2014), as torch orders them."""

    @staticmethod
    def forward(
        context: Any, inputs: Tensor, start: Tensor, w_i: Tensor, w_h: Tensor, b_i: Tensor, b_h: Tensor
    ) -> tuple[Tensor, Tensor]:
        inputs, w_i, w_h = _halves(inputs, w_i, w_h)
        size = w_h.size(1)
        states = _beginning(start, len(inputs))
        gates = states.new_empty(len(inputs), 3 * size, inputs.size(1))  # r, z and n
        b_n = b_h[2 * size :]
        _project(inputs, w_i, b_i + functional.pad(b_h[: 2 * size], (0, size)), out=gates)
        b_n = b_n.to(gates.dtype).unsqueeze(1)
        recurrents = torch.empty_like(gates)
        for gate, recurrent, (before, after) in zip(gates, recurrents, pairwise(states), strict=True):
            torch.mm(w_h, before, out=recurrent)
            gate[: 2 * size].add_(recurrent[: 2 * size]).sigmoid_()
            reset, update, new = _gates(gate)
            new.addcmul_(reset, recurrent[2 * size :].add_(b_n)).tanh_()
            torch.lerp(new, before, update, out=after)
        context.save_for_backward(inputs, w_i, w_h, states, gates, recurrents)
        return _as_rows(states)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(context: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        inputs, w_i, w_h, states, gates, recurrents = context.saved_tensors
        size = w_h.size(1)
        told, ahead = _as_columns(*gradients)
        back = w_h.t().contiguous()
        into, through = torch.empty_like(gates), torch.empty_like(gates)  # gradients before W_i's and W_h's products
        passed, work = torch.empty_like(ahead), torch.empty_like(ahead)
        for step in reversed(range(len(gates))):
            reset, update, new = _gates(gates[step])
            d_reset, d_update, d_new = _gates(into[step])
            ahead.add_(told[step])
            torch.sub(states[step], new, out=work)
            _sigmoid_backward(work.mul_(ahead), update, grad_input=d_update)
            torch.mul(ahead, update, out=passed)
            _tanh_backward(torch.sub(ahead, passed, out=work), new, grad_input=d_new)
            torch.mul(d_new, recurrents[step, 2 * size :], out=work)
            _sigmoid_backward(work, reset, grad_input=d_reset)
            through[step, : 2 * size] = into[step, : 2 * size]
            torch.mul(d_new, reset, out=through[step, 2 * size :])
            torch.addmm(passed, back, through[step], out=ahead)
        flat_into, flat_through = _over_time(into), _over_time(through)
        biases = flat_into.float().sum(1), flat_through.float().sum(1)
        return *_gradients(flat_into, flat_through, inputs, w_i, states, ahead), *biases


def _gates(step: Tensor) -> Tensor:
    """(3 C, B) -> (3, C, B): r, z and n."""
    return step.view(3, -1, step.size(1))


def _halves(*tensors: Tensor) -> tuple[Tensor, ...]:
    return tuple(tensor.to(torch.bfloat16) for tensor in tensors)


def _beginning(start: Tensor, steps: int) -> Tensor:
    """Room for the states before, between and after all steps, (T + 1, C, B), the first of them written."""
    states = start.new_empty(steps + 1, start.size(1), start.size(0), dtype=torch.bfloat16)
    states[0] = start.t()
    return states


def _project(inputs: Tensor, weight: Tensor, bias: Tensor, out: Tensor) -> None:
    """Writes what all inputs (T, B, I) add to the gates, (T, G C, B), in one product."""
    steps, batch, size = inputs.shape
    product = torch.mm(weight, inputs.reshape(-1, size).t()).view(-1, steps, batch)
    torch.add(product.transpose(0, 1), bias.to(product.dtype).unsqueeze(1), out=out)


def _as_rows(states: Tensor) -> tuple[Tensor, Tensor]:
    """(T + 1, C, B) -> what the steps give, (T, B, C), and the last state, (B, C), in single precision."""
    return states[1:].transpose(1, 2).contiguous(), states[-1].t().float()


def _as_columns(told: Tensor, end: Tensor) -> tuple[Tensor, Tensor]:
    """Gradients of what `_as_rows` gave, as columns that may be written to."""
    half = torch.bfloat16
    return told.to(half).transpose(1, 2).contiguous(), end.to(half).t().clone(memory_format=torch.contiguous_format)


def _over_time(steps: Tensor) -> Tensor:
    """(T, G C, B) -> (G C, T B)."""
    return steps.transpose(0, 1).reshape(steps.size(1), -1)


def _gradients(
    into: Tensor, through: Tensor, inputs: Tensor, w_i: Tensor, states: Tensor, ahead: Tensor
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Gradients of inputs, first state, W_i and W_h from those (G C, T B) before the two products."""
    steps, batch, size = inputs.shape
    before = states[:-1].transpose(1, 2).reshape(steps * batch, -1)
    to_inputs = torch.mm(into.t(), w_i).view(steps, batch, size)
    to_w_i = torch.mm(into, inputs.reshape(-1, size)).float()
    return to_inputs, ahead.t().float(), to_w_i, torch.mm(through, before).float()

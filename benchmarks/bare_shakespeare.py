"""A plain training loop around torch's LSTM, as one writes it by hand: the baseline of the search on Tiny Shakespeare.

python benchmarks/bare_shakespeare.py tinyshakespeare.txt --hidden-size 512 --learning-rate 3e-3
"""

from __future__ import annotations

import argparse
import math
import time
from pathlib import Path
from typing import Any

import torch
from machine import show
from torch import Tensor, nn
from torch.nn import functional

BATCH, LENGTH = 16, 64


class Bare(nn.Module):
    def __init__(self, characters: int, size: int) -> None:
        super().__init__()
        self.embedding = nn.Embedding(characters, size)
        self.recurrence = nn.LSTM(size, size, batch_first=True)
        self.logits = nn.Linear(size, characters)

    def forward(self, tokens: Tensor, state: tuple[Tensor, Tensor] | None = None) -> tuple[Tensor, Any]:
        hidden, state = self.recurrence(self.embedding(tokens), state)
        return self.logits(hidden), state


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("text", type=Path)
    parser.add_argument("--hidden-size", type=int, default=512)
    parser.add_argument("--learning-rate", type=float, default=3e-3)
    parser.add_argument("--seconds", type=float, default=80)
    parser.add_argument("--threads", type=int, default=2)
    wanted = parser.parse_args()
    torch.set_num_threads(wanted.threads)
    torch.manual_seed(0)
    text = wanted.text.read_text(encoding="utf-8")
    known = sorted(set(text))
    index = {character: number for number, character in enumerate(known)}
    tokens = torch.tensor([index[character] for character in text])
    split = int(0.9 * len(tokens))
    streams = tokens[: split // BATCH * BATCH].view(BATCH, -1)
    held_out = tokens[split:]
    model = Bare(len(known), wanted.hidden_size)
    optimizer = torch.optim.AdamW(model.parameters(), wanted.learning_rate, fused=True)
    state, place, steps, start = None, 0, 0, time.time()
    while (spent := (time.time() - start) / wanted.seconds) < 1:
        rate = max(0.01, (1 + math.cos(math.pi * spent)) / 2) * min(1, (steps + 1) / 100)
        for group in optimizer.param_groups:
            group["lr"] = wanted.learning_rate * rate
        if place + LENGTH + 1 > streams.size(1):
            state, place = None, 0
        logits, state = model(streams[:, place : place + LENGTH], state)
        state = (state[0].detach(), state[1].detach())
        targets = streams[:, place + 1 : place + LENGTH + 1]
        functional.cross_entropy(logits.flatten(0, 1), targets.flatten()).backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        place, steps = place + LENGTH, steps + 1
    model.eval()
    with torch.no_grad():
        logits, _ = model(held_out[None, :-1])
        nats = functional.cross_entropy(logits[0], held_out[1:]).item()
    show([{"hidden size": wanted.hidden_size, "tokens": steps * BATCH * LENGTH, "nats per character": nats}])


if __name__ == "__main__":
    main()

"""Tokens per second of models.train against a bare PyTorch loop of the same shape, and against the machine's peak.

All interleaved in one run. `plain` is models.train in single precision, `ours` as it is by default; the peak is what a
product of two large matrices reaches in the number format of `ours`, and its share counts the products of a training
step alone: six operations for each weight and token, and the causal half of attention. On a GPU `ours` captures its
steps, and `compiled` is the bare loop as nanoGPT has it: compiled, in bfloat16.

python benchmarks/throughput.py [--threads 2] [--rounds 5] [--tokens 60000] [--only lstm] [--device cuda]
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable
from typing import Any

import torch
from machine import show
from torch import Tensor, nn
from torch.nn import functional

from models.config import Budget, Config, Corpus
from models.nn.network import parameter_count
from models.nn.precision import half_precision
from models.text.corpus import EncodedCorpus, load_corpus
from models.training.loop import train

LARGE = {"cpu": 3000, "cuda": 8192}
WARM_STEPS = 20

SHAPES = {
    "rnn 1 x 256": Config(architecture="rnn", hidden_size=256, batch_size=16),
    "lstm 1 x 256": Config(architecture="lstm", hidden_size=256, batch_size=16),
    "lstm 1 x 512": Config(architecture="lstm", hidden_size=512, batch_size=16),
    "lstm 2 x 256": Config(architecture="lstm", hidden_size=256, layers=2, batch_size=16),
    "gru 1 x 256": Config(architecture="gru", hidden_size=256, batch_size=16),
    "transformer 4 x 128": Config(architecture="transformer", layers=4, hidden_size=128, heads=4, batch_size=12),
    "transformer 4 x 128, added positions": Config(
        architecture="transformer", layers=4, hidden_size=128, heads=4, batch_size=12, positions="sinusoidal"
    ),
}
GPU_SHAPES = {
    "rnn 1 x 512": Config(architecture="rnn", hidden_size=512, batch_size=64),
    "lstm 1 x 512": Config(architecture="lstm", hidden_size=512, batch_size=64),
    "gru 1 x 512": Config(architecture="gru", hidden_size=512, batch_size=64),
    "transformer 4 x 128": SHAPES["transformer 4 x 128"],
    "nanoGPT, 6 x 384": Config(
        architecture="transformer", layers=6, hidden_size=384, heads=6, sequence_length=256, batch_size=64
    ),
}


class BareRecurrent(nn.Module):
    """Embedding, recurrence, logits; time first, the order in which torch's tanh RNN is five times as fast."""

    def __init__(self, config: Config, vocabulary: int) -> None:
        super().__init__()
        self.embedding = nn.Embedding(vocabulary, config.hidden_size)
        kind = {"rnn": nn.RNN, "lstm": nn.LSTM, "gru": nn.GRU}[config.architecture]
        self.recurrence = kind(config.hidden_size, config.hidden_size, config.layers)
        self.logits = nn.Linear(config.hidden_size, vocabulary)

    def forward(self, tokens: Tensor, state: object) -> tuple[Tensor, object]:
        hidden, state = self.recurrence(self.embedding(tokens.t()), state)
        return self.logits(hidden).transpose(0, 1), state


class BareBlock(nn.Module):
    """A GPT-2 block."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.qkv, self.out = nn.Linear(width, 3 * width, bias=False), nn.Linear(width, width, bias=False)
        self.up, self.down = nn.Linear(width, 4 * width, bias=False), nn.Linear(4 * width, width, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        b, t, c = x.shape
        q, k, v = (
            part.view(b, t, self.heads, c // self.heads).transpose(1, 2) for part in self.qkv(self.norm1(x)).split(c, 2)
        )
        y = functional.scaled_dot_product_attention(q, k, v, is_causal=True)
        x = x + self.out(y.transpose(1, 2).reshape(b, t, c))
        return x + self.down(functional.gelu(self.up(self.norm2(x))))


class BareTransformer(nn.Module):
    """nanoGPT's shape: learned positions, pre-norm blocks, no dropout."""

    def __init__(self, config: Config, vocabulary: int) -> None:
        super().__init__()
        self.embedding = nn.Embedding(vocabulary, config.hidden_size)
        self.positions = nn.Embedding(config.sequence_length, config.hidden_size)
        self.blocks = nn.Sequential(*(BareBlock(config.hidden_size, config.heads) for _ in range(config.layers)))
        self.norm = nn.LayerNorm(config.hidden_size)
        self.logits = nn.Linear(config.hidden_size, vocabulary, bias=False)

    def forward(self, tokens: Tensor, state: object) -> tuple[Tensor, object]:
        x = self.embedding(tokens) + self.positions(torch.arange(tokens.size(1), device=tokens.device))
        return self.logits(self.norm(self.blocks(x))), None


def bare(config: Config, corpus: EncodedCorpus, tokens: int, device: str, compiled: bool = False) -> float:
    """Returns the tokens per second of the usual loop, written by hand; its warm-up is not counted."""
    vocabulary = corpus.tokenizer.vocabulary_size
    model = (BareTransformer if config.architecture == "transformer" else BareRecurrent)(config, vocabulary).to(device)
    call = torch.compile(model) if compiled else model
    optimizer = torch.optim.AdamW(model.parameters(), config.learning_rate, fused=True)
    data = torch.from_numpy(corpus.train.astype("int64")).to(device)
    size, length = config.batch_size, config.sequence_length
    streams = data[: len(data) // size * size].view(size, -1)
    state, at = None, 0
    for step in range(WARM_STEPS + max(1, tokens // (size * length))):
        if step == WARM_STEPS:
            start = now(device)
        if at + length + 1 > streams.size(1):
            at, state = 0, None
        inputs, targets = streams[:, at : at + length], streams[:, at + 1 : at + length + 1]
        with torch.autocast(device, torch.bfloat16, enabled=compiled):
            logits, state = call(inputs, state)
            loss = functional.cross_entropy(logits.flatten(0, 1), targets.flatten())
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        state = tuple(part.detach() for part in state) if isinstance(state, tuple) else state
        state = state.detach() if isinstance(state, Tensor) else state
        at += length
    return (step + 1 - WARM_STEPS) * size * length / (now(device) - start)


def ours(config: Config, corpus: EncodedCorpus, tokens: int, device: str) -> float:
    """Returns the tokens per second of models.train."""
    return train(config, corpus, Budget(tokens=tokens, rungs=1), device=device).tokens_per_second


def now(device: str) -> float:
    """Returns the time at which the device has done what it was given, in seconds."""
    if device == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter()


def operations(config: Config, vocabulary: int) -> int:
    """Returns the multiplications and additions that training needs for a token."""
    weights = parameter_count(config, vocabulary) - vocabulary * config.hidden_size  # an embedding is looked up
    attention = config.layers * config.hidden_size * config.sequence_length
    return 6 * (weights + (attention if config.architecture == "transformer" else 0))


def peak(half: bool, device: str) -> float:
    """Returns the operations per second of a product of large matrices."""
    size, kind = LARGE[device], torch.bfloat16 if half else torch.float32
    one, other = (torch.randn(size, size, dtype=kind, device=device) for _ in range(2))
    start = now(device)
    one @ other
    return 2 * size**3 / (now(device) - start)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--tokens", type=int, default=60_000)
    parser.add_argument("--only", default="", help="shapes whose name begins so")
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    corpus = load_corpus(Corpus(builtin="python-docs"), "character", 2048)
    shapes = SHAPES if options.device == "cpu" else GPU_SHAPES
    rows = [
        measured(name, config, corpus, options.tokens, options.rounds, options.device)
        for name, config in shapes.items()
        if name.startswith(options.only)
    ]
    show(rows, threads=options.threads, tokens=options.tokens, rounds=options.rounds)


def measured(name: str, config: Config, corpus: EncodedCorpus, tokens: int, rounds: int, device: str) -> dict[str, Any]:
    plain, half = config.model_copy(update={"precision": "float32"}), half_precision(config, torch.device(device))
    ways: dict[str, Callable[[int], float]] = {
        "bare": lambda tokens: bare(config, corpus, tokens, device),
        "plain": lambda tokens: ours(plain, corpus, tokens, device),
        "ours": lambda tokens: ours(config, corpus, tokens, device),
    }
    if device == "cuda":
        ways["compiled"] = lambda tokens: bare(config, corpus, tokens, device, compiled=True)

    def once(tokens: int) -> dict[str, float]:
        return {**{way: measure(tokens) for way, measure in ways.items()}, "peak": peak(half, device)}

    once(tokens // 4)  # warm
    rows = [once(tokens) for _ in range(rounds)]
    medians = {way: statistics.median(row[way] for row in rows) for way in rows[0]}
    needed = operations(config, corpus.tokenizer.vocabulary_size)
    return {
        "shape": name,
        **{f"{way} tokens/s": round(medians[way]) for way in ways},
        **{f"ours / {way}": statistics.median(row["ours"] / row[way] for row in rows) for way in ways if way != "ours"},
        "precision": "bfloat16" if half else "float32",
        "peak GFLOP/s": round(medians["peak"] / 1e9),
        "share of peak": needed * medians["ours"] / medians["peak"],
    }


if __name__ == "__main__":
    main()

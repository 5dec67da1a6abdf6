"""Tokens per second of models.train against a bare PyTorch loop of the same shape, and against the machine's peak.

All interleaved in one run. `plain` is models.train in single precision, `ours` as it is by default; the peak is what a
product of two large matrices reaches in the number format of `ours`, and its share counts the products of a training
step alone: six operations for each weight and token, and the causal half of attention.

python benchmarks/throughput.py [--threads 2] [--rounds 5] [--tokens 60000] [--only lstm]
"""

from __future__ import annotations

import argparse
import statistics
import time
from typing import Any

import torch
from machine import show
from torch import Tensor, nn
from torch.nn import functional

from models.config import Budget, Config, Corpus
from models.corpus import EncodedCorpus, load_corpus
from models.network import parameter_count
from models.precision import half_precision
from models.training import train

LARGE = 3000

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
        x = self.embedding(tokens) + self.positions(torch.arange(tokens.size(1)))
        return self.logits(self.norm(self.blocks(x))), None


def bare(config: Config, corpus: EncodedCorpus, tokens: int) -> float:
    """Returns the tokens per second of the loop everybody writes."""
    vocabulary = corpus.tokenizer.vocabulary_size
    model = (BareTransformer if config.architecture == "transformer" else BareRecurrent)(config, vocabulary)
    optimizer = torch.optim.AdamW(model.parameters(), config.learning_rate, fused=True)
    data = torch.from_numpy(corpus.train.astype("int64"))
    size, length = config.batch_size, config.sequence_length
    streams = data[: len(data) // size * size].view(size, -1)
    state, start, done, at = None, time.perf_counter(), 0, 0
    while done < tokens:
        if at + length + 1 > streams.size(1):
            at, state = 0, None
        inputs, targets = streams[:, at : at + length], streams[:, at + 1 : at + length + 1]
        logits, state = model(inputs, state)
        loss = functional.cross_entropy(logits.flatten(0, 1), targets.flatten())
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        state = tuple(part.detach() for part in state) if isinstance(state, tuple) else state
        state = state.detach() if isinstance(state, Tensor) else state
        at, done = at + length, done + size * length
    return done / (time.perf_counter() - start)


def ours(config: Config, corpus: EncodedCorpus, tokens: int) -> float:
    """Returns the tokens per second of models.train."""
    return train(config, corpus, Budget(tokens=tokens, rungs=1)).tokens_per_second


def operations(config: Config, vocabulary: int) -> int:
    """Returns the multiplications and additions that training needs for a token."""
    weights = parameter_count(config, vocabulary) - vocabulary * config.hidden_size  # an embedding is looked up
    attention = config.layers * config.hidden_size * config.sequence_length
    return 6 * (weights + (attention if config.architecture == "transformer" else 0))


def peak(half: bool) -> float:
    """Returns the operations per second of a product of large matrices."""
    one, other = (torch.randn(LARGE, LARGE, dtype=torch.bfloat16 if half else torch.float32) for _ in range(2))
    start = time.perf_counter()
    one @ other
    return 2 * LARGE**3 / (time.perf_counter() - start)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--tokens", type=int, default=60_000)
    parser.add_argument("--only", default="", help="shapes whose name begins so")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    corpus = load_corpus(Corpus(builtin="python-docs"), "character", 2048)
    rows = [
        measured(name, config, corpus, options.tokens, options.rounds)
        for name, config in SHAPES.items()
        if name.startswith(options.only)
    ]
    show(rows, threads=options.threads, tokens=options.tokens, rounds=options.rounds)


def measured(name: str, config: Config, corpus: EncodedCorpus, tokens: int, rounds: int) -> dict[str, Any]:
    plain, half = config.model_copy(update={"precision": "float32"}), half_precision(config, torch.device("cpu"))

    def once(tokens: int) -> tuple[float, float, float, float]:
        return bare(config, corpus, tokens), ours(plain, corpus, tokens), ours(config, corpus, tokens), peak(half)

    once(tokens // 4)  # warm
    rows = [once(tokens) for _ in range(rounds)]
    theirs, single, mine, best = (statistics.median(column) for column in zip(*rows, strict=True))
    needed = operations(config, corpus.tokenizer.vocabulary_size)
    return {
        "shape": name,
        "bare tokens/s": round(theirs),
        "plain tokens/s": round(single),
        "ours tokens/s": round(mine),
        "ours / bare": statistics.median(row[2] / row[0] for row in rows),
        "precision": "bfloat16" if half else "float32",
        "peak GFLOP/s": round(best / 1e9),
        "share of peak": needed * mine / best,
    }


if __name__ == "__main__":
    main()

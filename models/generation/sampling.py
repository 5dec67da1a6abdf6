"""Text from a trained model: greedy, by temperature, top-k, top-p, min-p, with a repetition penalty, or by beams.

Texts are written in step: at each position every text of a batch gets one token, its prompt's next or a sampled one.
So prompts of any lengths go together, without padding, and each text is the one its prompt gets alone.
"""

from __future__ import annotations

import codecs
import itertools
import math
import secrets
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from models.config import Config
from models.errors import ConfigError
from models.nn.network import State, Window, read_on, read_start
from models.text.tokenizers import Tokenizer
from models.training.checkpoint import batch_dimensions, filled, flat

BLANK = -1
"""Stands in a batch of tokens where one is to be sampled."""

GREEDY = 1e-300
"""A temperature so low that only the most probable token is drawn."""

LOOK = 32
"""Tokens between two looks at whether a batch of texts has ended; looking makes a GPU wait."""


@dataclass(frozen=True)
class GenerationOptions:
    """How a text is written: at most `length` tokens, before the first of the strings of `stop`.

    `config` gives temperature (0 is greedy), top_k, top_p, min_p and repetition_penalty. The same seed gives the same
    text. Raises ConfigError.
    """

    length: int
    config: Config
    seed: int | None = None
    stop: Sequence[str] = ()

    def __post_init__(self) -> None:
        if self.length < 1:
            raise ConfigError(f"length {self.length}: ask for at least one token")
        if isinstance(self.stop, str) or not all(self.stop):
            raise ConfigError("stop: give a list of strings, none of them empty")

    def noise(self, rows: int) -> Tensor:
        """Returns (rows, length) random numbers in [0, 1), which decide what is sampled."""
        return uniform_noise(secrets.randbits(63) if self.seed is None else self.seed, rows, self.length)


def generate(model: nn.Module, tokenizer: Tokenizer, prompt: str, options: GenerationOptions) -> str:
    """Returns what the model writes after `prompt`: fewer than `length` tokens if it ends the text or writes a `stop`.

    A stop string is not part of the text. Bytes that are not UTF-8 are shown as U+FFFD.
    """
    return "".join(stream(model, tokenizer, prompt, options))


def stream(model: nn.Module, tokenizer: Tokenizer, prompt: str, options: GenerationOptions) -> Iterator[str]:
    """Yields the text of `generate` piece by piece, as soon as its bytes make whole characters."""
    start = _start(tokenizer, prompt)
    written = write(model, *_blanks([start], options.length), options.noise(1), options.config)
    tokens = (int(token) for token in itertools.islice(written, len(start), None))
    return _until(options.stop, _pieces(tokenizer, tokens))


def generate_batch(
    model: nn.Module, tokenizer: Tokenizer, prompts: Sequence[str], options: GenerationOptions
) -> list[str]:
    """Returns a text for each prompt, all written at once; the first is the one that `generate` writes alone."""
    if not prompts:
        return []
    starts = [_start(tokenizer, prompt) for prompt in prompts]
    tokens, prompt_lengths = _blanks(starts, options.length)
    written = write(model, tokens, prompt_lengths, options.noise(len(starts)), options.config)
    rows = _until_all_ended(written, prompt_lengths.to(device_of(model)), tokenizer.end_of_text)
    own = (row[len(start) : len(start) + options.length] for row, start in zip(rows, starts, strict=True))
    return ["".join(_until(options.stop, _pieces(tokenizer, tokens))) for tokens in own]


class Decodings(NamedTuple):
    """The decoding parameters of each text of a batch, each (B, 1), or None where no text has one.

    `sequence_length` is how many tokens a generator without a state is given at each step.
    """

    temperature: Tensor
    top_k: Tensor | None
    top_p: Tensor | None
    min_p: Tensor | None
    repetition_penalty: Tensor | None
    sequence_length: int

    @classmethod
    def of(cls, configs: Sequence[Config], texts: int, device: torch.device) -> Decodings:
        """Returns those of `texts` texts for each of some configurations."""

        def column(name: str, absent: float) -> Tensor | None:
            values = [getattr(config, name) for config in configs]
            if all(value in (None, absent) for value in values):
                return None
            given = torch.tensor([absent if value is None else value for value in values], dtype=torch.float64)
            return given.repeat_interleave(texts)[:, None].to(device)

        temperatures = torch.tensor([config.temperature or GREEDY for config in configs], dtype=torch.float64)
        return cls(
            temperatures.repeat_interleave(texts)[:, None].to(device),
            column("top_k", math.inf),
            column("top_p", 1.0),
            column("min_p", 0.0),
            column("repetition_penalty", 1.0),
            configs[0].sequence_length,
        )


@torch.no_grad()
def write(
    model: nn.Module, tokens: Tensor, prompt_lengths: Tensor, noise: Tensor, decoding: Config | Decodings
) -> Iterator[Tensor]:
    """Yields the tokens (B,) at each position of texts: those in `tokens` (B, T), sampled where it is BLANK.

    The prompt of text k is its first `prompt_lengths[k]` tokens. `noise` (B, L), uniform in [0, 1), decides what is
    sampled: its column n the n-th token of a text. A generator without a state is given the last `sequence_length`
    tokens at each step.
    """
    model.eval()
    device = device_of(model)
    tokens, noise = tokens.to(device), noise.to(device)
    shared = int(prompt_lengths.min())
    yield from tokens[:, :shared].unbind(1)
    logits, state = read_start(model, tokens[:, :shared], decoding.sequence_length)
    turn = torch.arange(tokens.size(1)) - prompt_lengths[:, None]  # of each position, the number of its sample
    noise = noise.gather(1, turn.clamp(0, noise.size(1) - 1).to(device))
    longest = int(prompt_lengths.max())
    penalty = decoding.repetition_penalty
    penalised = penalty is not None and (isinstance(penalty, Tensor) or penalty != 1)
    seen = _seen(tokens[:, :shared], logits.size(-1)) if penalised else None
    for position in range(shared, tokens.size(1)):
        token = sample(logits[:, -1], decoding, noise[:, position], seen)
        if position < longest:
            token = torch.where(tokens[:, position] == BLANK, token, tokens[:, position])
        yield token
        if position + 1 < tokens.size(1):
            logits, state = read_on(model, token[:, None], state, decoding.sequence_length)
        if seen is not None:
            seen.scatter_(1, token[:, None], True)


def sample(logits: Tensor, decoding: Config | Decodings, noise: Tensor, seen: Tensor | None = None) -> Tensor:
    """Returns the token (B,) to which `noise` (B,), uniform in [0, 1), leads in the distributions of logits (B, V).

    These are changed by the repetition penalty for tokens `seen` (B, V), then temperature, top_k, top_p and min_p.
    The same number draws nearly the same token from a slightly different distribution.
    """
    if seen is not None and decoding.repetition_penalty is not None:
        logits = penalise(logits, seen, decoding.repetition_penalty)
    if isinstance(decoding, Config) and decoding.temperature == 0:
        return logits.argmax(dim=-1)
    logits = (logits - logits.amax(dim=-1, keepdim=True)).double() / decoding.temperature  # no temperature overflows
    cumulative = keep_probable(logits, decoding.top_k, decoding.top_p, decoding.min_p).softmax(dim=-1).cumsum(dim=-1)
    total = cumulative[:, -1:]
    wanted = torch.minimum(noise[:, None] * total, torch.nextafter(total, torch.zeros_like(total)))
    return torch.searchsorted(cumulative, wanted, right=True).squeeze(-1)


def keep_probable(
    logits: Tensor, top_k: int | Tensor | None, top_p: float | Tensor | None, min_p: float | Tensor | None = None
) -> Tensor:
    """Sets to -inf all logits (B, V) but the k largest, then but the fewest whose probability reaches top_p, then
    those whose probability is below min_p times the largest.

    Sources: Fan et al. 2018 (top-k); Holtzman et al. 2020 (nucleus, top-p); Nguyen et al. 2024 (min-p). The most
    probable always stays.
    """
    if top_k is not None or top_p is not None:
        ranked, order = logits.sort(dim=-1, descending=True)
        if top_k is not None:
            ranked = ranked.masked_fill(torch.arange(ranked.size(-1), device=ranked.device) >= top_k, -torch.inf)
        if top_p is not None:
            probabilities = ranked.softmax(dim=-1)
            unneeded = (probabilities.cumsum(dim=-1) - probabilities >= top_p) & (top_p < 1)
            ranked = ranked.masked_fill(unneeded, -torch.inf)
        logits = torch.empty_like(logits).scatter(-1, order, ranked)
    if min_p is not None:
        probabilities = logits.softmax(dim=-1)
        logits = logits.masked_fill(probabilities < min_p * probabilities.amax(dim=-1, keepdim=True), -torch.inf)
    return logits


def penalise(logits: Tensor, seen: Tensor, penalty: float | Tensor) -> Tensor:
    """Divides the positive logits (B, V) of tokens that were seen by a penalty, and multiplies the negative ones.

    Source: Keskar et al. 2019.
    """
    return torch.where(seen, torch.where(logits > 0, logits / penalty, logits * penalty), logits)


def beam_search(
    model: nn.Module,
    tokenizer: Tokenizer,
    prompt: str,
    options: GenerationOptions,
    beams: int,
    length_penalty: float = 1.0,
) -> str:
    """Returns the most probable text of at most `length` tokens after `prompt` that `beams` ways at once find.

    Texts that end earlier are compared by log-probability over (number of tokens) ** `length_penalty`, so that a
    larger one favours longer texts. Of the decoding parameters only the repetition penalty counts. Nothing is random.
    Sources: Graves 2012; Wu et al. 2016 (the penalty, simplified).
    """
    if beams < 1:
        raise ConfigError(f"beams {beams}: follow at least one")
    start = _start(tokenizer, prompt)
    penalty, window = options.config.repetition_penalty, options.config.sequence_length
    best = beam_tokens(model, start, options.length, beams, length_penalty, tokenizer.end_of_text, penalty, window)
    return "".join(_until(options.stop, _pieces(tokenizer, best)))


@torch.no_grad()
def beam_tokens(
    model: nn.Module,
    prompt: list[int],
    length: int,
    beams: int,
    length_penalty: float,
    end: int,
    repetition_penalty: float = 1.0,
    window: int = Config.model_fields["sequence_length"].default,
) -> list[int]:
    """Returns the tokens of `beam_search`; those of an ended text have `end` last."""
    model.eval()
    device = device_of(model)
    dimensions = batch_dimensions(model, device)
    read = torch.tensor([prompt], device=device)
    logits, state = read_start(model, read, window)
    scores = torch.zeros(1, device=device)
    texts = torch.empty(1, 0, dtype=torch.int64, device=device)
    ended: list[tuple[float, list[int]]] = []
    for count in range(1, length + 1):
        following = logits[:, -1].float()
        if repetition_penalty != 1:
            whole = torch.cat([read.expand(len(texts), -1), texts], dim=1)
            following = penalise(following, _seen(whole, following.size(1)), repetition_penalty)
        sums = scores[:, None] + following.log_softmax(dim=-1)
        scores, chosen = sums.flatten().topk(min(2 * beams, sums.numel()))  # half of them may end: enough go on
        rows, tokens = chosen // sums.size(1), chosen % sums.size(1)
        texts = torch.cat([texts[rows], tokens[:, None]], dim=1)
        for rank in (tokens[:beams] == end).nonzero().flatten().tolist():
            ended.append((float(scores[rank]) / count**length_penalty, texts[rank].tolist()))
        going = (tokens != end).nonzero().flatten()[:beams]
        scores, texts, rows = scores[going], texts[going], rows[going]
        ended = sorted(ended, key=lambda one: -one[0])[:beams]
        if count == length or not len(going) or _settled(ended, float(scores[0]), count, length, beams, length_penalty):
            break
        logits, state = read_on(model, texts[:, -1:], _rows(state, dimensions, rows), window)
    ended += [(float(score) / count**length_penalty, text) for score, text in zip(scores, texts.tolist(), strict=True)]
    return max(ended, key=lambda one: one[0])[1]


def _rows(state: State, dimensions: list[int | None], rows: Tensor) -> State:
    """Returns the state of some of the texts, in this order and as often as named."""
    if isinstance(state, Window):
        return Window(state.tokens[rows])
    places = zip(flat(state), dimensions, strict=True)
    return filled(state, (tensor if place is None else tensor.index_select(place, rows) for tensor, place in places))


def device_of(model: nn.Module) -> torch.device:
    return next(model.parameters()).device


def uniform_noise(seed: int, rows: int, length: int) -> Tensor:
    """Returns (rows, length) random numbers in [0, 1), float64, the same on every device; each row has its own."""
    return torch.from_numpy(np.stack([np.random.default_rng([seed, row]).random(length) for row in range(rows)]))


def _settled(
    ended: list[tuple[float, list[int]]], best: float, count: int, length: int, beams: int, penalty: float
) -> bool:
    """Whether no text that still goes on can come before those that ended."""
    reachable = best / (length if penalty > 0 else count) ** penalty
    return len(ended) == beams and ended[-1][0] >= reachable


def _blanks(starts: Sequence[list[int]], length: int) -> tuple[Tensor, Tensor]:
    """Returns texts (B, T) that begin with these tokens and go on with BLANK, and the lengths of their beginnings."""
    prompt_lengths = torch.tensor([len(start) for start in starts])
    tokens = torch.full((len(starts), int(prompt_lengths.max()) + length), BLANK)
    for row, start in zip(tokens, starts, strict=True):
        row[: len(start)] = torch.tensor(start)
    return tokens, prompt_lengths


def _until_all_ended(columns: Iterable[Tensor], prompt_lengths: Tensor, end: int) -> list[list[int]]:
    """Returns the tokens of each text, up to a place at which all of them have written `end`, if there is one."""
    kept = []
    ended = torch.zeros_like(prompt_lengths, dtype=torch.bool)
    for position, column in enumerate(columns):
        kept.append(column)
        ended |= (column == end) & (prompt_lengths <= position)
        if position % LOOK == LOOK - 1 and bool(ended.all()):
            break
    rows: list[list[int]] = torch.stack(kept, dim=1).tolist()
    return rows


def _seen(tokens: Tensor, vocabulary_size: int) -> Tensor:
    seen = torch.zeros(len(tokens), vocabulary_size, dtype=torch.bool, device=tokens.device)
    return seen.scatter_(1, tokens, True)


def _start(tokenizer: Tokenizer, prompt: str) -> list[int]:
    """An empty prompt starts where a text starts: behind the end of another."""
    return tokenizer.encode(prompt).tolist() or [tokenizer.end_of_text]


def _pieces(tokenizer: Tokenizer, tokens: Iterable[int]) -> Iterator[str]:
    """The text of tokens, up to the one that ends it; each piece as soon as its bytes make whole characters."""
    decoder = codecs.getincrementaldecoder("utf-8")(errors="replace")
    pending: list[int] = []
    for token in tokens:
        if token == tokenizer.end_of_text:
            break
        pending.append(token)
        text_bytes = tokenizer.decode_bytes(pending)
        yield decoder.decode(text_bytes)
        if text_bytes:  # half a byte gives none, and waits for its other half
            pending.clear()
    yield decoder.decode(b"", final=True)


def _until(stop: Sequence[str], pieces: Iterable[str]) -> Iterator[str]:
    """The pieces up to the first stop string; what may be the beginning of one is held back until it is known."""
    held = ""
    for piece in pieces:
        held += piece
        found = [place for one in stop if (place := held.find(one)) >= 0]
        if found:
            yield held[: min(found)]
            return
        sure = len(held) - _partial_stop(held, stop)
        yield held[:sure]
        held = held[sure:]
    if held:
        yield held


def _partial_stop(text: str, stop: Sequence[str]) -> int:
    """How many characters at the end of `text` may be the beginning of a stop string."""
    lengths = range(min(len(text), max(map(len, stop), default=1) - 1), 0, -1)
    return next((length for length in lengths if any(one.startswith(text[-length:]) for one in stop)), 0)

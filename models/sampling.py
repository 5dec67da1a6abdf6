"""Text from a trained model: greedy, temperature, top-k, top-p; each new token costs one step."""

from __future__ import annotations

import codecs
from collections.abc import Iterator

import torch
from torch import Tensor, nn

from models.config import Config
from models.errors import ConfigError
from models.tokenizers import Tokenizer


def generate(
    model: nn.Module, tokenizer: Tokenizer, prompt: str, length: int, config: Config, seed: int | None = None
) -> str:
    """Returns what the model writes after `prompt`: `length` tokens, or fewer if it ends the text.

    `config` gives temperature (0 is greedy), top_k and top_p. The same seed gives the same text.
    """
    return "".join(stream(model, tokenizer, prompt, length, config, seed))


def stream(
    model: nn.Module, tokenizer: Tokenizer, prompt: str, length: int, config: Config, seed: int | None = None
) -> Iterator[str]:
    """Yields the text of `generate` piece by piece, as soon as its bytes make whole characters."""
    if length < 1:
        raise ConfigError(f"length {length}: ask for at least one token")
    decoder = codecs.getincrementaldecoder("utf-8")(errors="replace")
    pending: list[int] = []
    for token in tokens(model, _start(tokenizer, prompt), length, config, seed):
        if token == tokenizer.end_of_text:
            break
        pending.append(token)
        text_bytes = tokenizer.decode_bytes(pending)
        yield decoder.decode(text_bytes)
        if text_bytes:  # half a byte gives none, and waits for its other half
            pending.clear()
    yield decoder.decode(b"", final=True)


@torch.no_grad()
def tokens(model: nn.Module, prompt: list[int], length: int, config: Config, seed: int | None = None) -> Iterator[int]:
    """Yields `length` token ids after a prompt of at least one."""
    device = next(model.parameters()).device
    random = torch.Generator(device)
    random.manual_seed(seed) if seed is not None else random.seed()
    model.eval()
    logits, state = model(torch.tensor([prompt], device=device), None)
    for _ in range(length):
        token = draw(logits[:, -1].float(), config, random)
        yield int(token)
        logits, state = model(token.view(1, 1), state)


def draw(logits: Tensor, config: Config, random: torch.Generator) -> Tensor:
    """Draws one token (B,) from logits (B, V) by temperature, then top_k, then top_p."""
    if config.temperature == 0:
        return logits.argmax(dim=-1)
    logits = (logits - logits.amax(dim=-1, keepdim=True)).double() / config.temperature  # no temperature overflows
    probabilities = torch.softmax(keep_probable(logits, config.top_k, config.top_p), dim=-1)
    return torch.multinomial(probabilities, 1, generator=random).squeeze(-1)


def keep_probable(logits: Tensor, top_k: int | None, top_p: float | None) -> Tensor:
    """Sets to -inf all logits (B, V) but the k largest, and but the fewest whose probability reaches top_p.

    Sources: Fan et al. 2018 (top-k); Holtzman et al. 2020 (nucleus, top-p). The most probable always stays.
    """
    if top_k is not None and top_k < logits.size(-1):
        largest = logits.topk(top_k, dim=-1)
        logits = torch.full_like(logits, -torch.inf).scatter(-1, largest.indices, largest.values)
    if top_p is not None and top_p < 1:
        ranked, order = logits.sort(dim=-1, descending=True)
        probabilities = ranked.softmax(dim=-1)
        unneeded = probabilities.cumsum(dim=-1) - probabilities >= top_p
        logits = logits.masked_fill(unneeded.scatter(-1, order, unneeded), -torch.inf)
    return logits


def _start(tokenizer: Tokenizer, prompt: str) -> list[int]:
    """An empty prompt starts where a text starts: behind the end of another."""
    return tokenizer.encode(prompt).tolist() or [tokenizer.end_of_text]

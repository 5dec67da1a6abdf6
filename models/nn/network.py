"""Text generators: Recurrent (rnn, lstm, gru) and Transformer, one call for all; build(config, vocabulary_size)."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, NamedTuple, cast

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.overrides import TorchFunctionMode

from models.config import ARCHITECTURES, Config
from models.errors import ConfigError
from models.nn import recurrence
from models.nn.custom import own_class, require_takes
from models.nn.dropout import Dropout, dropped

# Sizes are named once: B sequences, T tokens, C hidden units, V vocabulary entries, H heads.

SHORT = 512
"""Tokens up to which half-precision attention is trained in plain products on a CPU: their memory grows as T x T."""

DRAWS = (Tensor.normal_, Tensor.uniform_, nn.init.normal_, nn.init.uniform_, nn.init.kaiming_uniform_)
"""What fills a tensor with random numbers, where modules do so."""

State = Any
"""What a generator remembers between calls: None at the start of a text, else what its last call returned."""


class Generator(nn.Module):
    """What every generator obeys: forward(tokens (B, T) int64, state) -> logits (B, T, V), state.

    `carries_state` says how it is trained: True on contiguous streams whose state goes from one step to
    the next, False on independent windows of `sequence_length` tokens. One that returns None as its state
    remembers nothing: at each step it is given its last `sequence_length` tokens again.
    """

    carries_state: bool = False

    def forward(self, tokens: Tensor, state: State = None) -> tuple[Tensor, State]:
        raise NotImplementedError


class Window(NamedTuple):
    """Stands for the state of a generator that returns none: the tokens (B, T) that it is given again."""

    tokens: Tensor


def read_start(model: nn.Module, tokens: Tensor, window: int) -> tuple[Tensor, State]:
    """Reads the start of texts (B, T), T >= 1; returns logits that end with those of the next token, and the state.

    A generator that does not carry its state is given at most `window` tokens at a time, as in training.
    """
    first = tokens if getattr(model, "carries_state", False) else tokens[:, :window]
    logits, state = model(first, None)
    if first.size(1) == tokens.size(1):
        return logits, Window(tokens[:, -window:]) if state is None else state
    if state is None:
        return read_on(model, tokens[:, window:], Window(first), window)
    return cast(tuple[Tensor, State], model(tokens[:, window:], state))


def read_on(model: nn.Module, tokens: Tensor, state: State, window: int) -> tuple[Tensor, State]:
    """Reads on in texts, from the state that `read_start` or `read_on` returned."""
    if not isinstance(state, Window):
        return cast(tuple[Tensor, State], model(tokens, state))
    told = torch.cat([state.tokens, tokens], dim=1)[:, -window:]
    return model(told, None)[0], Window(told)


@torch.no_grad()
def remembers(model: nn.Module) -> bool:
    """Whether a generator's state is carried on: it says so, and returns one. Its mode is left as it was."""
    if not getattr(model, "carries_state", False):
        return False
    was_training = model.training
    model.eval()
    token = torch.zeros(1, 1, dtype=torch.int64, device=next(model.parameters()).device)
    _, state = model(token, None)
    model.train(was_training)
    return state is not None


class Head(nn.Module):
    """The way out of a network: dropout, a change of width where tying needs one, and the logits."""

    def __init__(self, config: Config, vocabulary_size: int, embedding: nn.Embedding) -> None:
        super().__init__()
        self.dropout = Dropout(_or(config.output_dropout, config.dropout))
        self.project: nn.Module = nn.Identity()
        width = config.hidden_size
        if config.tied_embeddings and width != embedding.embedding_dim:
            self.project = nn.Linear(width, embedding.embedding_dim, bias=False)
        if config.tied_embeddings:
            width = embedding.embedding_dim
        self.logits = nn.Linear(width, vocabulary_size)
        if config.tied_embeddings:
            self.logits.weight = embedding.weight

    def forward(self, hidden: Tensor) -> Tensor:
        return cast(Tensor, self.logits(self.project(self.dropout(hidden))))


class Recurrent(Generator):
    """An Elman (tanh), LSTM or GRU language model.

    Sources: Elman 1990; Hochreiter & Schmidhuber 1997; Cho et al. 2014; dropout as in Zaremba et al. 2014.
    """

    carries_state = True

    def __init__(self, config: Config, vocabulary_size: int) -> None:
        super().__init__()
        embedding_size = _or(config.embedding_size, config.hidden_size)
        self.embedding = nn.Embedding(vocabulary_size, embedding_size)
        # A tied embedding is small, as an output layer must be, and is made large again on its way in.
        self.scale = math.sqrt(embedding_size) if config.tied_embeddings else 1.0
        self.dropout = Dropout(_or(config.embedding_dropout, config.dropout))
        between_layers = _or(config.layer_dropout, config.dropout) if config.layers > 1 else 0.0
        kind = {"rnn": nn.RNN, "lstm": nn.LSTM, "gru": nn.GRU}[config.architecture]
        # (T, B, C) is the recurrence's own order: the other one costs two copies a step.
        self.recurrence = kind(embedding_size, config.hidden_size, config.layers, dropout=between_layers)
        self.head = Head(config, vocabulary_size, self.embedding)
        self._initialise(config)

    def _initialise(self, config: Config) -> None:
        """Embeddings of size one, orthogonal recurrences (Saxe et al. 2014), inputs as in Glorot & Bengio 2010."""
        nn.init.normal_(self.embedding.weight, std=1 / self.scale)
        nn.init.zeros_(self.head.logits.bias)
        for name, parameter in self.recurrence.named_parameters():
            if name.startswith("weight_hh"):
                for gate in parameter.data.split(config.hidden_size):
                    nn.init.orthogonal_(gate)
            elif name.startswith("weight_ih"):
                for gate in parameter.data.split(config.hidden_size):
                    nn.init.xavier_uniform_(gate)

    def forward(self, tokens: Tensor, state: State = None) -> tuple[Tensor, State]:
        hidden = self.dropout(self.embedding(tokens.t()) * self.scale)
        hidden, state = recurrence.implementation(self.recurrence, hidden)(hidden, state)
        return self.head(hidden).transpose(0, 1), state


class KVCache(NamedTuple):
    """A transformer's state: the window's tokens (B, T), and keys and values (B, H, T, C / H) of each block."""

    tokens: Tensor
    keys: list[Tensor]
    values: list[Tensor]


class Transformer(Generator):
    """A pre-norm causal decoder.

    Its window is `sequence_length` tokens. Text that goes on beyond it is read in windows that overlap by
    half, so that every prediction has at least half a window of context and no position is new to it.
    Sources: Vaswani et al. 2017; pre-norm Xiong et al. 2020; rotary positions Su et al. 2021.
    """

    carries_state = False

    def __init__(self, config: Config, vocabulary_size: int) -> None:
        super().__init__()
        embedding_size = _or(config.embedding_size, config.hidden_size)
        self.window = config.sequence_length
        self.embedding = nn.Embedding(vocabulary_size, embedding_size)
        self.embedding_proj: nn.Module = nn.Identity()
        if embedding_size != config.hidden_size:
            self.embedding_proj = nn.Linear(embedding_size, config.hidden_size, bias=False)
        self.dropout = Dropout(_or(config.embedding_dropout, config.dropout))
        self.sinusoidal = config.positions == "sinusoidal"
        width = config.hidden_size if self.sinusoidal else config.hidden_size // config.heads
        self.register_buffer("freqs_cis", precompute_freqs_cis(self.window, width), persistent=False)
        self.blocks = nn.ModuleList(Block(config) for _ in range(config.layers))
        self.norm = nn.LayerNorm(config.hidden_size)
        self.head = Head(config, vocabulary_size, self.embedding)
        self._initialise(config)

    def _initialise(self, config: Config) -> None:
        for name, parameter in self.named_parameters():
            if parameter.dim() >= 2:
                # Each block adds twice to the residual stream: shrink what is added, so that depth does not.
                depth = math.sqrt(2 * config.layers) if name.endswith(("out_proj.weight", "down_proj.weight")) else 1.0
                nn.init.normal_(parameter, std=0.02 / depth)
            elif name.endswith("bias"):
                nn.init.zeros_(parameter)
        if self.sinusoidal:
            self._initialise_embedding(config)

    def _initialise_embedding(self, config: Config) -> None:
        """Scaled by the root of the width on its way in, a token must weigh as much as the sines of its place.

        Less where the same matrix gives the logits: the stream that a token came into would predict that token.
        """
        alone = config.tied_embeddings and isinstance(self.head.project, nn.Identity)
        nn.init.normal_(self.embedding.weight, std=config.hidden_size ** (-0.75 if alone else -0.5))
        if isinstance(self.embedding_proj, nn.Linear):
            nn.init.normal_(self.embedding_proj.weight, std=self.embedding_proj.in_features**-0.5)

    def forward(self, tokens: Tensor, state: KVCache | None = None) -> tuple[Tensor, State]:
        logits = []
        while tokens.size(1):
            if state is not None and state.tokens.size(1) == self.window:
                state = self._reread(state.tokens)
            room = self.window - (0 if state is None else state.tokens.size(1))
            part, state = self._read(tokens[:, :room], state)
            logits.append(part)
            tokens = tokens[:, room:]
        return (logits[0] if len(logits) == 1 else torch.cat(logits, dim=1)), state

    def _reread(self, tokens: Tensor) -> KVCache | None:
        """Starts a new window with the last half of a full one."""
        kept = self.window // 2
        return self._read(tokens[:, -kept:], None)[1] if kept else None

    def _read(self, tokens: Tensor, state: KVCache | None) -> tuple[Tensor, KVCache]:
        """Reads tokens (B, T) that fit into the window behind `state`."""
        start = 0 if state is None else state.tokens.size(1)
        positions = slice(start, start + tokens.size(1))
        freqs_cis = cast(Tensor, self.freqs_cis)[positions]
        hidden = self.embedding_proj(self.embedding(tokens))
        if self.sinusoidal:
            sines = torch.stack([freqs_cis.imag, freqs_cis.real], dim=-1).flatten(-2)
            hidden = hidden * math.sqrt(hidden.size(-1)) + sines
        hidden = self.dropout(hidden)
        cache = KVCache(tokens if state is None else torch.cat([state.tokens, tokens], dim=1), [], [])
        for index, block in enumerate(self.blocks):
            past = None if state is None else (state.keys[index], state.values[index])
            hidden, keys, values = block(hidden, None if self.sinusoidal else freqs_cis, past)
            cache.keys.append(keys)
            cache.values.append(values)
        return self.head(self.norm(hidden)), cache


class Block(nn.Module):
    """Attention and a feed-forward layer, each normalised before and added after."""

    def __init__(self, config: Config) -> None:
        super().__init__()
        self.attention_norm = nn.LayerNorm(config.hidden_size)
        self.attention = Attention(config)
        self.feed_forward_norm = nn.LayerNorm(config.hidden_size)
        self.feed_forward = FeedForward(config)

    def forward(
        self, hidden: Tensor, freqs_cis: Tensor | None, past: tuple[Tensor, Tensor] | None
    ) -> tuple[Tensor, Tensor, Tensor]:
        attended, keys, values = self.attention(self.attention_norm(hidden), freqs_cis, past)
        hidden = hidden + attended
        return hidden + self.feed_forward(self.feed_forward_norm(hidden)), keys, values


class Attention(nn.Module):
    """Causal attention of several heads: softmax(Q K^T / sqrt(C / H)) V."""

    def __init__(self, config: Config) -> None:
        super().__init__()
        self.heads = config.heads
        self.short = SHORT
        self.drop = _or(config.layer_dropout, config.dropout)
        self.qkv_proj = nn.Linear(config.hidden_size, 3 * config.hidden_size, bias=False)
        self.out_proj = nn.Linear(config.hidden_size, config.hidden_size, bias=False)
        self.dropout = Dropout(self.drop)

    def forward(
        self, hidden: Tensor, freqs_cis: Tensor | None, past: tuple[Tensor, Tensor] | None
    ) -> tuple[Tensor, Tensor, Tensor]:
        batch, length, width = hidden.shape
        qk, values = self.qkv_proj(hidden).split([2 * width, width], dim=-1)
        qk = qk.view(batch, length, 2, self.heads, -1)
        values = values.view(batch, length, self.heads, -1).transpose(1, 2)
        if freqs_cis is not None:
            qk = apply_rotary_emb(qk, freqs_cis)
        queries, keys = qk.permute(2, 0, 3, 1, 4).unbind(0)  # each (B, H, T, C / H), as are the values
        if past is not None:
            keys, values = torch.cat([past[0], keys], dim=2), torch.cat([past[1], values], dim=2)
        drop = self.drop if self.training else 0.0
        if queries.requires_grad and queries.is_cpu and queries.dtype == torch.bfloat16 and length <= self.short:
            attended = causal_attention(queries, keys, values, drop)
        else:
            attended = functional.scaled_dot_product_attention(
                queries, keys, values, **_causal(length, keys), dropout_p=drop
            )
        attended = attended.transpose(1, 2).reshape(batch, length, width)
        return self.dropout(self.out_proj(attended)), keys, values


class FeedForward(nn.Module):
    """Two linear layers, four times as wide between them."""

    def __init__(self, config: Config) -> None:
        super().__init__()
        self.up_proj = nn.Linear(config.hidden_size, 4 * config.hidden_size, bias=False)
        self.down_proj = nn.Linear(4 * config.hidden_size, config.hidden_size, bias=False)
        self.dropout = Dropout(_or(config.layer_dropout, config.dropout))

    def forward(self, hidden: Tensor) -> Tensor:
        return cast(Tensor, self.dropout(self.down_proj(functional.gelu(self.up_proj(hidden)))))


def build(config: Config, vocabulary_size: int) -> nn.Module:
    """Returns the untrained generator that `config` names, its weights drawn from torch's random state.

    Raises ConfigError when one of the user's own cannot be found, or does not take the parameters of its own.
    """
    kind = generator_class(config)
    if config.architecture not in ARCHITECTURES:
        require_takes(kind, config.architecture, config.own)
    return kind(config, vocabulary_size, **config.own)


def build_shapes(config: Config, vocabulary_size: int) -> nn.Module:
    """Returns the generator of `build` on the meta device: its tensors have shapes, and take no memory."""
    with torch.device("meta"), _Undrawn():
        return build(config, vocabulary_size)


class _Undrawn(TorchFunctionMode):
    """Leaves weights as they are: to draw them on the meta device, PyTorch would import its compiler (a second)."""

    def __torch_function__(
        self, function: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        given = kwargs or {}
        if function in DRAWS:
            return args[0] if args else given["tensor"]
        return function(*args, **given)


def generator_class(config: Config) -> type[nn.Module]:
    """Returns the class of `config`'s generator; raises ConfigError when one of the user's own cannot be found."""
    if config.architecture == "transformer":
        return Transformer
    return Recurrent if config.architecture in ARCHITECTURES else own_class(config.architecture)


def parameter_count(config: Config, vocabulary_size: int) -> int:
    """Returns how many weights the generator has; those of a built-in one without allocating them."""
    try:
        return _weights(build_shapes(config, vocabulary_size))
    except Exception as error:
        if config.architecture in ARCHITECTURES or isinstance(error, ConfigError):
            raise
        with torch.random.fork_rng(devices=[]):
            return _weights(build(config, vocabulary_size))  # it looks at its weights, which are none there


def _weights(model: nn.Module) -> int:
    return sum(parameter.numel() for parameter in model.parameters())


def _or(value: float | None, default: float) -> Any:
    return default if value is None else value


def precompute_freqs_cis(positions: int, width: int) -> Tensor:
    """Cosine and sine of each position's angle for each pair of units: (positions, width / 2), complex."""
    frequencies = 10_000.0 ** (-torch.arange(0, width, 2, dtype=torch.float32) / width)
    angles = torch.outer(torch.arange(positions, dtype=torch.float32), frequencies)
    return torch.polar(torch.ones_like(angles), angles)


def apply_rotary_emb(heads: Tensor, freqs_cis: Tensor) -> Tensor:
    """Turns each pair of neighbouring units of (B, T, 2, H, C / H) by its position's angle."""
    pairs = torch.view_as_complex(heads.float().view(*heads.shape[:-1], -1, 2))
    return torch.view_as_real(pairs * freqs_cis[:, None, None]).flatten(-2).to(heads.dtype)


def causal_attention(queries: Tensor, keys: Tensor, values: Tensor, drop: float) -> Tensor:
    """Causal attention in plain products, (B, H, T, C / H) all: torch's own half precision is slower on a CPU."""
    heads, length, width = queries.shape[1:]
    queries, keys, values = (each.flatten(0, 1) for each in (queries, keys, values))
    unseen = torch.full((length, length), -math.inf, dtype=queries.dtype).triu_(1)
    weights = torch.baddbmm(unseen, queries, keys.transpose(1, 2), alpha=width**-0.5).softmax(-1)
    return torch.bmm(dropped(weights, drop), values).view(-1, heads, length, width)


def _causal(length: int, keys: Tensor) -> dict[str, Any]:
    """Which keys `length` queries at the end may see: the fast causal path unless keys came before them."""
    before = keys.size(2) - length
    if before == 0:
        return {"is_causal": True}
    if length == 1:
        return {}
    mask = torch.ones(length, keys.size(2), dtype=torch.bool, device=keys.device)
    return {"attn_mask": mask.tril(diagonal=before)}

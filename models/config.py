"""The configuration of a run: name, unit, range and default of every parameter; imports no torch."""

from __future__ import annotations

import difflib
import math
import os
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal, Self

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    PositiveFloat,
    SerializerFunctionWrapHandler,
    field_validator,
    model_serializer,
    model_validator,
)

from models.wording import listed

SCHEMA = 1
"""The version of the files that hold a recipe or a study, `schema` in them. It grows when an old reader would err."""

ARCHITECTURES = ("rnn", "lstm", "gru", "transformer")

OWN = "own."
"""Stands before the name of a custom class's parameter where all parameters have single names."""


class _Strict(BaseModel):
    """Unknown keys, text where a number belongs and non-finite numbers are errors; nothing changes later."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, allow_inf_nan=False)


def _knob(default: Any, description: str, unit: str = "", **limits: Any) -> Any:
    return Field(default, description=description, json_schema_extra={"unit": unit}, **limits)


Probability = Annotated[float, Field(ge=0, lt=1)]


class Config(_Strict):
    """The hyperparameters of one run. In a study each can be fixed or searched."""

    tokenizer: Literal["byte", "character", "word", "byte-pair"] = _knob(
        "character", "How text becomes tokens; each falls back to bytes, so no text is lost."
    )
    vocabulary_size: int = _knob(
        2048, "Entries the word or byte-pair tokenizer may learn.", "tokens", ge=300, le=1_000_000
    )
    architecture: str = _knob("lstm", "rnn, lstm, gru, transformer, or your own as package.module:Class.")
    own: dict[str, bool | int | float | str | None] = _knob(
        {}, "Parameters of your own class, by name: keyword arguments of its constructor."
    )
    layers: int = _knob(1, "Recurrent layers or transformer blocks.", ge=1, le=128)
    hidden_size: int = _knob(256, "Width of the hidden state.", "units", ge=1, le=65536)
    embedding_size: int | None = _knob(
        None, "Width of the token embedding; null means hidden_size.", "units", ge=1, le=65536
    )
    heads: int = _knob(4, "Attention heads; they must divide hidden_size.", ge=1, le=512)
    positions: Literal["rotary", "sinusoidal"] = _knob("rotary", "How a transformer knows order.")
    tied_embeddings: bool = _knob(False, "Whether the output layer reuses the embedding's weights.")
    dropout: Probability = _knob(0.0, "Probability of dropping an activation, at every place below.")
    embedding_dropout: Probability | None = _knob(None, "Dropout after the embedding; null means dropout.")
    layer_dropout: Probability | None = _knob(None, "Dropout between and within layers; null means dropout.")
    output_dropout: Probability | None = _knob(None, "Dropout before the output layer; null means dropout.")
    sequence_length: int = _knob(
        64,
        "Tokens a training step sees of each stream; a transformer's context.",
        "tokens",
        ge=1,
        le=1_048_576,
    )
    batch_size: int = _knob(16, "Streams or windows in one training step.", "sequences", ge=1, le=1_048_576)
    optimizer: Literal["adamw", "adam", "sgd", "rmsprop", "muon"] = _knob(
        "adamw",
        "muon orthogonalises the updates of matrices between embedding and output; adamw moves the rest.",
    )
    learning_rate: float = _knob(2e-3, "Peak step size of the optimizer.", gt=0, le=100)
    momentum: float = _knob(0.9, "Momentum of sgd, rmsprop and muon.", ge=0, lt=1)
    beta1: float = _knob(0.9, "Decay of adam's and adamw's mean of gradients.", ge=0, lt=1)
    beta2: float = _knob(0.99, "Decay of adam's and adamw's mean of squared gradients.", ge=0, lt=1)
    weight_decay: float = _knob(0.01, "Pull of the weight matrices towards zero.", ge=0, le=10)
    gradient_clip: float = _knob(1.0, "Largest norm of the gradient; 0 means no clipping.", ge=0)
    schedule: Literal["constant", "linear", "exponential", "cosine"] = _knob(
        "cosine", "How the learning rate falls after warm-up, over the rest of the budget."
    )
    warmup: float = _knob(0.02, "Part of the budget in which the learning rate rises.", "fraction", ge=0, le=1)
    final_learning_rate: float = _knob(0.01, "Learning rate at the end, relative to its peak.", "fraction", gt=0, le=1)
    patience: int = _knob(
        0, "Evaluations without progress before a run stops early; 0 means never.", "evaluations", ge=0
    )
    precision: Literal["auto", "float32", "bfloat16"] = _knob(
        "auto", "Number format of the matrix products; auto is bfloat16 on a GPU or CPU that is faster with it."
    )
    seed: int = _knob(0, "Decides initial weights, dropout and the order of the data.", ge=0, lt=2**63)
    temperature: float = _knob(
        1.0,
        "Sharpens (below 1) or flattens (above) the distribution text is drawn from; 0 is greedy.",
        ge=0,
        le=10,
    )
    top_k: int | None = _knob(None, "Draw among the k most probable tokens only.", "tokens", ge=1)
    top_p: float | None = _knob(None, "Draw among the fewest tokens of this total probability.", gt=0, le=1)
    min_p: float | None = _knob(
        None, "Draw among the tokens at least this probable, relative to the most probable.", ge=0, le=1
    )
    repetition_penalty: float = _knob(
        1.0,
        "Divides the positive logits of tokens already in the text, and multiplies the others.",
        gt=0,
        le=10,
    )

    @field_validator("architecture")
    @classmethod
    def _known_architecture(cls, value: str) -> str:
        module, colon, name = value.partition(":")
        own = bool(colon) and name.isidentifier() and all(part.isidentifier() for part in module.split("."))
        if value not in ARCHITECTURES and not own:
            near = difflib.get_close_matches(value, ARCHITECTURES, n=1)
            hint = f"; did you mean {near[0]}?" if near else ""
            raise ValueError(f"is none of {', '.join(ARCHITECTURES)}, nor of the form package.module:Class{hint}")
        return value

    @field_validator("own", mode="before")
    @classmethod
    def _known_own(cls, value: Any) -> Any:
        problems = [f"{name}: {what}" if name else what for name, what in own_problems(value)]
        if problems:
            raise ValueError("; ".join(problems))
        return value

    @model_validator(mode="after")
    def _own_has_a_class(self) -> Self:
        if self.own and self.architecture in ARCHITECTURES:
            raise ValueError(
                f"own: is for a class of your own as architecture; {self.architecture} takes nothing of it"
            )
        return self

    @model_serializer(mode="wrap")
    def _without_empty_own(self, handler: SerializerFunctionWrapHandler) -> dict[str, Any]:
        # A file without parameters of a custom class is the same as before there were any.
        return {name: value for name, value in handler(self).items() if name != "own" or value}

    @model_validator(mode="after")
    def _heads_divide(self) -> Self:
        problem = heads_problem(self.heads, self.hidden_size, self.positions)
        if self.architecture == "transformer" and problem:
            raise ValueError(problem)
        return self


def heads_problem(heads: int, hidden_size: int, positions: str) -> str | None:
    """Says why a transformer of these sizes cannot be built, or None."""
    if hidden_size % heads:
        return f"heads: {heads} does not divide hidden_size: {hidden_size}"
    if positions == "rotary" and (hidden_size // heads) % 2:
        return (
            f"heads: {heads} and hidden_size: {hidden_size} leave heads of odd width; rotary positions need even ones"
        )
    if hidden_size % 2:
        return f"hidden_size: {hidden_size} is odd; positions need an even one"
    return None


def own_problems(own: Any) -> Iterator[tuple[str, str]]:
    """Yields what is wrong with the parameters of a custom class: a name, or none for all of them, and what."""
    if not isinstance(own, Mapping):
        yield "", "should be a mapping: the names of your class's parameters, each with its value"
        return
    folded = [str(name).lower() for name in own]
    for name, value in own.items():
        if not re.fullmatch("[A-Za-z_][A-Za-z0-9_]*", str(name)):
            yield str(name), "is no name of an argument; use letters, digits and _"
        elif folded.count(str(name).lower()) > 1:
            yield str(name), "differs from another name in upper and lower case alone"
        elif not (value is None or isinstance(value, bool | int | float | str)) or not _finite(value):
            yield str(name), "should be a number, text, true, false or null"


def _finite(value: Any) -> bool:
    return not isinstance(value, float) or math.isfinite(value)


def flat(parameters: Mapping[str, Any]) -> dict[str, Any]:
    """Returns parameters by single names: those of a custom class as `own.NAME`, in their place among the others."""
    found: dict[str, Any] = {}
    for name, value in parameters.items():
        own = name == OWN.rstrip(".") and isinstance(value, Mapping)
        found |= {f"{OWN}{part}": one for part, one in value.items()} if own else {name: value}
    return found


def nested(parameters: Mapping[str, Any]) -> dict[str, Any]:
    """Returns parameters as a `Config` has them, from their single names."""
    own = {name.removeprefix(OWN): value for name, value in parameters.items() if name.startswith(OWN)}
    others = {name: value for name, value in parameters.items() if not name.startswith(OWN)}
    return others | ({"own": own} if own else {})


DECODING = ("temperature", "top_k", "top_p", "min_p", "repetition_penalty")
"""The fields that change the text drawn from a trained model, never its weights."""


class Corpus(_Strict):
    """Where the text comes from, and which part of it is for what."""

    example: ClassVar[str] = "{path: my-text.txt}"

    path: str | list[str] | None = Field(
        None, description="A file of text or records, a folder or pattern (texts/*.txt) of these, or a list."
    )
    weights: list[PositiveFloat] | None = Field(
        None, description="The share of each text that path lists, in training and in what is held out."
    )
    validation: str | list[str] | None = Field(
        None, description="Text to validate on, as path; what path names is then trained on as a whole."
    )
    test: str | list[str] | None = Field(None, description="Text to test on, as path; by default a part of path.")
    builtin: Literal["python-docs", "markov"] | None = Field(
        None, description="A corpus that needs no file: Python's help on its language, or a random source."
    )
    field: str | None = Field(None, description="The key or column that holds the text in files of records.")
    split: tuple[float, float, float] = Field(
        (0.9, 0.05, 0.05), description="Parts for training, validation and test, in this order in the text."
    )
    fingerprint: str | None = Field(None, description="SHA-256 the text must have; written by export.")

    @field_validator("path", "validation", "test", mode="before")
    @classmethod
    def _paths(cls, value: Any) -> Any:
        listed = value if isinstance(value, list) else [value]
        if value is not None and not all(isinstance(one, str) for one in listed):
            raise ValueError("should be a path, or a list of paths")
        return value

    @field_validator("split", mode="before")
    @classmethod
    def _tuple(cls, value: Any) -> Any:
        return tuple(float(part) if type(part) is int else part for part in value) if isinstance(value, list) else value

    @field_validator("split")
    @classmethod
    def _parts(cls, value: tuple[float, float, float]) -> tuple[float, float, float]:
        if min(value[:2]) <= 0 or value[2] < 0 or abs(sum(value) - 1) > 1e-9:
            raise ValueError("needs three parts that add up to 1, the first two above 0, such as [0.9, 0.05, 0.05]")
        return value

    @model_validator(mode="after")
    def _one_source(self) -> Self:
        if (self.path is None) == (self.builtin is None):
            raise ValueError("give either path (a file or folder) or builtin (python-docs or markov)")
        if self.path is None and (self.validation is not None or self.test is not None):
            raise ValueError("validation and test go with path; a built-in corpus has its own")
        if self.weights is not None:
            if not isinstance(self.path, list) or len(self.path) < 2:
                raise ValueError("weights are for a path that lists two texts or more")
            if len(self.weights) != len(self.path):
                raise ValueError(f"there are {len(self.weights)} weights for {len(self.path)} paths; give one for each")
        if [] in (self.path, self.validation, self.test):
            raise ValueError("an empty list names no text; give at least one file")
        return self

    @property
    def holds_documents(self) -> bool:
        """Whether the text is of many documents, as far as its path tells: a list, a folder, a pattern, records."""
        paths = [self.path] if isinstance(self.path, str) else self.path or []
        folders = any(not Path(path).suffix or set(path) & set("*?[") for path in paths)
        return self.field is not None or len(paths) > 1 or folders

    @property
    def described(self) -> str:
        """The text in a word: a path, the first of several, or the name of a built-in one."""
        if isinstance(self.path, list):
            return listed(self.path, 1)
        return self.path or str(self.builtin)


class Budget(_Strict):
    """What one run may spend on training, and how often it is evaluated on the way."""

    example: ClassVar[str] = "{tokens: 2_000_000} or {seconds: 600}"

    tokens: int | None = Field(
        None, gt=0, le=10**15, description="Training tokens; makes a CPU run repeatable to the bit."
    )
    seconds: float | None = Field(None, gt=0, le=1e9, description="Seconds of training, evaluation not counted.")
    rungs: int = Field(
        8,
        ge=1,
        le=1000,
        description="Equally spaced evaluations, the last one at the end. Those before it read as much of the "
        "validation split as a tenth of the training's work allows.",
    )

    @model_validator(mode="after")
    def _one_currency(self) -> Self:
        if (self.tokens is None) == (self.seconds is None):
            raise ValueError("give either tokens or seconds")
        return self


class Recipe(_Strict):
    """All that one run needs: what `tuner export` writes and `tuner train` reads."""

    corpus: Corpus
    trial: Budget
    parameters: Config = Config()
    threads: int | None = Field(None, ge=1, le=4096, description="CPU threads; the same number gives the same bits.")
    micro_batch: int | None = Field(
        None, ge=1, description="Sequences read at a time, where a whole batch does not fit into memory."
    )
    provenance: dict[str, Any] | None = Field(None, description="Where the configuration comes from; for its readers.")


def resolve_path(corpus: Corpus, folder: Path) -> Corpus:
    """Returns `corpus` with relative paths taken from `folder`, where the file that names them lies."""

    def resolved(path: str) -> str:
        return str(absolute(folder / expanded(Path(path))))

    given = {name: getattr(corpus, name) for name in ("path", "validation", "test")}
    found = {
        name: resolved(value) if isinstance(value, str) else [resolved(one) for one in value]
        for name, value in given.items()
        if value is not None
    }
    return corpus.model_copy(update=found)


def expanded(path: Path) -> Path:
    """Returns `path` with a home folder for the ~ at its start; as it is written if there is none, as shells do."""
    try:
        return path.expanduser()
    except RuntimeError:
        return path


def absolute(path: Path) -> Path:
    """Returns where `path` leads from here, without links; a circle of links leads nowhere and stays as it is."""
    return Path(os.path.realpath(path))

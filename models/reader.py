"""Reads YAML or JSON text into a strict model and back: all problems at once, each with its line and remedy."""

from __future__ import annotations

import difflib
import io
import json
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from types import UnionType
from typing import Annotated, Any, Literal, TypeVar, Union, get_args, get_origin

from pydantic import BaseModel, ValidationError
from ruamel.yaml import YAML
from ruamel.yaml.comments import CommentedMap
from ruamel.yaml.constructor import ConstructorError, RoundTripConstructor
from ruamel.yaml.error import MarkedYAMLError, YAMLError
from ruamel.yaml.scanner import RoundTripScanner, ScannerError

from models.errors import ConfigError

Model = TypeVar("Model", bound=BaseModel)
Place = tuple[str | int, ...]
Problem = tuple[Place, str]
"""Where something is wrong, as keys from the top of the file, and what."""

LARGEST, DEEPEST, MOST_VALUES, LONGEST_NUMBER = 256 * 1024, 64, 200_000, 128
"""Bytes of a file, collections in each other, values with those that aliases stand for, bits of a whole number: with
more it is no file of ours, and takes minutes or all of the memory."""

MOST_TOKENS, MOST_ALIASES, MOST_MERGED = 40_000, 500, 10_000
"""Words and signs of a file, some 9,000 keys with their values; how many of them are aliases; keys that `<<` brings."""


OTHER_NAMES = {
    **dict.fromkeys(("lr", "eta", "step_size", "peak_lr", "max_lr"), "learning_rate"),
    **dict.fromkeys(("n_layers", "num_layers", "n_layer", "depth", "blocks"), "layers"),
    **dict.fromkeys(("hidden", "hidden_dim", "n_embd", "d_model", "dim", "width", "units", "n_hidden"), "hidden_size"),
    **dict.fromkeys(("embedding_dim", "embed_dim", "emb_size"), "embedding_size"),
    **dict.fromkeys(("n_head", "n_heads", "num_heads", "nhead"), "heads"),
    **dict.fromkeys(("batch", "bs", "train_batch_size"), "batch_size"),
    **dict.fromkeys(("block_size", "seq_len", "context_length", "context", "bptt", "max_length"), "sequence_length"),
    **dict.fromkeys(("wd", "l2", "decay"), "weight_decay"),
    **dict.fromkeys(("p_dropout", "dropout_rate", "drop"), "dropout"),
    **dict.fromkeys(("grad_clip", "max_grad_norm", "clip", "gradient_clipping"), "gradient_clip"),
    **dict.fromkeys(("arch", "model", "model_type", "cell", "rnn_type"), "architecture"),
    **dict.fromkeys(("optim", "opt"), "optimizer"),
    **dict.fromkeys(("tied", "tie_weights", "weight_tying"), "tied_embeddings"),
    **dict.fromkeys(("lr_scheduler", "scheduler"), "schedule"),
    **dict.fromkeys(("warmup_steps", "warmup_ratio"), "warmup"),
    **dict.fromkeys(("min_lr", "lr_min"), "final_learning_rate"),
    **dict.fromkeys(("vocab_size", "vocab"), "vocabulary_size"),
    **dict.fromkeys(("dtype", "amp"), "precision"),
    **dict.fromkeys(("bayes", "bayesian", "hyperopt"), "tpe"),
    **dict.fromkeys(("asha", "sha", "halving"), "successive_halving"),
    **dict.fromkeys(("cma", "cma-es"), "cmaes"),
    **dict.fromkeys(("random_search", "randomsearch"), "random"),
    **dict.fromkeys(("grid_search", "gridsearch"), "grid"),
    **dict.fromkeys(("gaussian", "gaussian_process", "botorch"), "gp"),
    **dict.fromkeys(("off", "no", "nop", "false"), "none"),
    **dict.fromkeys(("bpe", "bytepair", "subword"), "byte-pair"),
}
"""What other programs call our keys and values."""


WORDS = {
    "Value error, ": "",
    "Input should be": "should be",
    "a valid integer": "a whole number",
    "a valid number": "a number",
    "a valid boolean": "true or false",
    "a valid list": "a list",
    "a valid string": "text",
    "a valid dictionary": "a mapping",
}
"""What a validator says, and what we say."""


class _Scanner(RoundTripScanner):
    """Refuses what would take long before it is read: a token takes 30 us, brackets and merges the square of that."""

    fetched = aliased = 0

    def fetch_more_tokens(self) -> Any:
        self.fetched += 1
        self._require(
            self.fetched <= MOST_TOKENS, f"more than {MOST_TOKENS:,} words and signs, more than any study has"
        )
        return super().fetch_more_tokens()

    def fetch_alias(self) -> None:
        self.aliased += 1
        self._require(self.aliased <= MOST_ALIASES, f"more than {MOST_ALIASES:,} aliases")
        super().fetch_alias()

    def _require(self, fine: bool, what: str) -> None:
        if not fine:
            raise ScannerError(None, None, what, self.reader.get_mark())

    def fetch_flow_collection_start(self, TokenClass: Any, to_push: str) -> None:
        self._require(self.flow_level < DEEPEST, "nested too deeply")
        super().fetch_flow_collection_start(TokenClass, to_push)


class _Constructor(RoundTripConstructor):
    merged = 0

    def flatten_mapping(self, node: Any) -> Any:
        found = super().flatten_mapping(node)
        self.merged += sum(map(len, found))
        if self.merged > MOST_MERGED:
            raise ConstructorError(None, None, f"merges of more than {MOST_MERGED:,} keys", node.start_mark)
        return found


def read_text(path: Path) -> str:
    """Returns the text of a file a person wrote; raises ConfigError when there is none, or a larger one than any is."""
    try:
        with path.open("rb") as file:
            content = file.read(LARGEST + 1)
        if len(content) > LARGEST:
            raise ConfigError(
                f"{path}: larger than {LARGEST // 1024} KiB, as no study and no export is; give one of those"
            )
        return content.decode("utf-8-sig")
    except FileNotFoundError as error:
        raise ConfigError(f"{path}: no such file") from error
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path}: cannot be read ({error})") from error


def parse(text: str, name: str) -> CommentedMap:
    """Returns the mapping that YAML 1.2 text (JSON is part of it) holds, with its line numbers."""
    yaml = YAML(typ="rt")
    yaml.Scanner, yaml.Constructor = _Scanner, _Constructor
    try:
        document = yaml.load(text)
        _measure(document, {})
    except MarkedYAMLError as error:
        line = f":{error.problem_mark.line + 1}" if error.problem_mark else ""
        raise ConfigError(f"{name}{line}: not valid YAML: {error.problem or error.context}") from error
    except (YAMLError, ValueError, IndexError) as error:  # of the last two are values that belie their tag
        raise ConfigError(f"{name}: not valid YAML: {' '.join(str(error).split())}") from error
    except (KeyError, TypeError, AttributeError, AssertionError) as error:
        raise ConfigError(f"{name}: not valid YAML: a tag or a merge does not fit its value ({error})") from error
    except RecursionError as error:
        raise ConfigError(f"{name}: not valid YAML: nested too deeply") from error
    if not isinstance(document, CommentedMap):
        raise ConfigError(f"{name}: holds no mapping; a file starts with lines such as `name: my-study`")
    return document


def require_schema(document: CommentedMap, name: str, newest: int) -> None:
    """Takes the key `schema` out of a file's mapping; raises ConfigError where it is newer than what is known here.

    A file without it was written by hand, or is an export from before there were versions. In JSON, which has no
    comments, an export begins with its `command`, a hint for its reader that is taken out as well.
    """
    if "schema" not in document:
        return
    document.pop("command", None)
    line, value = _line(document, ("schema",)), plain(document.pop("schema"))
    if type(value) is not int or value < 1:
        raise ConfigError(f"{name}:{line}: schema: should be a whole number from 1 to {newest}, not {_shown(value)}")
    if value > newest:
        raise ConfigError(
            f"{name}:{line}: schema: {_shown(value)} is newer than {newest}, the newest that this version reads; "
            "update with `pip install --upgrade textgen-tuner`, or export the file again with this version"
        )


def plain(value: Any) -> Any:
    """Returns a parsed value as plain dicts, lists, numbers and text."""
    if isinstance(value, dict):
        return {str(key): plain(part) for key, part in value.items()}
    if isinstance(value, list):
        return [plain(part) for part in value]
    for kind in (bool, int, float, str):
        if isinstance(value, kind):
            return kind(value)
    return value


def validate(
    document: CommentedMap,
    name: str,
    model: type[Model],
    more: Callable[[dict[str, Any]], Iterable[Problem]] = lambda values: (),
    advice: Callable[[Place, Iterable[str]], str] = lambda place, known: nearest(str(place[-1]), known),
) -> Model:
    """Returns `document` as a `model`; raises one ConfigError that lists all problems, those of `more` too.

    `advice` follows on an unknown key: it is called with its place and the keys that are known there.
    """
    values = plain(document)
    problems = list(more(values))
    try:
        result = model.model_validate(values)
    except ValidationError as error:
        problems += [(_place(one["loc"]), _message(one, model, advice)) for one in error.errors()]
    if problems:
        raise ConfigError("\n".join(sorted_lines(document, name, problems)))
    return result


def sorted_lines(document: CommentedMap, name: str, problems: Iterable[Problem]) -> list[str]:
    """Returns one line a problem, `file:line: key: what is wrong`, in the order of the file."""
    located = sorted({(_line(document, place), ".".join(map(str, place)), what) for place, what in problems})
    return [f"{name}:{line}: {place}{': ' if place else ''}{what}" for line, place, what in located]


def nearest(word: str, known: Iterable[str]) -> str:
    """Returns `; did you mean X?`, or the whole choice when nothing is near."""
    known = sorted(known)
    near = [name for name in [OTHER_NAMES.get(word.lower(), "")] if name in known]
    near += difflib.get_close_matches(word, known, n=1)
    return f"; did you mean {near[0]}?" if near else f"; known: {', '.join(known)}"


def dump(values: dict[str, Any], header: str = "") -> str:
    """Returns values as YAML, under a header of comment lines."""
    yaml = YAML()
    yaml.width = 120
    yaml.representer.add_representer(
        type(None), lambda writer, _: writer.represent_scalar("tag:yaml.org,2002:null", "null")
    )
    text = io.StringIO()
    yaml.dump(json.loads(json.dumps(values)), text)
    return "".join(f"# {line}".rstrip() + "\n" for line in header.splitlines()) + text.getvalue()


def _measure(value: Any, known: dict[int, tuple[int, int]]) -> tuple[int, int]:
    """Returns how many values there are inside, and how deep; raises ValueError where `plain` would not end well.

    What aliases stand for is looked at once, and counted each time. `known` is by identity.
    """
    if isinstance(value, str):
        _require_text(value)
        return 1 + len(value) // 64, 0  # `plain` copies a long one each time
    if isinstance(value, int) and value.bit_length() > LONGEST_NUMBER:
        raise ValueError(f"a whole number of more than {LONGEST_NUMBER} bits")
    if not isinstance(value, dict | list):
        return 1, 0
    if id(value) not in known:
        known[id(value)] = MOST_VALUES, DEEPEST  # an alias in here that stands for it would have no end
        parts = [*value, *value.values()] if isinstance(value, dict) else value
        inside = [_measure(part, known) for part in parts]
        known[id(value)] = 1 + sum(count for count, _ in inside), 1 + max((depth for _, depth in inside), default=0)
        count, depth = known[id(value)]
        if depth > DEEPEST:
            raise ValueError("nested too deeply")
        if count > MOST_VALUES:
            raise ValueError(f"its aliases stand for more than {MOST_VALUES:,} values")
    return known[id(value)]


def _require_text(text: str) -> None:
    """Raises ValueError where text holds what no file name, no database and no terminal takes."""
    for character in text:
        if character == "\0" or "\ud800" <= character <= "\udfff":
            raise ValueError(f"\\u{ord(character):04x} in a text, which is no character")


def _line(document: Any, place: Place) -> int:
    line = 1
    for key in place:
        try:
            line = (document.lc.item(key) if isinstance(key, int) else document.lc.key(key))[0] + 1
            document = document[key]
        except (KeyError, IndexError, TypeError, AttributeError):
            break
    return line


def _place(location: Iterable[str | int]) -> Place:
    return tuple(part for part in location)


def _message(error: Any, model: type[BaseModel], advice: Callable[[Place, Iterable[str]], str]) -> str:
    place = _place(error["loc"])
    if error["type"] == "extra_forbidden":
        return f"unknown key{advice(place, _model_at(model, place[:-1]).model_fields)}"
    if error["type"] == "missing":
        return f"missing{_example(model, place)}"
    if error["type"] == "model_type":
        return f"should be a mapping, not {_shown(error['input'])}{_example(model, place)}"
    message = in_words(str(error["msg"]))
    return f"{message}, not {_shown(error['input'])}" if message.startswith("should be") else message


def in_words(message: str) -> str:
    """Returns a validator's message as it follows the name of a key."""
    for theirs, ours in WORDS.items():
        message = message.replace(theirs, ours)
    return message


def _example(model: type[BaseModel], place: Place) -> str:
    """Says what a section at this place could look like; nothing for other keys."""
    section = _model_at(model, place)
    example = None if section is _model_at(model, place[:-1]) else getattr(section, "example", None)
    return f"; for example {example}" if example else ""


def _model_at(model: type[BaseModel], place: Place) -> type[BaseModel]:
    for key in place:
        field = model.model_fields.get(str(key))
        model = (None if field is None else model_in(field.annotation)) or model
    return model


def model_in(annotation: Any) -> type[BaseModel] | None:
    """Returns the model among the types of a field."""
    kinds = kinds_of(annotation)
    return next((kind for kind in kinds if isinstance(kind, type) and issubclass(kind, BaseModel)), None)


def kinds_of(annotation: Any) -> Iterator[Any]:
    """The types of a field, and the texts of its literals."""
    if get_origin(annotation) in (Union, UnionType, Annotated):
        for part in get_args(annotation):
            yield from kinds_of(part)
    elif get_origin(annotation) is Literal:
        yield from get_args(annotation)
    else:
        yield annotation


def _shown(value: Any) -> str:
    text = json.dumps(value, default=str)
    return text if len(text) <= 60 else text[:57] + "..."

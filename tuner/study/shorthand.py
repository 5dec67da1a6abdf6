"""Ranges in the short forms and the words that people bring along: written out, or what to write instead."""

from __future__ import annotations

from typing import Any

from ruamel.yaml.comments import CommentedMap

from models.config import Config
from models.shorthand import meant, parameter_meant

ENDS = ("low", "high", "step")

TYPES = {"float": float, "int": int}

FOREIGN = {
    **dict.fromkeys(("min", "lower", "from", "start"), "low"),
    **dict.fromkeys(("max", "upper", "to", "stop", "end"), "high"),
    **dict.fromkeys(("values", "options", "categories", "value", "grid"), "choices"),
    **dict.fromkeys(("log_scale", "logarithmic"), "log"),
    **dict.fromkeys(("q", "quantum", "resolution"), "step"),
}
"""What other programs call the keys of a range."""


def write_out_ranges(parameters: dict[str, Any]) -> None:
    """Writes out, in place, what the `parameters` of a study say in short; those of a custom class as well."""
    for name, value in list(parameters.items()):
        if name == "own" and isinstance(value, dict):
            write_out_ranges(value)
            continue
        if isinstance(value, list) and not is_ambiguous(name, value):
            parameters[name] = CommentedMap({"type": "categorical", "choices": value})
        if isinstance(parameters[name], dict):
            _write_out(name, parameters[name])
        else:
            parameters[name] = parameter_meant(name, parameters[name])


def is_ambiguous(name: str, value: list[Any]) -> bool:
    """Whether a list could be the two ends of a range as well as two choices."""
    field = Config.model_fields.get(name)
    whole = field is not None and isinstance(meant("1", field.annotation), int)
    return len(value) == 2 and all(map(_is_number, value)) and value[0] < value[1] and not whole


def _write_out(name: str, given: dict[str, Any]) -> None:
    if isinstance(given.get("type"), str):
        given["type"] = given["type"].lower()
    elif "type" not in given and "choices" in given:
        given["type"] = "categorical"
    elif "type" not in given and {"low", "high"} <= set(given):
        kind = _kind(name, given["low"], given["high"])
        if kind is not None:
            given["type"] = kind
    for end in ENDS:
        if end in given:
            given[end] = meant(given[end], TYPES.get(str(given.get("type"))))
    if "log" in given:
        given["log"] = meant(given["log"], bool)
    if isinstance(given.get("when"), dict):
        write_out_values(given["when"])
    if isinstance(given.get("choices"), list):
        given["choices"] = [parameter_meant(name, choice) for choice in given["choices"]]


def write_out_values(given: dict[str, Any]) -> None:
    """Writes out, in place, values of parameters, or lists of them."""
    for name, value in list(given.items()):
        listed = isinstance(value, list)
        given[name] = [parameter_meant(name, one) for one in value] if listed else parameter_meant(name, value)


def instead(name: str, value: Any) -> str | None:
    """Returns what to write for a range in other words, or for a list of two numbers; None where that is unknown."""
    if isinstance(value, list):
        if not is_ambiguous(name, value):
            return None
        low, high = value
        return f"{_choices(value)} or {_range(name, low, high, _spans(low, high))}"
    words = {FOREIGN.get(str(key).lower(), str(key)): part for key, part in value.items()}
    kind = str(value.get("type", value.get("distribution", "")))
    if isinstance(words.get("choices"), list):
        return _choices(words["choices"])
    low, high = words.get("low", ""), words.get("high", "")
    if not (_is_number(low) and _is_number(high) and low < high):
        return None
    log = ("log" in kind.lower() or words.get("log") is True) and low > 0
    return _range(name, low, high, log, None if log else words.get("step"))


def _range(name: str, low: Any, high: Any, log: bool, step: Any = None) -> str:
    more = ", log: true" if log else "" if step is None else f", step: {step}"
    return f"{{type: {_kind(name, low, high) or 'float'}, low: {low}, high: {high}{more}}}"


def _choices(values: list[Any]) -> str:
    return f"{{type: categorical, choices: [{', '.join(map(str, values))}]}}"


def _kind(name: str, low: Any, high: Any) -> str | None:
    """The type of a range by its parameter, or of a custom class's by its ends."""
    field = Config.model_fields.get(name)
    if field is None:
        both_whole = isinstance(low, int) and isinstance(high, int)
        return "int" if both_whole else "float" if _is_number(low) and _is_number(high) else None
    return "int" if meant("1", field.annotation) == 1 else "float"


def _spans(low: float, high: float) -> bool:
    """Whether two numbers are an order of magnitude apart."""
    return low > 0 and high / low >= 10


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)

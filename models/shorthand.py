"""What a file may say in short or in other words: written out where it is clear, and advice where it is not."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from typing import Any

from pydantic import BaseModel
from ruamel.yaml.comments import CommentedMap

from models.config import ARCHITECTURES, Config, Corpus
from models.reader import Place, kinds_of, model_in, nearest

UNITS = {"": 1, "k": 10**3, "M": 10**6, "G": 10**9}

BOOLEANS = {"yes": True, "on": True, "true": True, "no": False, "off": False, "false": False}

INSTEAD = {
    **dict.fromkeys(("params", "hyperparameters", "search_space", "space", "config", "model"), "parameters"),
    **dict.fromkeys(("data", "dataset", "text", "texts", "file", "path"), "corpus"),
    **dict.fromkeys(("n_trials", "num_trials", "max_trials", "num_samples", "trials"), "budget: {trials: ...}"),
    **dict.fromkeys(("hours", "time", "max_time", "time_budget_s"), "budget: {hours: ...}"),
    **dict.fromkeys(("epochs", "num_epochs", "max_epochs"), "trial: {tokens: ...}, those of all epochs together"),
    **dict.fromkeys(("steps", "max_steps", "max_iters", "tokens"), "trial: {tokens: ...}"),
    **dict.fromkeys(("seconds", "max_seconds"), "trial: {seconds: ...}"),
    **dict.fromkeys(("rungs", "evaluations", "eval_interval"), "trial: {rungs: ...}"),
    **dict.fromkeys(("metric", "objectives", "loss"), "objective"),
    **dict.fromkeys(("method", "search_alg", "algorithm"), "sampler"),
    **dict.fromkeys(("scheduler", "early_terminate", "early_stopping"), "pruner"),
}
"""What stands here for keys that files of other tools have at their top."""


def whole(value: Any) -> Any:
    """Returns the whole number that a value clearly means, as 1e6, "1,000,000" and 2M do; else the value itself."""
    if isinstance(value, float) and value.is_integer() and abs(value) < 2**53:
        return int(value)
    if isinstance(value, str) and (found := re.fullmatch(r"(\d{1,3}(?:[,_]\d{3})+|\d+)([kMG]?)", value.strip())):
        return int(re.sub("[,_]", "", found[1])) * UNITS[found[2]]
    return value


def meant(value: Any, annotation: Any, names: Iterable[str] = ()) -> Any:
    """Returns the value of a field of this type that `value` clearly means; else `value` itself.

    `names` are texts that the field knows, beside those of its type.
    """
    kinds = list(kinds_of(annotation))
    known = {_folded(name): name for name in (*(kind for kind in kinds if isinstance(kind, str)), *names)}
    if isinstance(value, str) and _folded(value) in known:
        return known[_folded(value)]
    if bool in kinds and isinstance(value, str):
        return BOOLEANS.get(value.lower(), value)
    return whole(value) if int in kinds and not {float, str} & set(kinds) else value


def parameter_meant(name: str, value: Any) -> Any:
    """Returns the value of a hyperparameter that `value` clearly means; else `value` itself."""
    field = Config.model_fields.get(name)
    known = ARCHITECTURES if name == "architecture" else ()
    return value if field is None else meant(value, field.annotation, known)


def write_out(document: dict[str, Any], model: type[BaseModel]) -> None:
    """Writes out, in place, what a file of a recipe or a study says in short."""
    sections = {"corpus": corpus_meant, "trial": _counted("tokens"), "budget": _counted("trials")}
    for name, short in sections.items():
        if name in document and not isinstance(document[name], dict):
            written = short(document[name])
            if written is not None:
                document[name] = CommentedMap(written)
    _write_out(document, model)


def _write_out(document: Any, model: type[BaseModel]) -> None:
    for name, value in list(document.items()):
        field = model.model_fields.get(str(name))
        inside = None if field is None else model_in(field.annotation)
        if inside is not None and isinstance(value, dict):
            _write_out(value, inside)
        elif model is Config:
            document[name] = parameter_meant(str(name), value)
        elif field is not None:
            document[name] = meant(value, field.annotation)


def corpus_meant(value: Any) -> dict[str, Any] | None:
    """Returns the section that a path, a list of paths or of {path, weight}, or a built-in text's name means."""
    if isinstance(value, list) and all(isinstance(one, str) for one in value):
        return {"path": value}
    if isinstance(value, list) and value and all(map(_is_weighted, value)):
        return {"path": [one["path"] for one in value], "weights": [one["weight"] for one in value]}
    if not isinstance(value, str):
        return None
    return {"builtin" if value in kinds_of(Corpus.model_fields["builtin"].annotation) else "path": value}


def _is_weighted(one: Any) -> bool:
    return isinstance(one, dict) and set(one) == {"path", "weight"}


def _counted(name: str) -> Callable[[Any], dict[str, int] | None]:
    def written(value: Any) -> dict[str, int] | None:
        number = whole(value)
        return {name: number} if isinstance(number, int) and not isinstance(number, bool) else None

    return written


def _folded(name: str) -> str:
    return re.sub("[-_ ]", "", name).lower()


def advice(place: Place, known: Iterable[str]) -> str:
    """Says what to write instead of the last key of a place, which is unknown there; `known` are those that are not."""
    key, hint = str(place[-1]), nearest(str(place[-1]), known)
    if len(place) == 1 and key.lower() in INSTEAD:
        return f"; write {INSTEAD[key.lower()]}"
    if len(place) == 1 and not hint.endswith("?"):
        parameter = "" if key in Config.model_fields else nearest(key, Config.model_fields)
        return f"; it belongs under parameters{parameter}" if not parameter or parameter.endswith("?") else hint
    if place[0] == "trial" and "trial" in INSTEAD.get(key.lower(), ""):
        return f"; write {INSTEAD[key.lower()]}"
    return hint

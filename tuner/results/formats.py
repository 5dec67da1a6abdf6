"""Formats of an export: YAML or JSON for `tuner train`, flags or variables for other training programs."""

from __future__ import annotations

import json
import shlex
from typing import Any

from models.config import SCHEMA, Recipe, flat
from models.reader import dump

FORMATS = {"yaml": ".yaml", "json": ".json", "flags": ".flags", "env": ".env"}
"""The notations and how the names of their files end."""

OURS = ("yaml", "json")
"""The notations that hold everything, and that `tuner train` reads."""


def render(recipe: Recipe, format_name: str, header: str, command: str) -> str:
    """Returns a recipe in one of the FORMATS, under a header of comment lines where it can have one.

    `command` is what trains it. Values without one (`none`) are left out of flags and variables.
    """
    if format_name == "yaml":
        return dump(_values(recipe), header)
    if format_name == "json":
        return json.dumps({"schema": SCHEMA, "command": command} | _values(recipe), indent=1) + "\n"
    settings = {name: _text(value) for name, value in _settings(recipe).items() if value is not None}
    if format_name == "flags":
        return shlex.join(word for name, value in settings.items() for word in (_flag(name), value)) + "\n"
    lines = [f"{name.upper()}={shlex.quote(value)}" for name, value in settings.items()]
    return "".join(f"{line}\n" for line in (*(f"# {line}" for line in header.splitlines()), *lines))


def json_schema() -> str:
    """Returns the JSON schema of an export, which the package ships as `tuner/results/export.schema.json`."""
    schema = Recipe.model_json_schema()
    version = {"const": SCHEMA, "description": "The version of this file's format.", "title": "Schema"}
    command = {"type": "string", "description": "The command that trains it.", "title": "Command"}
    schema["properties"] = {"schema": version, "command": command, **schema["properties"]}
    return json.dumps({"$schema": "https://json-schema.org/draft/2020-12/schema", **schema}, indent=1) + "\n"


def _values(recipe: Recipe) -> dict[str, Any]:
    """The whole recipe; of its parameters also those that have no value, so that no default is needed to read it."""
    values = recipe.model_dump(mode="json", exclude_none=True)
    return {"schema": SCHEMA} | values | {"parameters": recipe.parameters.model_dump(mode="json")}


def _settings(recipe: Recipe) -> dict[str, Any]:
    """What a training needs beside its text."""
    budget = recipe.trial.model_dump(include={"tokens", "seconds"})
    parameters = {
        name.replace(".", "_"): value for name, value in flat(recipe.parameters.model_dump(mode="json")).items()
    }
    return {**parameters, **budget, "threads": recipe.threads}


def _flag(name: str) -> str:
    return f"--{name.replace('_', '-')}"


def _text(value: bool | float | str) -> str:
    return str(value).lower() if isinstance(value, bool) else str(value)

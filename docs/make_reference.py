"""Makes the generated parts of the documents from the code: what stands between cog's marks.

python docs/make_reference.py            writes them again
python docs/make_reference.py --check    only says which are out of date
"""

from __future__ import annotations

import ast
import inspect
import re
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import click
import optuna
from cogapp import Cog
from make_package_graph import diagram

from models.config import DECODING, Config
from tuner.cli import commands as tuner_commands
from tuner.study.definition import FREE, MOVED, Study
from tuner.study.samplers import OURS, PRUNERS, SAMPLERS, pruner_defaults
from tuner.study.space import Categorical, Float, Int

HERE = Path(__file__).parent
DOCUMENTS = [HERE / name for name in ("study-file.md", "commands.md", "source-map.md", "architecture.md")]
Schema = dict[str, Any]

SHARED = 3
"""Commands from which on an option that they have in common is described once for all."""

# What an option's value must be made of so that a file can hold it, and not only a program.
WRITABLE = {"bool", "int", "float", "str", "None"}

NAMED = {"sampler", "pruner"}


def main(arguments: list[str], documents: Sequence[Path] = DOCUMENTS) -> int:
    """Writes the generated parts again; with `--check` only names the documents whose parts are not up to date."""
    stale = {path: text for path in documents if (text := generated(path)) != path.read_text(encoding="utf-8")}
    if "--check" in arguments:
        for path in stale:
            print(f"{path.relative_to(path.parents[1])} is out of date: run python docs/make_reference.py")
        return 1 if stale else 0
    for path, text in stale.items():
        path.write_text(text, encoding="utf-8")
    return 0


def generated(path: Path) -> str:
    """Returns a document with its parts between cog's marks made again from the code."""
    cog = Cog()
    cog.options.print_output = True
    cog.options.defines = {one.__name__: one for one in PARTS}
    return str(cog.process_string(path.read_text(encoding="utf-8"), str(path)))


def _table(head: list[str], rows: list[list[str]]) -> str:
    lines = [head, ["---"] * len(head), *([cell.replace("|", "\\|") for cell in row] for row in rows)]
    return "\n".join("|" + "".join(f" {cell} |" if cell else " |" for cell in line) for line in lines)


# The study file.


def keys() -> str:
    """The table of a study's keys; those with a section of their own lead there."""
    schema = Study.model_json_schema()
    headings = set(re.findall("^## (.+)$", (HERE / "study-file.md").read_text(encoding="utf-8"), re.MULTILINE))
    rows = []
    for name, field in schema["properties"].items():
        key = f"[`{name}`](#{name})" if name in headings else f"`{name}`"
        text = field.get("description") or _definition(schema, name)["description"]  # pydantic writes the same one once
        form = "name or mapping" if name in NAMED else _shape(field)
        default = "needed" if name in schema["required"] else _default(field)
        rows.append([key, text, form, "the file's name" if name == "name" else default])
    return _table(["key", "what it is", "form", "default"], rows)


def _definition(schema: Schema, name: str) -> Schema:
    found: Schema = schema["$defs"][schema["properties"][name]["$ref"].rpartition("/")[2]]
    return found


def moved() -> str:
    """Which keys may also stand elsewhere."""
    places = [f"`{_dotted(there)}` is `{_dotted(home)}`" for there, home in MOVED.items()]
    return f"Some keys may also stand where they are often expected: {', '.join(places)}."


def free() -> str:
    """Which keys may change while a study goes on."""
    return f"While a study goes on, {_listed(FREE)} may change."


def decoding() -> str:
    """Which parameters are chosen after training."""
    return f"It applies to {_listed(DECODING)} where they are searched ([how](decoding.md))."


def section(name: str) -> str:
    """The table of the keys of a section."""
    rows = [
        [f"`{name}`", field["description"], _shape(field), _default(field)]
        for name, field in _definition(Study.model_json_schema(), name)["properties"].items()
    ]
    return _table(["key", "what it is", "form", "default"], rows)


def samplers() -> str:
    """The table of the samplers with their options."""
    return _choices("samplers", SAMPLERS, {})


def pruners() -> str:
    """The table of the pruners with their options."""
    return _choices("pruners", PRUNERS, pruner_defaults(rungs=0))


def _choices(module: str, names: dict[str, str], ours: dict[str, dict[str, Any]]) -> str:
    pages = f"https://optuna.readthedocs.io/en/stable/reference/{module}/generated/optuna.{module}"
    rows = [
        [f"[`{name}`]({pages}.{class_name}.html)", ", ".join(_options_of(kind, ours.get(name, {})))]
        for name, class_name in names.items()
        for kind in [getattr(getattr(optuna, module), class_name)]
    ]
    return _table(["type", f"options and their defaults in Optuna {optuna.__version__}"], rows)


def _options_of(kind: Any, ours: dict[str, Any]) -> list[str]:
    """The options that a file can hold and that do more than warn, each with its default."""
    known = [one for one in inspect.signature(kind.__init__).parameters.values() if one.name != "self"]
    named = [one for one in known if one.kind not in (one.VAR_POSITIONAL, one.VAR_KEYWORD) and one.name not in OURS]
    sound = [one for one in named if _is_writable(one) and not _is_deprecated(kind, one.name)]
    wrapped = [one for one in known if one.name in OURS & ours.keys()]
    return [_option(one, ours) for one in [*wrapped, *sound] if not one.name.startswith("warn_")]


def _option(one: inspect.Parameter, ours: dict[str, Any]) -> str:
    if one.name == "max_resource":
        return f"`{one.name}` **the number of rungs**"
    if ours.get(one.name, one.default) != one.default:
        return f"`{one.name}` **{_plain(ours[one.name])}**"
    return f"`{one.name}` {_plain(one.default)}"


def _is_writable(one: inspect.Parameter) -> bool:
    annotation = one.annotation if isinstance(one.annotation, str) else one.annotation.__name__
    return {word.strip() for word in annotation.split("|")} <= WRITABLE


def _is_deprecated(kind: Any, name: str) -> bool:
    return re.search(rf"``{name}``\s+argument\s+will\s+be\s+removed", kind.__doc__ or "") is not None


def kinds() -> str:
    """The three kinds of ranges, with the keys of each."""
    rows = []
    for kind in (Float, Int, Categorical):
        schema = kind.model_json_schema()
        fields = {name: field for name, field in schema["properties"].items() if name != "type"}
        for name, field in sorted(fields.items(), key=lambda pair: pair[0] == "when"):
            default = "needed" if name in schema["required"] else "" if name == "when" else _default(field)
            rows.append([f"`{schema['properties']['type']['const']}`", f"`{name}`", field["description"], default])
    return _table(["type", "key", "what it is", "default"], rows)


def parameters(first: str, before: str | None = None) -> str:
    """The table of the parameters from one on, in the order of `Config`, up to the one before another."""
    rows = {
        name: [f"`{name}`", field["description"], _shape(field), field["unit"], f"`{_plain(field['default'])}`"]
        for name, field in Config.model_json_schema()["properties"].items()
    }
    names = list(rows)
    chosen = names[names.index(first) : names.index(before) if before else None]
    return _table(["parameter", "what it is", "range", "unit", "default"], [rows[name] for name in chosen])


def _shape(field: Schema) -> str:
    """What a value may be, in words."""
    forms = [one for one in field.get("anyOf", [field]) if one.get("type") != "null"]
    words = [_form(one) for one in forms]
    nullable = len(forms) < len(field.get("anyOf", [field]))
    return " or ".join([*words, *(["null"] if nullable else [])])


def _form(schema: Schema) -> str:
    if "enum" in schema:
        return ", ".join(f"`{value}`" for value in schema["enum"])
    if "$ref" in schema:
        return "mapping"
    kinds = {
        "integer": "whole number",
        "number": "number",
        "boolean": "`true`, `false`",
        "string": "text",
        "array": "list",
        "object": "mapping",
    }
    return " ".join([kinds[schema["type"]], *_bounds(schema)])


def _bounds(schema: Schema) -> Iterator[str]:
    at_least, above = schema.get("minimum"), schema.get("exclusiveMinimum", schema.get("gt"))
    at_most, below = schema.get("maximum"), schema.get("exclusiveMaximum")
    if at_least is not None:
        yield f"from {_number(at_least)}"
    if above is not None:
        yield f"above {_number(above)}"
    if at_most is not None:
        yield f"to {_number(at_most)}"
    if below is not None:
        yield f"to below {_number(below)}"


def _number(value: float) -> str:
    if value >= 2**53:
        power = int(value).bit_length()
        return f"2^{power} - 1" if value == 2**power - 1 else f"2^{power - 1}"
    return f"{value:,g}" if value < 10**5 else f"{value:,.0f}"


def _default(field: Schema) -> str:
    default = field["default"]
    if isinstance(default, dict):
        default = {name: value for name, value in default.items() if value is not None}
    return "" if default in (None, [], {}) else f"`{_plain(default)}`"


def _plain(value: Any) -> str:
    """A value as it is written in a study file."""
    if isinstance(value, dict):
        return "{" + ", ".join(f"{name}: {_plain(one)}" for name, one in value.items()) + "}"
    if value is None or isinstance(value, bool):
        return {None: "null", True: "true", False: "false"}[value]
    return str(value)


def _dotted(place: tuple[str, ...]) -> str:
    return ".".join(place)


def _listed(names: tuple[str, ...]) -> str:
    quoted = [f"`{name}`" for name in names]
    return ", ".join(quoted[:-1]) + " and " + quoted[-1]


# The commands.


def contents() -> str:
    """The table of the commands."""
    return _table(["command", "what it does"], [_entry(name, command) for name, command in EVERY])


def environment() -> str:
    """The table of the environment's variables."""
    return _table(["variable", "option", "what it does"], sorted(_environment(EVERY)))


def shared() -> str:
    """The table of the options that several commands have."""
    return _parameters(list(_shared([command for _, command in EVERY]).values()))


def commands() -> str:
    """A section for each command."""
    common = _shared([command for _, command in EVERY])
    return "\n\n".join(_command(name, command, common) for name, command in EVERY)


def _walk(name: str, command: click.Command) -> Iterator[tuple[str, click.Command]]:
    """Yields every command that a person may call, with all the words of its name."""
    if not isinstance(command, click.Group):
        yield name, command
        return
    for part, one in sorted(command.commands.items()):
        if not one.hidden:
            yield from _walk(f"{name} {part}", one)


def _shared(every: list[click.Command]) -> dict[str, click.Option]:
    """The options that are the same in several commands, by the line that describes them."""
    seen: dict[str, list[click.Option]] = {}
    for command in every:
        for option in _options_in(command):
            seen.setdefault(" | ".join(_parameter(option)), []).append(option)
    return {line: options[0] for line, options in seen.items() if len(options) >= SHARED}


def _options_in(command: click.Command) -> list[click.Option]:
    return [one for one in command.params if isinstance(one, click.Option) and not one.hidden]


def _entry(name: str, command: click.Command) -> list[str]:
    return [f"[`{name}`](#{_anchor(name)})", (command.help or "").split("\n\n")[0].replace("\n", " ")]


def _anchor(heading: str) -> str:
    return re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-")


def _command(name: str, command: click.Command, shared: dict[str, click.Option]) -> str:
    usage = " ".join([name, *_usage(command)])
    own = [one for one in _options_in(command) if " | ".join(_parameter(one)) not in shared]
    others = [one for one in _options_in(command) if " | ".join(_parameter(one)) in shared]
    parts = [f"## {name}", f"```\n{usage}\n```", inspect.cleandoc(command.help or "")]
    parts += [_parameters(own)] if own else []
    named = ", ".join(f"`{_longest(one)}`" for one in others)
    parts += (
        [f"{'Also' if own else 'Options'} [of several commands](#options-of-several-commands): {named}."]
        if others
        else []
    )
    return "\n\n".join(parts)


def _usage(command: click.Command) -> Iterator[str]:
    context = click.Context(command)
    options = [f"{_longest(one)} {one.make_metavar(context)}" for one in _options_in(command) if one.required]
    yield from options
    yield from ["[OPTIONS]"] if len(_options_in(command)) > len(options) else []
    yield from (one.make_metavar(context) for one in command.params if isinstance(one, click.Argument))


def _parameters(options: list[click.Option]) -> str:
    return _table(["option", "value", "default", "what it does"], [_parameter(one) for one in options])


def _parameter(option: click.Option) -> list[str]:
    names = ", ".join(f"`{name}`" for name in [*option.opts, *option.secondary_opts])
    said = re.search(r"\s*\[default: (.+?)\]", option.help or "")
    text = re.sub(r"\s*\[(default|env): .+?\]", "", option.help or "")
    return [names, "" if option.is_flag else _value(option), _quoted(said[1]) if said else _default_of(option), text]


def _quoted(default: str) -> str:
    """A default as the help has it: a value, or words."""
    return default if " " in default else f"`{default}`"


def _value(option: click.Option) -> str:
    if option.metavar:
        return option.metavar
    kind = option.type
    if isinstance(kind, click.Choice):
        return ", ".join(map(str, kind.choices))
    if isinstance(kind, click.IntRange | click.FloatRange):
        bounds = {"minimum": "exclusiveMinimum"} if kind.min_open else {"minimum": "minimum"}
        form = {bounds["minimum"]: kind.min, "maximum": kind.max}
        words = _bounds({name: bound for name, bound in form.items() if bound is not None})
        return " ".join(["whole number" if isinstance(kind, click.IntRange) else "number", *words])
    return {"integer": "whole number", "float": "number", "path": "path"}.get(kind.name, "text")


def _default_of(option: click.Option) -> str:
    needed, default = option.required, option.to_info_dict()["default"]
    if needed:
        return "needed"
    return "" if option.is_flag or default in (None, "", [], ()) or callable(default) else f"`{default}`"


def _longest(option: click.Option) -> str:
    return max(option.opts, key=len)


def _environment(every: list[tuple[str, click.Command]]) -> Iterator[list[str]]:
    seen = set()
    for _, command in every:
        for option in _options_in(command):
            if isinstance(option.envvar, str) and option.envvar not in seen:
                seen.add(option.envvar)
                yield [f"`{option.envvar}`", f"`{_longest(option)}`", _parameter(option)[3]]


# The source map.


def packages(top: str) -> str:
    """A section for each package inside of another one: its first line, what others may import, its modules."""
    folder = HERE.parent / top
    parts = [_modules(folder)]
    for path in sorted(folder.glob("*/__init__.py")):
        offered = ", ".join(f"`{name}`" for name in _offered(path))
        parts += [f"### {top}.{path.parent.name}", _first_line(path)]
        parts += [f"Other packages import {offered}.", _modules(path.parent)]
    return "\n\n".join(parts)


def _modules(folder: Path) -> str:
    paths = [path for path in sorted(folder.glob("*.py")) if path.name != "__init__.py"]
    place = folder.relative_to(HERE.parent)
    return _table(
        ["module", "what it is for"],
        [[f"[`{path.name}`](../{place}/{path.name})", _first_line(path)] for path in paths],
    )


def _offered(path: Path) -> list[str]:
    """The modules that a package's `__all__` lists."""
    (listed,) = re.findall(r"^__all__ = (\[.*?\])", path.read_text(encoding="utf-8"), re.DOTALL | re.MULTILINE)
    return list(ast.literal_eval(listed))


def _first_line(path: Path) -> str:
    return (ast.get_docstring(ast.parse(path.read_text(encoding="utf-8"))) or "").split("\n")[0]


EVERY = list(_walk("tuner", tuner_commands))
PARTS = (
    *(keys, moved, free, section, samplers, pruners, decoding, kinds, parameters),
    *(contents, environment, shared, commands),
    *(packages, diagram),
)
"""What documents may call between cog's marks."""

if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

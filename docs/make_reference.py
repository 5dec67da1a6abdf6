"""Writes the references from the code: study-file.md, commands.md and rooms.md.

python docs/make_reference.py
"""

from __future__ import annotations

import ast
import inspect
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import click
import optuna

from models.config import DECODING, Config
from tuner.cli import commands as tuner_commands
from tuner.study.definition import FREE, MOVED, Study
from tuner.study.samplers import OURS, PRUNERS, SAMPLERS, pruner_defaults
from tuner.study.space import Categorical, Float, Int

HERE = Path(__file__).parent
Schema = dict[str, Any]

SHARED = 3
"""Commands from which on an option that they have in common is described once for all."""

# What an option's value must be made of so that a file can hold it, and not only a program.
WRITABLE = {"bool", "int", "float", "str", "None"}

SAMPLERS_FOR = {
    "tpe": "Learns which values good trials had. For nearly everything: pruned trials, limits, two objectives.",
    "gp": "Models the objective by a Gaussian process. For few numeric parameters and few, long trials; it learns from "
    "completed trials alone, so not from pruned ones or limits.",
    "random": "Learns nothing. For a baseline, and for the start of anything.",
    "grid": "Tries every combination, each once; the budget is at most their number. A `float` range needs a `step`.",
    "qmc": "Random, but evenly spread. For a first look at a space.",
    "cmaes": "An evolution strategy for numbers alone: choices are drawn at random. One objective only.",
    "nsga2": "A genetic search in generations of `population_size`. For two objectives and hundreds of trials; it "
    "learns from limits.",
}
PRUNERS_FOR = {
    "successive_halving": "Lets the best 1 of `reduction_factor` go on at rungs 1, 3, 9, ... (with a factor of 3). "
    "Decides at once, so parallel workers never wait.",
    "hyperband": "Several successive halvings that begin at different rungs, for when early rungs may mislead. Needs "
    "more trials: some are hardly pruned.",
    "median": "Stops a trial that is worse than the median of completed ones at the same rung, after "
    "`n_startup_trials` were completed.",
    "percentile": "The same with another part than the better half: `percentile: 25.0` lets a quarter go on.",
    "wilcoxon": "Compares a trial's rungs with those of the best trial by a signed-rank test. One objective only.",
    "patient": "Asks another pruner (`wrapped_pruner`, a name or a mapping) only when a trial has stopped improving "
    "for `patience` rungs.",
    "threshold": "Stops a trial that is above `upper` or below `lower`, whatever others did; give one of them.",
    "none": "Stops nothing.",
}
NAMED = {"sampler", "pruner"}
KNOBS = {
    "tokenizer": "Text to tokens",
    "architecture": "Network",
    "batch_size": "Training",
    "temperature": "Writing text",
}
"""The first knob of each table, in the order of `Config`, and the table's heading."""

STUDY_FILE = """\
# The study file

Every key, with its range and its default. This page is written from the code by `python docs/make_reference.py`, and a
test compares the two. [studies/reference.yaml](../studies/reference.yaml) shows all keys at work in one file that runs;
[the first study](first-study.md) shows how to get there from a text. What a file that `tuner export` wrote has besides:
[the export](export.md#the-file). A class of your own as `architecture`: [your own generator](own-generator.md).

A study file says which text, what may vary, and what may be spent:

```yaml
name: my-study
corpus: {path: my-text.txt}
trial: {tokens: 2_000_000}                          # what one full trial may spend
budget: {trials: 100, hours: 2}                     # what the study may spend
parameters:
  architecture: {type: categorical, choices: [lstm, gru, transformer]}
  learning_rate: {type: float, low: 1e-4, high: 1e-1, log: true}
  hidden_size: {type: int, low: 64, high: 512, step: 64}
  heads: {type: categorical, choices: [2, 4, 8], when: {architecture: transformer}}
  temperature: {type: float, low: 0.5, high: 1.2}   # chosen after training, without retraining
  layers: 2                                         # a plain value is fixed
```

- The format is YAML 1.2, or JSON, which is a part of it: `1e-4` is a number, `2_000_000` too, `no` is text.
- Unknown keys and impossible values are refused, all at once, each with its line and the nearest right word.
  `tuner check FILE.yaml` does only that, reads the text, tries a class of your own, and says whether a study of that
  name is in the database and another one.
- A file in which everything is fixed is a study of one trial. An exported `best.yaml` is such a file.
- `schema`, the version of the format, stands in files that programs wrote. A file without it is read as the newest.

## Keys

<<keys>>

Some keys may also stand where they are often looked for: <<moved>>.

While a study goes on, <<free>> may change, and so may the place of the text (`corpus.path`), not its content. Anything
else is refused, because results would no longer compare: give the changed study another `name`.

## corpus

<<section corpus>>

A folder means all files in it, at any depth, in the order of their names; each file is a document. So is each line of
a `.jsonl` or `.ndjson` file and each item of a list in a `.json` file, in a folder, too: `field` then says where their
text is. Hidden files, checkpoints (`.safetensors`, `.pt`, `.ckpt`, ...), locks, backups and links to folders are
passed over, and `tuner check` says which. Tables, PDFs, office documents, web pages, pictures and compressed files are
refused by name, with what to do. Text is split in this order, not shuffled: its end is the test split, which no trial
reads, only `tuner train` and `tuner confirm` at their end.

`python-docs` is 0.5 MB of English (Python's own help; it differs between versions of Python). `markov` is a random
source of letters with a known entropy of 2.1 bits a letter: no honest model scores below it.

```yaml
corpus: {path: chats.jsonl, field: text, split: [0.8, 0.1, 0.1]}
trial: {tokens: 1_000_000}
```

## objective

`bits_per_byte` is the loss on the validation split, in bits for each byte of UTF-8, so that trials with different
tokenizers compare. `[bits_per_byte, text_divergence]` searches for the Pareto front of the loss and of how far written
text is from people's ([decoding](decoding.md)); weak trials are pruned by the first. Lower is better for both.

## trial

<<section trial>>

Give `tokens` or `seconds`. With tokens all trials do the same work, and on a CPU a trial repeats to the last bit. With
seconds, fast configurations see more text: the right choice when what counts is the result after a given time.
The learning rate's schedule follows this budget. Rungs are in tokens or seconds, never in steps, because batch size may
vary. At each rung but the last a weak trial may be pruned.

Looking costs little: the rungs before the last together about a tenth of the training's work, the last one at most a
fifth (but 4,096 and 32,768 tokens are read in any case). So the last rung reads all of the validation split where that
has at most a quarter as many tokens as the trial trains on, which is the rule for texts of a few megabytes. Of a
larger one it reads pieces of 512 tokens, spread over all of it and at the same places for all trials; the trial's
attribute `validation_part`, which exports have too, tells how much that was. With seconds, the number of tokens is the
one that the trial's own speed allows. `tuner train` and `tuner confirm` read all of the split at their end.

## budget

<<section budget>>

Give one or both; the study ends with the first that is spent. `trials: 100` means exactly 100. When `hours` are spent,
the trials that run are saved and wait in the queue. `tuner run --trials N` or `--hours H` replaces both, also for a
study that has ended: it goes on, with what waits first.

## sampler

How the next trial is proposed: a name alone (`sampler: gp`), or a mapping with `type` and options. Options are Optuna's
own keywords, listed here with their defaults as of Optuna <<version>>. To a `seed` each worker adds its number in the
database, so that workers differ: a search repeats with one worker on a fresh database only.

<<options samplers>>

```yaml
corpus: {builtin: python-docs}
trial: {tokens: 400_000}
sampler: {type: tpe, n_startup_trials: 20, group: true}
parameters:
  learning_rate: {type: float, low: 1e-4, high: 1e-1, log: true}
```

## pruner

Which trials are stopped early: a name alone, or a mapping with `type` and options, as for the sampler. Steps, resources
and warm-up are counted in rungs, from 1. Defaults in **bold** are ours, not Optuna's.

<<options pruners>>

With `rungs: 9` and a factor of 3 a trial must be among the best third after 1/9 of its budget and again after 3/9.

```yaml
corpus: {builtin: python-docs}
trial: {tokens: 400_000, rungs: 9}
pruner: {type: patient, wrapped_pruner: {type: percentile, percentile: 25.0}, patience: 2}
parameters:
  learning_rate: {type: float, low: 1e-4, high: 1e-1, log: true}
```

## decoding

<<section decoding>>

It applies to the searched ones of <<decoding>> ([how](decoding.md)).

## limits

<<section limits>>

Parameters and memory may have a unit: `5M` (k, M, G), `8GiB` (KiB, MiB, GiB, kB, MB, GB). Both are estimated without
allocating anything; memory is watched during training, too. A trial that exceeds a limit ends at once as pruned, with a
violated constraint, from which `tpe` and `nsga2` learn.

```yaml
corpus: {builtin: python-docs}
trial: {tokens: 400_000}
limits: {parameters: 5M, memory: 8GiB, milliseconds_per_token: 5}
parameters:
  hidden_size: {type: int, low: 64, high: 1024, step: 64}
```

## start

Values that are tried first, a mapping for each trial. The sampler adds what is left out. Each must be within what is
searched; decoding parameters cannot be given. Later, `tuner enqueue STUDY learning_rate=0.003` does the same.

```yaml
corpus: {builtin: python-docs}
trial: {tokens: 400_000}
parameters:
  architecture: {type: categorical, choices: [lstm, gru]}
  learning_rate: {type: float, low: 1e-4, high: 1e-1, log: true}
start:
  - {architecture: lstm, learning_rate: 5e-3}
  - {architecture: gru}
```

## parameters

A plain value is fixed. A mapping with `type` is searched. What is left out has the default of the tables below.

### Kinds of ranges

<<kinds>>

A parameter that does not count has its default. `when` may look at parameters that have conditions themselves, but not
in a circle, and not at decoding parameters.

```yaml
corpus: {path: my-text.txt}
trial: {tokens: 1_000_000}
parameters:
  tokenizer: {type: categorical, choices: [character, byte-pair]}
  vocabulary_size: {type: int, low: 512, high: 8192, log: true, when: {tokenizer: byte-pair}}
  architecture: {type: categorical, choices: [rnn, lstm, gru, transformer]}
  tied_embeddings: {type: categorical, choices: [true, false]}
  weight_decay: {type: float, low: 0.0, high: 0.1, step: 0.02}
  momentum: {type: float, low: 0.8, high: 0.99, when: {optimizer: [sgd, muon]}}
  optimizer: {type: categorical, choices: [adamw, sgd, muon]}
```

<<knobs>>
"""

COMMANDS = """\
# Commands

Every command with its options, written from the code by `python docs/make_reference.py`; a test compares the two.
`tuner COMMAND --help` says the same. What exit codes mean: [operation](operation.md#exit-codes). More on
[the dashboard](dashboard.md), [the report](report.md), [exports and confirmation](export.md), [training](training.md),
[several machines](machines.md); what to do about an error: [troubleshooting](troubleshooting.md).

<<contents>>

`tuner train` and `tuner generate` need neither Optuna nor a database. Where only the folder `models/` was copied, they
are `python -P -m models train` and `python -P -m models generate`.

## Environment

Command-line options win over the environment.

<<environment>>

## Options of several commands

Where a command's own table says "also", these are meant.

<<shared>>

<<commands>>
"""

ROOMS = """\
# Rooms

Every file is a room; this is what each says of itself in its first line. Written by `python docs/make_reference.py`.
How they work together: [architecture](architecture.md).

## models

Text generators and their training; useful without the tuner. Nothing in it imports `tuner`, Optuna or SQLAlchemy.

<<rooms models>>

## tuner

The search service. It imports `models`.

<<rooms tuner>>
"""


def main() -> None:
    (HERE / "study-file.md").write_text(study_file(), encoding="utf-8")
    (HERE / "commands.md").write_text(commands(), encoding="utf-8")
    (HERE / "rooms.md").write_text(rooms(), encoding="utf-8")


def study_file() -> str:
    """Returns the reference of study files."""
    schema = Study.model_json_schema()
    parts: dict[str, Callable[..., str]] = {
        "keys": lambda: _keys(schema),
        "moved": lambda: ", ".join(f"`{_dotted(there)}` is `{_dotted(home)}`" for there, home in MOVED.items()),
        "free": lambda: _listed(FREE),
        "section": lambda name: _fields(_definition(schema, name)),
        "version": lambda: optuna.__version__,
        "options": lambda module: "\n".join(_options(module)),
        "decoding": lambda: _listed(DECODING),
        "kinds": _kinds,
        "knobs": lambda: "\n".join(_knobs()),
    }
    return _filled(STUDY_FILE, parts)


def commands() -> str:
    """Returns the reference of the commands."""
    every = list(_walk("tuner", tuner_commands))
    shared = _shared([command for _, command in every])
    parts: dict[str, Callable[..., str]] = {
        "contents": lambda: _table(["command", "what it does"], [_entry(name, command) for name, command in every]),
        "environment": lambda: _table(["variable", "option", "what it does"], sorted(_environment(every))),
        "shared": lambda: _parameters(list(shared.values())),
        "commands": lambda: "\n\n".join(_command(name, command, shared) for name, command in every),
    }
    return _filled(COMMANDS, parts)


def rooms() -> str:
    """Returns the list of the rooms, each with the first line that it says of itself."""
    parts = {"rooms": lambda package: _table(["room", "what it is for"], list(_rooms(package)))}
    return _filled(ROOMS, parts)


def _filled(template: str, parts: dict[str, Callable[..., str]]) -> str:
    """Puts what a part returns in the place of its `<<name arguments>>`."""

    def fill(found: re.Match[str]) -> str:
        name, *arguments = found[1].split()
        return parts[name](*arguments)

    return re.sub("<<(.+?)>>", fill, template)


def _table(head: list[str], rows: list[list[str]]) -> str:
    lines = [head, ["---"] * len(head), *([cell.replace("|", "\\|") for cell in row] for row in rows)]
    return "\n".join("|" + "".join(f" {cell} |" if cell else " |" for cell in line) for line in lines)


# The study file.


def _keys(schema: Schema) -> str:
    """The table of a study's keys; those with a section of their own lead there."""
    headings = set(re.findall("^## (.+)$", STUDY_FILE, re.MULTILINE))
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


def _fields(definition: Schema) -> str:
    rows = [
        [f"`{name}`", field["description"], _shape(field), _default(field)]
        for name, field in definition["properties"].items()
    ]
    return _table(["key", "what it is", "form", "default"], rows)


def _options(module: str) -> Iterator[str]:
    """A paragraph for each sampler or pruner: what it is for, and its options."""
    names, purposes, ours = {
        "samplers": (SAMPLERS, SAMPLERS_FOR, {}),
        "pruners": (PRUNERS, PRUNERS_FOR, pruner_defaults(rungs=0)),
    }[module]
    pages = f"https://optuna.readthedocs.io/en/stable/reference/{module}/generated/optuna.{module}"
    for name, class_name in names.items():
        options = _options_of(getattr(getattr(optuna, module), class_name), ours.get(name, {}))
        yield f"- **`{name}`** ([{class_name}]({pages}.{class_name}.html)). {purposes[name]}"
        yield from [f"  Options: {', '.join(options)}."] if options else []


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


def _kinds() -> str:
    """The three kinds of ranges, with the keys of each."""
    rows = []
    for kind in (Float, Int, Categorical):
        schema = kind.model_json_schema()
        fields = {name: field for name, field in schema["properties"].items() if name != "type"}
        for name, field in sorted(fields.items(), key=lambda pair: pair[0] == "when"):
            default = "needed" if name in schema["required"] else "" if name == "when" else _default(field)
            rows.append([f"`{schema['properties']['type']['const']}`", f"`{name}`", field["description"], default])
    return _table(["type", "key", "what it is", "default"], rows)


def _knobs() -> Iterator[str]:
    """A table for each group of knobs, in the order of `Config`."""
    rows = [
        [f"`{name}`", field["description"], _shape(field), field["unit"], f"`{_plain(field['default'])}`"]
        for name, field in Config.model_json_schema()["properties"].items()
    ]
    starts = [index for index, row in enumerate(rows) if row[0].strip("`") in KNOBS]
    for start, end in zip(starts, [*starts[1:], len(rows)], strict=True):
        yield from (f"### {KNOBS[rows[start][0].strip('`')]}", "")
        yield _table(["parameter", "what it is", "range", "unit", "default"], rows[start:end])
        yield ""


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


# The rooms.


def _rooms(package: str) -> Iterator[list[str]]:
    folder = HERE.parent / package
    for path in sorted(folder.glob("**/*.py"), key=lambda path: (path.parent, path.name)):
        first = (ast.get_docstring(ast.parse(path.read_text(encoding="utf-8"))) or "").split("\n")[0]
        name = path.relative_to(folder)
        yield [f"[`{name}`](../{package}/{name})", first]


if __name__ == "__main__":
    main()

"""The report of a study: one HTML file that opens anywhere, without a network."""

from __future__ import annotations

import base64
import hashlib
import importlib.metadata
import json
import math
import shlex
from datetime import UTC, datetime
from functools import cache
from importlib import resources
from pathlib import Path
from typing import TYPE_CHECKING, Any

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup
from optuna.trial import FrozenTrial

from models.files import is_stream
from models.reader import dump
from models.wording import short_duration
from tuner.artifacts.store import Artifacts
from tuner.results import analysis, outcomes
from tuner.results import export as exports
from tuner.results.summary import front, quality, snapshot
from tuner.storage.handle import StudyHandle
from tuner.study.definition import Study
from tuner.study.space import Categorical, Searched
from tuner.watch import plots, tables

if TYPE_CHECKING:
    import plotly.graph_objects as go

ROWS = 10
"""Trials in a leaderboard."""

FRONT_ROWS = 30
"""Trials of a Pareto front that are listed."""

EDGE = 0.02
"""How close to an end of its range, as a part of it, a value counts as being at the end."""


def report(study: StudyHandle, kept: Artifacts | None) -> str:
    """Returns the report as HTML; `kept` is where texts of the models are looked for, if that can be reached."""
    now, found, definition = snapshot(study), study.optuna_study, study.definition
    board, best = outcomes.best_first(now.trials), analysis.best(found, now.trials)
    drawn, missing = figures(definition, now.trials)
    ahead = front(now.trials) if len(definition.objectives) > 1 else []
    shown = [best.trial, *(trial for trial in board if trial.number != best.trial.number)] if best else []
    return _rendered(
        drawn,
        mark=_mark(definition.name),
        study=definition,
        now=now,
        counts=now.counts,
        trials=now.trials,
        written=datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC"),
        hints=tables.hints,
        best=best,
        architecture=plots.architecture(definition)(best.trial) if best else None,
        text=("the built-in corpus " if definition.corpus.builtin else "") + definition.corpus.described,
        fingerprint=found.user_attrs.get("fingerprint"),
        limits={name: f"{limit:,}" for name, limit in definition.limits.given().items()},
        ranges=[_range(name, one, best) for name, one in definition.space.searched.items()],
        board=board[:ROWS],
        complete=len(board),
        leading=ahead[:FRONT_ROWS],
        measured=any("text_divergence" in trial.user_attrs for trial in board[:ROWS]),
        confirmation=found.user_attrs.get("confirmation"),
        savings=analysis.savings(definition, now.trials),
        worker_seconds=analysis.worker_seconds(now.trials),
        missing=missing,
        importance_hints=analysis.importance_hints(definition, now.trials),
        samples=analysis.samples(study.storage, kept, shown),
        troubles=analysis.troubles(now.trials),
        origins=analysis.origins(now.trials),
        commands=_commands(definition, best),
        yaml=dump(definition.stored()),
        version=importlib.metadata.version("textgen-tuner"),
    )


def require_free(path: Path, force: bool, study_name: str) -> None:
    """Raises RunError when a file is in the way; an earlier report of the same study is not."""
    exports.require_free(path, force or _is_report(path, study_name))


def write(path: Path, html: str, force: bool, study_name: str) -> None:
    """Writes a report whole. Raises RunError."""
    exports.write_new(path, html, force or _is_report(path, study_name))


def _is_report(path: Path, study_name: str) -> bool:
    """Whether a file is a report of that study."""
    if is_stream(path):
        return False
    try:
        with path.open("rb") as file:
            return _mark(study_name).encode("utf-8", "replace") in file.read(4096)
    except OSError:
        return False


def _mark(study_name: str) -> Markup:
    return Markup('<meta name="textgen-tuner-report" content="{}">').format(study_name)


# What is drawn.


def figures(definition: Study, trials: list[FrozenTrial]) -> tuple[dict[str, go.Figure], list[str]]:
    """Returns the figures that something is known for, by name, and why there is none of importance."""
    weights = analysis.importance(definition, trials)
    drawn: dict[str, go.Figure | None] = {
        "history": plots.history(definition, trials),
        "objectives": plots.objectives(definition, trials),
        "learning-curves": plots.learning_curves(definition, trials),
        "importance": plots.importance(weights.shares) if weights.shares else None,
        "parallel": plots.parallel_coordinates(definition, trials),
        "quality-and-diversity": plots.quality_and_diversity(trials),
    }
    drawn |= {f"slice-{name}": figure for name, figure in plots.slices(definition, trials).items()}
    drawn |= {f"cost-{name}": figure for name, figure in plots.costs(definition, trials).items()}
    return {name: figure for name, figure in drawn.items() if figure is not None}, weights.missing


def _range(name: str, searched: Searched, best: analysis.Best | None) -> dict[str, Any]:
    """One searched parameter, and where in its range the best trial is."""
    value = best.trial.params.get(name) if best else None
    chosen = best is not None and name in best.trial.params
    when = ", ".join(f"{other} is {_listed(wanted)}" for other, wanted in searched.when.items())
    return {
        "name": name,
        "described": searched.described(),
        "log": getattr(searched, "log", False),
        "when": when,
        "best": _value(value) if chosen else "-",
        "edge": _edge(searched, value) if chosen else None,
    }


def _edge(searched: Searched, value: Any) -> str | None:
    """Which end of its range a value is at, if it is."""
    if isinstance(searched, Categorical) or searched.low == searched.high:
        return None
    scale = math.log if searched.log else float
    place = (scale(value) - scale(searched.low)) / (scale(searched.high) - scale(searched.low))
    return "low" if place <= EDGE else "high" if place >= 1 - EDGE else None


def _listed(wanted: Any) -> str:
    return " or ".join(map(str, wanted)) if isinstance(wanted, list) else str(wanted)


def _commands(definition: Study, best: analysis.Best | None) -> dict[str, str]:
    """What a reader can type."""
    name = shlex.quote(definition.name)
    device = best.trial.user_attrs.get("device") if best else None
    return {
        "export": f"tuner export {name} -o best.yaml",
        "train": exports.training_command(Path("best.yaml"), device),
        "confirm": f"tuner confirm {name}",
        "run": "tuner run study.yaml",
    }


# How it is written.


def _rendered(drawn: dict[str, go.Figure], **facts: Any) -> str:
    """The page. Everything is escaped but our own style and scripts, which a policy names by their hashes."""
    from plotly.offline import get_plotlyjs

    files = resources.files("tuner.watch") / "templates"
    style, script = ((files / name).read_text(encoding="utf-8") for name in ("report.css", "report.js"))
    plotly = get_plotlyjs()
    page = _environment().get_template("report.html")
    html = page.render(
        **facts,
        figures={name: _caption(figure) for name, figure in drawn.items()},
        slices=[name for name in drawn if name.startswith("slice-")],
        costs=[name for name in drawn if name.startswith("cost-")],
        style=Markup(style),
        plotly=Markup(plotly),
        script=Markup(script),
        data=_as_data(drawn),
        policy=_policy(plotly, script),
    )
    return html.encode("utf-8", "replace").decode("utf-8")  # half characters, which no file can hold


@cache
def _environment() -> Environment:
    made = Environment(
        loader=PackageLoader("tuner.watch"), autoescape=True, undefined=StrictUndefined, lstrip_blocks=True
    )
    made.filters |= {
        "bits": _bits,
        "count": _count,
        "duration": short_duration,
        "known": _known,
        "percent": lambda share: f"{share:.0%}",
        "quality": lambda trial: _bits(quality(trial)),
        "value": _value,
    }
    return made


def _caption(figure: go.Figure) -> dict[str, str]:
    title = figure.layout.title
    subtitle = title.subtitle.text
    return {"title": title.text, "subtitle": subtitle[:1].upper() + subtitle[1:]}


def _as_data(drawn: dict[str, go.Figure]) -> Markup:
    """The figures as JSON that nothing in it can end: titles are in the page, colours come from its script."""
    for figure in drawn.values():
        figure.update_layout(title=None, template=None)
    figures = ", ".join(f"{json.dumps(name)}: {figure.to_json()}" for name, figure in drawn.items())
    text = f"{{{figures}}}"
    for character in "<>&\u2028\u2029":
        text = text.replace(character, f"\\u{ord(character):04x}")
    return Markup(text)


def _policy(*scripts: str) -> str:
    """What the page may do: run these scripts, and reach nothing."""
    digests = (hashlib.sha256(script.encode()).digest() for script in scripts)
    allowed = " ".join(f"'sha256-{base64.b64encode(digest).decode()}'" for digest in digests)
    return (
        f"default-src 'none'; script-src {allowed}; style-src 'unsafe-inline'; img-src data: blob:;"
        " base-uri 'none'; form-action 'none'"
    )


def _bits(number: float) -> str:
    return f"{number:.4f}"


def _count(number: float) -> str:
    return f"{number:,.0f}"


def _known(value: Any, form: str = "value") -> str:
    """A fact that older studies may lack."""
    forms = {"value": _value, "bits": _bits, "count": _count, "duration": short_duration}
    return "-" if value is None or (form != "value" and not isinstance(value, int | float)) else forms[form](value)


def _value(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, float) else "none" if value is None else str(value)

"""Figures for the dashboard and the report, drawn from stored trials.

However many trials there are, a figure has a bounded number of points and says in its subtitle how many it shows.
Names and values from study files are escaped: plotly reads its texts as HTML.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from html import escape
from statistics import quantiles
from typing import TYPE_CHECKING, Any

from optuna.trial import FrozenTrial

from models.config import Config
from tuner.results.decoding_plot import has_curve
from tuner.results.outcomes import (
    BEYOND,
    BROKEN,
    FULL,
    PRUNED,
    best_first,
    best_so_far,
    in_order_of_end,
    last_value,
    outcome,
    ranked,
    selected,
    spent,
)
from tuner.results.summary import pareto_front, quality
from tuner.study.definition import Study
from tuner.study.space import Categorical, Searched, Value

if TYPE_CHECKING:
    import plotly.graph_objects as go


SHOWN = 3
"""Trials in a figure of the best ones."""

POINTS, CURVES = 300, 120
"""Most trials shown as points and as curves: half of them the best, the others an even sample."""

COLOURS = ("#1F83C9", "#E69F00", "#009E73", "#CC79A7", "#56B4E9", "#8C6D31")
"""After Okabe and Ito: colour-blind readers can distinguish them, on white and on black."""

BEST, PALE = "#D55E00", "#8A8F98"

BITS = "bits per byte (validation)"

TEMPLATE = {
    "layout": {
        "colorway": COLOURS,
        "paper_bgcolor": "white",
        "plot_bgcolor": "white",
        "font": {"color": "#1f2328"},
        "title": {"x": 0.05},
        "hoverlabel": {"align": "left"},
        **{
            axis: {"gridcolor": "#e4e7eb", "linecolor": "#9aa2ad", "zeroline": False, "automargin": True}
            for axis in ("xaxis", "yaxis")
        },
    }
}

COSTS = {
    "training_seconds": ("seconds of training", 1),
    "tokens": ("tokens trained on", 1),
    "tokens_per_second": ("tokens per second in training", -1),
    "parameter_count": ("parameters of the model", 1),
}
"""What a trial costs: fact -> its axis, and 1 where less is better or -1 where more is."""

MARKS: dict[str, dict[str, Any]] = {
    FULL: {"color": COLOURS[0], "size": 7, "opacity": 0.85},
    PRUNED: {"color": COLOURS[4], "size": 6, "opacity": 0.6},
    BEYOND: {"color": PALE, "size": 7, "symbol": "x-thin", "line": {"width": 1.5, "color": PALE}},
    BROKEN: {"color": PALE, "size": 7, "symbol": "triangle-up-open"},
}
"""How the ends of trials look."""

PLACED = "pruned trials stand at their last rung, those without a value at the upper edge; "


def dashboard_figures(definition: Study, trials: list[FrozenTrial]) -> dict[str, go.Figure]:
    """Returns the figures of a study in the dashboard, by name; without those of which nothing is known yet."""
    drawn = {
        "learning-curves": learning_curves(definition, trials),
        "parameters": one_of(slices(definition, trials), "Quality against each searched parameter", PLACED),
        "costs": one_of(costs(definition, trials), "Quality against cost"),
        "objectives": objectives(definition, trials),
        "quality-and-diversity": quality_and_diversity(trials),
    }
    return {name: figure for name, figure in drawn.items() if figure is not None}


def architecture(definition: Study) -> Callable[[FrozenTrial], str]:
    """Returns the architecture of a trial, searched or fixed."""
    default = definition.space.fixed.get("architecture", Config().architecture)
    return lambda trial: str(trial.params.get("architecture", default))


# Figures of a whole study.


def history(definition: Study, trials: list[FrozenTrial]) -> go.Figure | None:
    """Returns the values of trials in the order they ended, with the best so far; None before one has ended."""
    ended = in_order_of_end(trials)
    values = [value for trial in ended if (value := last_value(trial)) is not None]
    if not values:
        return None
    figure, axis = _figure(), _quality_axis(values)
    place = {trial.number: index for index, trial in enumerate(ended, start=1)}
    shown = selected(ranked(ended), 2 * POINTS)
    _add_outcomes(figure, shown, lambda trial: place[trial.number], axis, _hint)
    steps = best_so_far(ended)
    if steps:
        steps.append((len(ended), steps[-1][1]))
        line = {"color": BEST, "width": 2, "shape": "hv"}
        xs, ys = zip(*steps, strict=True)
        figure.add_scatter(x=xs, y=ys, mode="lines", line=line, name="best so far", hoverinfo="x+y")
    figure.update_xaxes(title="trials ended")
    return _finish(figure, "What trials came to, in the order they ended", PLACED + _part(shown, ended, "trials"), axis)


def learning_curves(definition: Study, trials: list[FrozenTrial]) -> go.Figure | None:
    """Returns bits per byte over what was spent, coloured by architecture: the best strong, the pruned thin."""
    begun = [trial for trial in trials if last_value(trial) is not None and trial.intermediate_values]
    if not begun:
        return None
    figure, shown, of = _figure(), selected(ranked(begun), CURVES), architecture(definition)
    axis = _quality_axis([last_value(trial) or 0.0 for trial in begun])
    best = {trial.number for trial in best_first(begun)[:SHOWN]}
    colours = _colours(definition, shown)
    for name, colour in colours.items():
        own = [trial for trial in shown if of(trial) == name]
        strong = [trial for trial in own if trial.number in best]
        whole = [trial for trial in own if outcome(trial) == FULL and trial.number not in best]
        others = [trial for trial in own if outcome(trial) != FULL]
        styles = ((others, 0.8, 0.45), (whole, 1.4, 0.8), (strong, 3.2, 1.0))
        drawn = [style for style in styles if style[0]]
        for group, width, opacity in drawn:
            legend = group is drawn[-1][0]
            _add_curves(figure, definition, group, colour, width, opacity, escape(name, quote=False), legend)
    figure.update_xaxes(title="tokens trained on" if definition.trial.tokens else "seconds of training")
    what = f"strong: the best {min(SHOWN, len(best))}; thin: pruned or not at the end yet; "
    return _finish(figure, "Learning curves", what + _part(shown, begun, "curves"), axis)


def _add_curves(
    figure: go.Figure,
    definition: Study,
    trials: list[FrozenTrial],
    colour: str,
    width: float,
    opacity: float,
    name: str,
    legend: bool,
) -> None:
    """Adds the curves of several trials as one line with gaps, which is quicker than a line each."""
    xs: list[float | None] = []
    ys: list[float | None] = []
    hints: list[str | None] = []
    for trial in trials:
        rungs = sorted(trial.intermediate_values)
        xs += [*(spent(definition, rung) for rung in rungs), None]
        ys += [*(_short(trial.intermediate_values[rung]) for rung in rungs), None]
        hints += [*(f"trial {trial.number}, rung {rung}" for rung in rungs), None]
    figure.add_scatter(
        x=xs,
        y=ys,
        text=hints,
        hoverinfo="text+y",
        mode="lines+markers" if width < 1 else "lines",  # a trial that was pruned at once has no line
        line={"color": colour, "width": width},
        marker={"size": 3 + width},
        opacity=opacity,
        name=name,
        legendgroup=name,
        showlegend=legend,
    )


def slices(definition: Study, trials: list[FrozenTrial]) -> dict[str, go.Figure]:
    """Returns quality against each searched parameter, by its name; without those that no trial has."""
    ranks = ranked(trial for trial in trials if trial.state.is_finished())
    drawn = {name: slice_of(name, one, ranks) for name, one in definition.space.searched.items()}
    for name in definition.space.decoding_parameters:
        if (figure := drawn[name]) is not None:
            title = figure.layout.title
            title.subtitle.text = "chosen on the trained model, for its texts alone; " + title.subtitle.text
    return {name: figure for name, figure in drawn.items() if figure is not None}


def slice_of(name: str, searched: Searched, ranks: list[FrozenTrial]) -> go.Figure | None:
    """Returns quality against one parameter, of ranked trials that have ended; None when none has it."""
    known = [trial for trial in ranks if name in trial.params]
    if not known:
        return None
    figure, shown = _figure(), selected(known, POINTS)
    axis = _quality_axis([value for trial in known if (value := last_value(trial)) is not None])

    def hint(trial: FrozenTrial) -> str:
        return f"{shown_value(trial.params[name])}<br>{_came_to(trial)}"

    _add_outcomes(figure, shown, _position(searched, name), axis, hint)
    best = known[0]
    if outcome(best) == FULL:
        x, y = [_position(searched, name)(best)], [_short(quality(best))]
        mark = {"symbol": "star", "size": 14, "color": BEST, "line": {"width": 1, "color": "white"}}
        figure.add_scatter(x=x, y=y, text=hint(best), hoverinfo="text", mode="markers", marker=mark, name="the best")
    figure.update_xaxes(title=name, **_parameter_axis(searched))
    return _finish(figure, f"Quality against {name}", _part(shown, known, "trials"), axis)


def _position(searched: Searched, name: str) -> Callable[[FrozenTrial], float]:
    """Where a trial stands on a parameter's axis; those of one choice beside each other."""
    if not isinstance(searched, Categorical):
        return lambda trial: _short(trial.params[name])
    places = {_key(choice): index for index, choice in enumerate(searched.choices)}
    return lambda trial: round(places.get(_key(trial.params[name]), -1) + 0.4 * (trial.number * 0.618034 % 1 - 0.5), 3)


def _parameter_axis(searched: Searched) -> dict[str, Any]:
    if isinstance(searched, Categorical):
        names = [shown_value(choice) for choice in searched.choices]
        return {"tickvals": list(range(len(names))), "ticktext": names, "range": [-0.6, len(names) - 0.4]}
    return {"type": "log", "exponentformat": "power"} if searched.log else {}


def _key(choice: Value) -> tuple[type, Value]:
    """True and 1 are different choices, but equal in Python."""
    return type(choice), choice


def costs(definition: Study, trials: list[FrozenTrial]) -> dict[str, go.Figure]:
    """Returns quality against what trials cost, by the cost's name, each with its front."""
    same = "tokens" if definition.trial.tokens else "training_seconds"  # the budget is the same for all
    board = best_first(trials)
    drawn = {name: cost_of(name, definition, board) for name in COSTS if name != same}
    return {name: figure for name, figure in drawn.items() if figure is not None}


def cost_of(name: str, definition: Study, board: list[FrozenTrial]) -> go.Figure | None:
    """Returns quality against one of COSTS for completed trials, best first; None where it was not recorded."""
    known = [trial for trial in board if trial.user_attrs.get(name)]
    if not known:
        return None
    label, sign = COSTS[name]
    return _compared(
        definition,
        known,
        lambda trial: (trial.user_attrs[name], quality(trial)),
        (sign, 1),
        {"title": label, "type": "log" if _is_wide([trial.user_attrs[name] for trial in known]) else "linear"},
        f"Quality against {label}",
    )


def objectives(definition: Study, trials: list[FrozenTrial]) -> go.Figure | None:
    """Returns both objectives of completed trials with the Pareto front; None for a study of one objective."""
    known = [trial for trial in best_first(trials) if len(trial.values) > 1]
    if len(definition.objectives) < 2 or not known:
        return None
    figure = _compared(
        definition, known, lambda trial: (trial.values[1], quality(trial)), (1, 1), {}, "The two objectives"
    )
    figure.update_xaxes(title="text divergence (0: as people differ)")
    return figure


def _compared(
    definition: Study,
    known: list[FrozenTrial],
    place: Callable[[FrozenTrial], tuple[float, float]],
    signs: tuple[int, int],
    across: dict[str, Any],
    title: str,
) -> go.Figure:
    """Completed trials by two numbers, coloured by architecture, and the front: those that none beats in both."""
    figure, shown, of = _figure(), selected(known, POINTS), architecture(definition)
    leading = pareto_front(known, lambda trial: (signs[0] * place(trial)[0], signs[1] * place(trial)[1]))
    ahead, there = {trial.number for trial in leading}, {trial.number for trial in shown}
    shown += [trial for trial in leading if trial.number not in there][:POINTS]
    colours = _colours(definition, shown)
    for name, colour in colours.items():
        own = [trial for trial in shown if of(trial) == name]
        figure.add_scatter(
            x=[_short(place(trial)[0]) for trial in own],
            y=[_short(place(trial)[1]) for trial in own],
            text=[_came_to(trial) for trial in own],
            hoverinfo="text",
            mode="markers",
            marker={"color": colour, "size": [9 if trial.number in ahead else 6 for trial in own], "opacity": 0.85},
            name=escape(name, quote=False),
        )
    xs, ys = zip(*(place(trial) for trial in leading), strict=True)
    line = {"color": BEST, "width": 1.5, "dash": "dot", "shape": "hv" if signs[0] > 0 else "vh"}
    figure.add_scatter(x=xs, y=ys, mode="lines", line=line, name="front", hoverinfo="skip")
    figure.update_xaxes(**across)
    return _finish(figure, title, _part(shown, known, "completed trials"), _quality_axis([quality(t) for t in shown]))


def importance(shares: dict[str, dict[str, float]]) -> go.Figure:
    """Returns bars of how much each parameter matters: of which trials -> parameter -> share."""
    figure = _figure()
    names = sorted({name for one in shares.values() for name in one}, key=lambda name: max(_of(shares, name)))
    for colour, (whose, one) in zip((COLOURS[0], COLOURS[1]), shares.items(), strict=False):
        values = [_short(100 * one.get(name, 0.0)) for name in names]
        figure.add_bar(x=values, y=names, orientation="h", name=escape(whose, quote=False), marker={"color": colour})
    figure.update_layout(height=160 + 40 * len(names), barmode="group")
    figure.update_xaxes(title="share of importance (%)")
    return _finish(figure, "How much each parameter matters", "PED-ANOVA; the shares of each colour add up to 100 %")


def _of(shares: dict[str, dict[str, float]], name: str) -> list[float]:
    return [one.get(name, 0.0) for one in shares.values()]


def parallel_coordinates(definition: Study, trials: list[FrozenTrial]) -> go.Figure | None:
    """Returns a line for each trial over all searched parameters; None when fewer than two are searched."""
    space = definition.space.searched
    known = [trial for trial in trials if outcome(trial) in (FULL, PRUNED) and trial.params]
    if len(space) < 2 or not known:
        return None
    figure, shown, board = _figure(), selected(ranked(known), CURVES), best_first(known)
    cut = max(1, len(board) // 10)
    best = {trial.number for trial in board[:cut]}
    groups: tuple[tuple[str, list[FrozenTrial], dict[str, Any], float], ...] = (
        ("pruned", [t for t in shown if outcome(t) == PRUNED], {"color": PALE, "width": 0.7}, 0.35),
        (
            FULL,
            [t for t in shown if outcome(t) == FULL and t.number not in best],
            {"color": COLOURS[0], "width": 1},
            0.6,
        ),
        (
            f"the best {cut}" if cut > 1 else "the best",
            [t for t in shown if t.number in best],
            {"color": BEST, "width": 2.5},
            1,
        ),
    )
    for name, group, line, opacity in groups:
        xs = [x for _ in group for x in (*range(len(space)), None)]
        ys = [y for trial in group for y in (*(_height(one, trial, name) for name, one in space.items()), None)]
        hints = [hint for trial in group for hint in (*(_at(trial, name) for name in space), None)]
        figure.add_scatter(
            x=xs, y=ys, text=hints, hoverinfo="text", mode="lines+markers", line=line, marker={"size": 4},
            opacity=opacity, name=name,
        )  # fmt: skip
    lines = [{"x0": index, "x1": index, "y0": 0, "y1": 1, "layer": "below", **SCALE} for index in range(len(space))]
    marks = [mark for index, one in enumerate(space.values()) for mark in _scale(index, one)]
    figure.update_layout(shapes=lines, annotations=marks)
    figure.update_xaxes(tickvals=list(range(len(space))), ticktext=list(space), range=[-0.3, len(space) - 0.4])
    figure.update_xaxes(side="top", showgrid=False)
    figure.update_yaxes(visible=False, range=[-0.16, 1.06])
    what = "at the foot: the parameter does not count for that trial; "
    return _finish(figure, "Parallel coordinates", what + _part(shown, known, "trials"))


FOOT = -0.12
"""Where a line passes the axis of a parameter that its trial does not have."""

SCALE = {"type": "line", "line": {"color": PALE, "width": 1}}


def _height(searched: Searched, trial: FrozenTrial, name: str) -> float:
    """Where a trial crosses the axis of a parameter, from 0 to 1."""
    if name not in trial.params:
        return FOOT
    value = trial.params[name]
    if isinstance(searched, Categorical):
        places = [_key(choice) for choice in searched.choices]
        return (places.index(_key(value)) + 0.5) / len(places) if _key(value) in places else FOOT
    scale = math.log if searched.log else float
    low, high = scale(searched.low), scale(searched.high)
    return round((scale(value) - low) / (high - low), 4) if high > low else 0.5


def _at(trial: FrozenTrial, name: str) -> str:
    value = shown_value(trial.params[name]) if name in trial.params else "does not count"
    return f"{name} {value}<br>{_came_to(trial)}"


def _scale(index: int, searched: Searched) -> list[dict[str, Any]]:
    """What stands beside one axis of the parallel coordinates: its choices or its two ends."""
    if isinstance(searched, Categorical):
        count = len(searched.choices)
        marks = [((place + 0.5) / count, shown_value(choice)) for place, choice in enumerate(searched.choices)]
    else:
        marks = [(0.0, f"{searched.low:g}"), (1.0, f"{searched.high:g}")]
    style = {"x": index, "showarrow": False, "xanchor": "left", "xshift": 5, "font": {"size": 10}}
    return [{**style, "y": height, "text": text} for height, text in marks]


def quality_and_diversity(trials: list[FrozenTrial]) -> go.Figure | None:
    """Returns BLEU against self-BLEU over temperature for the best trials, with the chosen points and people's.

    None when no trial was long enough to know. Further right is closer to what people wrote, further down less
    monotonous (Caccia et al. 2018).
    """
    shown = [trial for trial in best_first(trials) if has_curve(trial)][:SHOWN]
    if not shown:
        return None
    figure = _figure()
    for colour, trial in zip(COLOURS, shown, strict=False):
        curve, text = trial.user_attrs["decoding_curve"], trial.user_attrs["text"]
        name = f"trial {trial.number}, {quality(trial):.4f}"
        figure.add_scatter(
            x=[point["bleu"] for point in curve],
            y=[point["self_bleu"] for point in curve],
            mode="lines+markers",
            name=name,
            text=[f"temperature {point['temperature']:g}<br>divergence {point['divergence']:.4f}" for point in curve],
            legendgroup=name,
            line={"color": colour},
        )
        figure.add_scatter(
            x=[text["bleu"]],
            y=[text["self_bleu"]],
            mode="markers",
            marker={"symbol": "star", "size": 13, "color": colour},
            name=f"chosen in trial {trial.number}",
            text=[f"chosen: temperature {trial.user_attrs['configuration']['temperature']:g}"],
            legendgroup=name,
        )
    human = shown[0].user_attrs["human_text"]
    mark = {"symbol": "x", "size": 12, "color": BEST}
    figure.add_scatter(x=[human["bleu"]], y=[human["self_bleu"]], mode="markers", marker=mark, name="people")
    figure.update_xaxes(title="BLEU against what people wrote (more is closer)")
    figure.update_yaxes(title="self-BLEU (more is more monotonous)")
    said = f"the best {len(shown)} trials that were measured, at all temperatures tried"
    return _finish(figure, "Quality and diversity over temperature", said)


# What figures are made of.


def one_of(figures: dict[str, go.Figure], title: str, note: str = "") -> go.Figure | None:
    """Returns one figure that shows the one of them that a person chooses from a list; None without one."""
    if not figures:
        return None
    whole, buttons = _figure(), []
    owners = [name for name, figure in figures.items() for _ in figure.data]
    for name, figure in figures.items():
        for trace in figure.data:
            whole.add_trace(trace.update(visible=name == owners[0]))
        subtitle = note + figure.layout.title.subtitle.text
        layout = {axis: figure.layout[axis].to_plotly_json() for axis in ("xaxis", "yaxis")}
        layout["title"] = {"text": title, "subtitle": {"text": subtitle}}
        shown = {"visible": [owner == name for owner in owners]}
        buttons.append({"label": escape(name, quote=False), "method": "update", "args": [shown, layout]})
    whole.update_layout(buttons[0]["args"][1])
    menu = {"buttons": buttons, "x": 1.02, "xanchor": "left", "y": 0, "yanchor": "bottom", "showactive": True}
    return whole.update_layout(updatemenus=[menu])


def _figure() -> go.Figure:
    import plotly.graph_objects as go

    return go.Figure(layout={"template": TEMPLATE, "showlegend": True, "legend": {"itemsizing": "constant"}})


def _finish(figure: go.Figure, title: str, subtitle: str, axis: dict[str, Any] | None = None) -> go.Figure:
    """Gives a figure its title, what it shows of how much, and the axis of quality."""
    axis = dict(axis or {})
    cut = axis.pop("cut", 0)
    if cut:
        subtitle += f"; {cut} above the axis"
    figure.update_layout(title={"text": title, "subtitle": {"text": subtitle}})
    figure.update_yaxes(**axis)
    return figure


def _quality_axis(values: list[float]) -> dict[str, Any]:
    """The axis of bits per byte: without the few outliers beside which all others would look alike."""
    low, high = min(values, default=0.0), max(values, default=1.0)
    usual = quantiles(values, n=20)[-1] if len(values) > 4 else high
    top = usual if high - low > 1.6 * (usual - low) and usual > low else high
    margin = 0.05 * (top - low) or 0.05
    return {
        "title": BITS,
        "range": [_short(low - margin), _short(top + 2 * margin)],
        "cut": sum(v > top + 2 * margin for v in values),
    }


def _add_outcomes(
    figure: go.Figure,
    trials: list[FrozenTrial],
    place: Callable[[FrozenTrial], float],
    axis: dict[str, Any],
    hint: Callable[[FrozenTrial], str],
) -> None:
    """Adds a point for each trial that has ended, by how it ended; those without a value at the upper edge."""
    edge = axis["range"][1]
    for kind, mark in reversed(MARKS.items()):
        own = [trial for trial in trials if outcome(trial) == kind]
        if not own:
            continue
        values = [None if kind in (BEYOND, BROKEN) else last_value(trial) for trial in own]
        figure.add_scatter(
            x=[place(trial) for trial in own],
            y=[_short(edge if value is None else value) for value in values],
            text=[hint(trial) for trial in own],
            hoverinfo="text",
            mode="markers",
            marker=mark,
            name=kind,
            cliponaxis=False,
        )


def _colours(definition: Study, trials: Iterable[FrozenTrial]) -> dict[str, str]:
    """A colour for each architecture, the same in all figures of a study."""
    searched = definition.space.searched.get("architecture")
    listed = [str(one) for one in searched.values()] if searched else []
    there = set(map(architecture(definition), trials))
    names = [*listed, *sorted(there - {*listed})]
    return {name: COLOURS[index % len(COLOURS)] for index, name in enumerate(names) if name in there}


def _hint(trial: FrozenTrial) -> str:
    parameters = [f"{name} {shown_value(value)}" for name, value in trial.params.items()]
    return "<br>".join([_came_to(trial), *parameters])


def _came_to(trial: FrozenTrial) -> str:
    value = last_value(trial)
    return f"trial {trial.number}: {'no value' if value is None else f'{value:.4f}'}"


def _part(shown: Sequence[object], known: Sequence[object], what: str) -> str:
    if len(shown) < len(known):
        return f"{len(shown):,} of {len(known):,} {what} shown, the best and an even sample of the others"
    return f"all {what} shown ({len(known):,})"


def _is_wide(values: list[float]) -> bool:
    return min(values) > 0 and max(values) > 10 * min(values)


def shown_value(value: Any) -> str:
    """A parameter's value as plotly and a page may show it."""
    return f"{value:.4g}" if isinstance(value, float) else escape(str(value), quote=False)


def _short(number: float) -> float:
    """A number without digits too small to see."""
    return float(f"{number:.6g}")

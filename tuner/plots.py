"""Figures for the dashboard, drawn from what trials have stored."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from optuna.trial import FrozenTrial

from tuner.report import leaderboard, quality
from tuner.study import Study

if TYPE_CHECKING:
    import plotly.graph_objects as go

PICTURE = "decoding.svg"

SHOWN = 3
"""Trials in a figure of the best ones."""


def dashboard_figures(definition: Study, trials: list[FrozenTrial]) -> dict[str, go.Figure]:
    """Returns the figures of a study in the dashboard, by name; without those of which nothing is known yet."""
    drawn = {"quality-and-diversity": quality_and_diversity(trials)}
    return {name: figure for name, figure in drawn.items() if figure is not None}


def quality_and_diversity(trials: list[FrozenTrial]) -> go.Figure | None:
    """Returns BLEU against self-BLEU over temperature for the best trials, with the chosen points and people's.

    None when no trial was long enough to know. Further right is closer to what people wrote, further down less
    monotonous (Caccia et al. 2018).
    """
    import plotly.graph_objects as go

    shown = [trial for trial in leaderboard(trials) if "decoding_curve" in trial.user_attrs][:SHOWN]
    if not shown:
        return None
    figure = go.Figure()
    for trial in shown:
        curve, text = trial.user_attrs["decoding_curve"], trial.user_attrs["text"]
        name = f"trial {trial.number}, {quality(trial):.4f}"
        hints = [f"temperature {point['temperature']:g}<br>divergence {point['divergence']:.4f}" for point in curve]
        figure.add_scatter(
            x=[point["bleu"] for point in curve],
            y=[point["self_bleu"] for point in curve],
            mode="lines+markers",
            name=name,
            text=hints,
            legendgroup=name,
        )
        chosen = f"chosen: temperature {trial.user_attrs['configuration']['temperature']:g}"
        figure.add_scatter(
            x=[text["bleu"]],
            y=[text["self_bleu"]],
            mode="markers",
            marker={"symbol": "star", "size": 13},
            name=f"chosen in trial {trial.number}",
            text=[chosen],
            legendgroup=name,
        )
    human = shown[0].user_attrs["human_text"]
    figure.add_scatter(
        x=[human["bleu"]], y=[human["self_bleu"]], mode="markers", marker={"symbol": "x", "size": 12}, name="people"
    )
    figure.update_layout(
        title="Quality and diversity over temperature, best trials",
        xaxis_title="BLEU against what people wrote (more is closer)",
        yaxis_title="self-BLEU (more is more monotonous)",
    )
    return figure


def draw_decoding(trial: FrozenTrial, folder: Path) -> None:
    """Draws divergence, and quality against diversity, over temperature into a run folder; nothing without a curve.

    Raises OSError.
    """
    facts = trial.user_attrs
    if "decoding_curve" not in facts:
        return
    from matplotlib.figure import Figure

    from models.report import write_picture

    curve, text, human = facts["decoding_curve"], facts["text"], facts["human_text"]
    temperatures = [point["temperature"] for point in curve]
    chosen = facts["configuration"]["temperature"]
    figure = Figure(figsize=(9, 4), layout="constrained")
    left, right = figure.subplots(1, 2)
    left.plot(temperatures, [point["divergence"] for point in curve], marker=".")
    left.axvline(chosen, linestyle=":", label=f"chosen: {chosen:g}")
    left.set(xlabel="temperature", ylabel="text divergence (0: as people differ)")
    right.plot([point["bleu"] for point in curve], [point["self_bleu"] for point in curve], marker=".")
    for point in curve:
        right.annotate(f"{point['temperature']:g}", (point["bleu"], point["self_bleu"]))
    right.plot(text["bleu"], text["self_bleu"], "*", label="chosen", markersize=12)
    right.plot(human["bleu"], human["self_bleu"], "x", label="people")
    right.set(xlabel="BLEU (more is closer)", ylabel="self-BLEU (more is more monotonous)")
    for axes in (left, right):
        axes.legend()
        axes.grid(alpha=0.3)
    write_picture(figure, folder / PICTURE)

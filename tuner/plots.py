"""Figures for the dashboard, drawn from what trials have stored."""

from __future__ import annotations

from typing import TYPE_CHECKING

from optuna.trial import FrozenTrial

from tuner.report import leaderboard, quality

if TYPE_CHECKING:
    import plotly.graph_objects as go

SHOWN = 3
"""Trials in a figure of the best ones."""


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

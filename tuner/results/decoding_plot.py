"""Draws a trial's decoding curve for its run folder."""

from __future__ import annotations

from pathlib import Path

from optuna.trial import FrozenTrial

PICTURE = "decoding.svg"


def draw_decoding(trial: FrozenTrial, folder: Path) -> None:
    """Draws divergence, and quality against diversity, over temperature into a run folder; nothing without a curve.

    Raises OSError.
    """
    facts = trial.user_attrs
    if not has_curve(trial):
        return
    from models.runs.report import new_figure, write_picture

    curve, text, human = facts["decoding_curve"], facts["text"], facts["human_text"]
    temperatures = [point["temperature"] for point in curve]
    chosen = facts["configuration"]["temperature"]
    figure = new_figure(9, 4)
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


def has_curve(trial: FrozenTrial) -> bool:
    """Whether what a model writes was measured at some temperatures, and at the chosen one."""
    facts = trial.user_attrs
    measured = all(facts.get(name) for name in ("decoding_curve", "text", "human_text"))
    return measured and isinstance(facts["configuration"].get("temperature"), int | float)

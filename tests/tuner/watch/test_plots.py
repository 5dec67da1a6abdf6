"""Figures: what they show of which trials, that they stay small, and that names in them are text."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import pytest
from optuna.trial import FrozenTrial, TrialState, create_trial

from models.config import Config
from tests.tuner.conftest import WRITTEN
from tuner.results import outcomes
from tuner.results.summary import pareto_front
from tuner.study.definition import Study
from tuner.watch import plots

COMPLETE, PRUNED, FAIL, RUNNING = TrialState.COMPLETE, TrialState.PRUNED, TrialState.FAIL, TrialState.RUNNING
Small = Callable[..., Study]
HOSTILE = "</script><script>alert(1)</script>"
SEARCHED: dict[str, Any] = {
    "learning_rate": {"type": "float", "low": 1e-3, "high": 1e-1, "log": True},
    "architecture": {"type": "categorical", "choices": ["rnn", HOSTILE]},
    "layers": {"type": "int", "low": 1, "high": 4, "when": {"architecture": "rnn"}},
    "batch_size": 8,
    "sequence_length": 16,
}


def trial(
    study: Study,
    number: int,
    state: TrialState = COMPLETE,
    rungs: tuple[float, ...] = (4.0, 3.0, 2.5),
    excess: float | None = None,
    second: float | None = None,
    **facts: Any,
) -> FrozenTrial:
    """A trial as a worker leaves it, its last rung being its value."""
    architecture = ("rnn", HOSTILE)[number % 2]
    values = {"learning_rate": 10 ** (-3 + 2 * (number * 0.618034 % 1)), "architecture": architecture}
    if architecture == "rnn":
        values["layers"] = 1 + number % 4
    made = create_trial(
        state=state,
        values=[rungs[-1], *([] if second is None else [second])] if state == COMPLETE else None,
        params=values,
        distributions={name: study.space.searched[name].distribution() for name in values},
        intermediate_values=dict(enumerate(rungs, start=1)),
        user_attrs=WRITTEN
        | {"training_seconds": 3.0 + number, "tokens_per_second": max(1, 1000 - number), "parameter_count": 100}
        | facts,
        system_attrs={} if excess is None else {"constraints:memory": excess},
    )
    made.number = number
    return made


def names(figure: Any) -> list[str]:
    return [trace.name for trace in figure.data]


def points(figure: Any, name: str) -> list[tuple[Any, Any]]:
    return [point for trace in figure.data if trace.name == name for point in zip(trace.x, trace.y, strict=True)]


def searching(small: Small, **sections: Any) -> Study:
    """A study over SEARCHED, which no file could hold: its reader refuses such a name."""
    return small(**sections).model_copy(update={"parameters": SEARCHED})


@pytest.fixture(scope="session")
def study(small: Small) -> Study:
    return searching(small)


def test_nothing_is_drawn_of_a_study_that_has_just_begun(study: Study) -> None:
    assert plots.dashboard_figures(study, []) == {}
    assert plots.dashboard_figures(study, [trial(study, 0, RUNNING, ())]) == {}


def test_learning_curves_are_over_tokens_by_architecture_the_best_strong_and_the_pruned_thin(study: Study) -> None:
    trials = [trial(study, number, rungs=(4.0, 3.0, 2.0 + number / 10)) for number in range(8)]
    figure: Any = plots.learning_curves(
        study, [*trials, trial(study, 8, PRUNED, (5.0,)), trial(study, 9, RUNNING, (5.0,))]
    )
    strong = [trace for trace in figure.data if trace.line.width > 3]
    assert [one for trace in strong for one in trace.x if one] == pytest.approx([1365.333, 2730.667, 4096] * 3)
    assert sorted(one for trace in strong for one in trace.y if one and one < 3) == [2.0, 2.1, 2.2]
    thin = [trace for trace in figure.data if trace.line.width < 1]
    assert [one for trace in thin for one in trace.y] == [5.0, None, 5.0, None]
    colours = {trace.name: trace.line.color for trace in figure.data}
    assert len(set(colours.values())) == len(colours) == 2
    assert figure.layout.xaxis.title.text == "tokens trained on"
    assert "bits per byte" in figure.layout.yaxis.title.text


def test_learning_curves_of_a_budget_in_seconds_are_over_seconds(small: Small) -> None:
    study = searching(small, trial={"seconds": 30, "rungs": 3})
    figure: Any = plots.learning_curves(study, [trial(study, 0)])
    assert figure.data[0].x == (10, 20, 30, None)
    assert figure.layout.xaxis.title.text == "seconds of training"
    assert set(plots.costs(study, [trial(study, 0, tokens=5000)])) == {"tokens", "tokens_per_second", "parameter_count"}


def test_a_slice_shows_how_each_trial_ended_and_its_axis_is_that_of_the_search(study: Study) -> None:
    trials = [
        trial(study, 0),
        trial(study, 1, PRUNED, (3.5,)),
        trial(study, 2, PRUNED, (), excess=0.5, reason="does not fit: memory"),
        trial(study, 3, COMPLETE, (1.0,), excess=0.5),
        trial(study, 4, PRUNED, (float("inf"),), reason="diverged: no longer finite"),
        trial(study, 5, FAIL, ()),
        trial(study, 6, RUNNING, (2.0,)),
    ]
    figure = plots.slices(study, trials)["learning_rate"]
    edge = figure.layout.yaxis.range[1]
    assert [y for _, y in points(figure, outcomes.FULL)] == [2.5]
    assert [y for _, y in points(figure, outcomes.PRUNED)] == [3.5]
    assert [y for _, y in points(figure, outcomes.BEYOND)] == [edge, edge]
    assert [y for _, y in points(figure, outcomes.BROKEN)] == [edge, edge]
    assert [y for _, y in points(figure, "the best")] == [2.5]  # not the better one that does not fit
    assert figure.layout.xaxis.type == "log"
    assert "(6)" in figure.layout.title.subtitle.text


def test_a_choice_has_a_place_each_and_a_conditional_parameter_only_the_trials_that_have_it(study: Study) -> None:
    trials = [trial(study, number) for number in range(10)]
    drawn = plots.slices(study, trials)
    assert {round(x) for x, _ in points(drawn["architecture"], outcomes.FULL)} == {0, 1}
    assert drawn["architecture"].layout.xaxis.ticktext == (
        "rnn",
        "&lt;/script&gt;&lt;script&gt;alert(1)&lt;/script&gt;",
    )
    assert len(points(drawn["layers"], outcomes.FULL)) == 5


def test_a_few_terrible_values_do_not_hide_the_differences_between_the_others(study: Study) -> None:
    trials = [trial(study, number, rungs=(2.0 + number / 100,)) for number in range(60)]
    figure: Any = plots.history(study, [*trials, trial(study, 60, rungs=(900.0,))])
    assert figure.layout.yaxis.range[1] < 3
    assert "1 above the axis" in figure.layout.title.subtitle.text


def test_the_best_so_far_falls_in_the_order_in_which_trials_ended(study: Study) -> None:
    trials = [trial(study, number, rungs=(value,)) for number, value in enumerate((3.0, 2.0, 2.5, 1.5))]
    trials[3].datetime_complete, trials[0].datetime_complete = trials[0].datetime_complete, trials[3].datetime_complete
    trials.append(trial(study, 4, rungs=(0.5,), excess=1.0))
    figure = plots.history(study, trials)
    assert [y for _, y in points(figure, "best so far")] == [1.5, 1.5]
    assert outcomes.best_so_far(outcomes.in_order_of_end(trials)) == [(1, 1.5)]


def test_the_front_is_what_nobody_beats_in_both(study: Study) -> None:
    made = {0: (1.0, 4.0), 1: (2.0, 3.0), 2: (3.0, 3.5), 3: (4.0, 1.0), 4: (4.0, 2.0)}
    trials = [trial(study, number) for number in made]
    assert [one.number for one in pareto_front(trials, lambda one: made[one.number])] == [0, 1, 3]


def test_more_tokens_per_second_are_better_and_more_parameters_worse(study: Study) -> None:
    made = ((2.0, 10), (2.5, 20), (3.0, 15))
    trials = [
        trial(study, number, rungs=(bits,), tokens_per_second=cost, parameter_count=cost)
        for number, (bits, cost) in enumerate(made)
    ]
    drawn = plots.costs(study, trials)
    assert points(drawn["tokens_per_second"], "front") == [(20, 2.5), (10, 2.0)]
    assert points(drawn["parameter_count"], "front") == [(10, 2.0)]
    assert (
        plots.costs(study, [trial(study, 0, training_seconds=None, tokens_per_second=None, parameter_count=None)]) == {}
    )


def test_two_objectives_have_a_figure_with_their_front(small: Small) -> None:
    study = searching(small, objective=["bits_per_byte", "text_divergence"])
    trials = [trial(study, n, rungs=(2.0 + n,), second=one) for n, one in enumerate((0.3, 0.2, 0.4))]
    figure = plots.dashboard_figures(study, trials)["objectives"]
    assert points(figure, "front") == [(0.2, 3.0), (0.3, 2.0)]
    assert "objectives" not in plots.dashboard_figures(searching(small), trials)


def test_parallel_coordinates_have_a_line_for_each_trial_and_a_foot_for_what_does_not_count(study: Study) -> None:
    figure: Any = plots.parallel_coordinates(study, [trial(study, 0), trial(study, 1, PRUNED, (4.0,))])
    assert [len(trace.x) for trace in figure.data] == [4, 0, 4]
    assert plots.FOOT in figure.data[0].y  # trial 1 has no layers
    assert all(0 <= y <= 1 for y in figure.data[2].y if y is not None)


def test_of_many_trials_the_best_and_an_even_sample_are_shown_and_a_figure_stays_small(study: Study) -> None:
    kinds = ((COMPLETE, (4.0, 3.0, 2.0)), (PRUNED, (4.0,)), (PRUNED, (3.9, 3.0)))
    trials = [trial(study, n, kinds[n % 3][0], tuple(v + n / 1e4 for v in kinds[n % 3][1])) for n in range(3000)]
    figures = plots.dashboard_figures(study, trials)
    assert set(figures) == {"learning-curves", "parameters", "costs"}
    for figure in figures.values():
        assert len(figure.to_json()) < 150_000
        assert "of 3,000" in figure.layout.title.subtitle.text or "of 1,000" in figure.layout.title.subtitle.text
    shown = outcomes.selected(outcomes.ranked(trials), 100)
    assert [one.number for one in shown[:50]] == list(range(0, 150, 3))
    assert len({one.number for one in shown}) == 100
    assert any(one.state == PRUNED for one in shown)


def test_names_in_figures_are_text(study: Study) -> None:
    curve = [{"temperature": 1.0, "divergence": 0.1, "bleu": 1.0, "self_bleu": 2.0}]
    text = {"bleu": 1.0, "self_bleu": 2.0}
    configuration = Config().model_dump(mode="json")
    facts: dict[str, Any] = {"decoding_curve": curve, "text": text, "human_text": text, "configuration": configuration}
    trials = [trial(study, number, **facts) for number in range(12)]
    figures = plots.dashboard_figures(study, trials)
    drawn: list[Any] = [*figures.values(), plots.history(study, trials), plots.parallel_coordinates(study, trials)]
    assert "quality-and-diversity" in figures
    for figure in drawn:
        assert "<script" not in json.dumps(json.loads(figure.to_json()))

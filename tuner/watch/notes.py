"""The dashboard's notes on studies and trials, in Markdown that is safe for any text of a model or file."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterable, Iterator, Sequence
from textwrap import wrap
from typing import Any

from optuna.trial import FrozenTrial, TrialState

from models.config import Config, flat
from models.safe_text.markdown import code, fenced
from models.wording import counted, duration
from tuner.results.confirmation import lines
from tuner.results.states import Step
from tuner.results.summary import NO_WORKER, Row, excess, front, quality
from tuner.study.definition import Study
from tuner.study.facts import ended_by_no_worker, trial_problem
from tuner.trials.attachments import SAMPLES_ATTRIBUTE
from tuner.watch.tables import activity, configured, unfit_hint

WIDTH = 100
"""Characters in a line of a sample."""


TRACEBACK_CHARACTERS, REASON_CHARACTERS = 3_000, 500
CURVE_ROWS = 12
BOARD_ROWS, WORKER_ROWS = 10, 40

BOARD_COLUMNS = ("trial", "bits per byte", "confirmed", "divergence", "parameters", "tokens/s", "configuration")

BEGIN = "[//]: # (tuner: from here to the end it is written anew all the time; write above)"
END = "[//]: # (tuner: the end)"
"""Lines that no reader of Markdown shows."""

USUAL = Config().model_dump(mode="json")
VALUE_CHARACTERS = 60

MEASURES = {
    "text_divergence": "text divergence",
    "bleu": "BLEU",
    "self_bleu": "self-BLEU",
    "rouge_l": "ROUGE-L",
    "distinct_1": "distinct-1",
    "distinct_2": "distinct-2",
    "distinct_3": "distinct-3",
    "repetition": "repetition",
    "zipf": "Zipf exponent",
}


def joined(written: str, ours: str) -> str:
    """Returns a note with what a person has written in the dashboard, if anything, and below it what we say now."""
    own = re.sub(rf"{re.escape(BEGIN)}.*{re.escape(END)}", "", written, flags=re.DOTALL)
    own = own.replace(BEGIN, "").replace(END, "").strip()  # a stray one would take along what is written below it
    return "\n\n".join([*([own] if own else []), BEGIN, ours.strip(), END])


# A trial.


def trial_note(study: Study, trial: FrozenTrial) -> str:
    """Returns what is known of a trial, from its first rung on: at most some 15,000 characters, usually 1,000."""
    facts = trial.user_attrs
    problem = trial_problem(facts, trial.system_attrs)
    if problem is not None:
        return f"{_headline(study, trial)}\n\nIts attributes are not as workers write them: {code(problem)}\n"
    parts = [_headline(study, trial), *_why(facts), *_facts(facts), *_configuration(trial), *_curve(study, trial)]
    traceback = str(facts.get("traceback", "")).strip()[-TRACEBACK_CHARACTERS:]
    parts += ["What its code said:", shown(traceback)] if traceback else []
    parts += [
        *_measures(facts),
        *(part for sample in trial.system_attrs.get(SAMPLES_ATTRIBUTE, []) for part in _sample(sample)),
    ]
    return "\n\n".join(parts) + "\n"


def _headline(study: Study, trial: FrozenTrial) -> str:
    rung = max(trial.intermediate_values, default=0)
    what = {
        TrialState.COMPLETE: f"Complete: {quality(trial):.4f} bits per byte" if trial.values else "Complete",
        TrialState.PRUNED: f"Pruned at rung {rung} of {study.trial.rungs}" if rung else "Ended before its first rung",
        TrialState.FAIL: "Failed" if trial.user_attrs.get("reason") else f"Failed: {NO_WORKER}",
        TrialState.RUNNING: f"Running, rung {rung} of {study.trial.rungs}",
        TrialState.WAITING: "Waiting for a worker",
    }[trial.state]
    if ended_by_no_worker(trial):
        return f"**{what}**\n\n**No result**: {NO_WORKER}; never the best trial"
    beyond = ", ".join(f"{code(name)} by {by:.0%}" for name, by in excess(trial).items())
    return f"**{what}**" + (f"\n\n**Infeasible**: exceeds {beyond}; never the best trial" if beyond else "")


def _why(facts: dict[str, Any]) -> list[str]:
    reason = str(facts.get("reason", ""))[:REASON_CHARACTERS]
    return [shown(reason)] if reason else []


def _facts(facts: dict[str, Any]) -> list[str]:
    known = {
        "parameters": _number(facts.get("parameter_count")),
        "speed": _number(facts.get("tokens_per_second"), " tokens/s"),
        "memory": _number(facts.get("peak_memory_bytes"), " MiB", 2**20),
        "trained on": _number(facts.get("tokens"), " tokens"),
        "for": _number(facts.get("training_seconds"), " s"),
        "worker": code(_value(facts["worker"])) if facts.get("worker") else "",
        "attempts": _number(facts.get("attempts") if facts.get("attempts", 1) != 1 else None),
        "crashes": _number(facts.get("crashes")),
        "retry of trial": _number(facts.get("retry_of")),
    }
    rows = [(name, value) for name, value in known.items() if value]
    return [_table(("", ""), rows)] if rows else []


def _configuration(trial: FrozenTrial) -> list[str]:
    whole = flat(trial.user_attrs.get("configuration") or {})
    searched = trial.params
    fixed = {name: value for name, value in whole.items() if name not in searched and value != USUAL.get(name)}
    rows = [(code(_value(name)), code(_value(value)), "searched") for name, value in searched.items()]
    rows += [(code(_value(name)), code(_value(value)), "given") for name, value in fixed.items()]
    return [_table(("setting", "value", ""), rows) + "\n\nWhat is not listed has its default."] if rows else []


def _curve(study: Study, trial: FrozenTrial) -> list[str]:
    values = sorted(trial.intermediate_values.items())
    if not values:
        return []
    spent, unit = (study.trial.tokens, "tokens") if study.trial.tokens is not None else (study.trial.seconds, "seconds")
    rows = [
        (str(rung), f"{(spent or 0) * rung / study.trial.rungs:,.0f}", f"{value:.4f}")
        for rung, value in _thinned(values)
    ]
    return [f"`{sparkline([value for _, value in values][-60:])}`", _table(("rung", unit, "bits per byte"), rows)]


def _thinned(values: list[tuple[int, float]]) -> list[tuple[int, float]]:
    """Some of many rungs, evenly, with the last one."""
    step = -(-len(values) // CURVE_ROWS)
    return values[::-1][::step][::-1]


def sparkline(values: Sequence[float]) -> str:
    """Returns a curve as one line of blocks; what is no number is a blank."""
    finite = [value for value in values if abs(value) < float("inf")]
    low, high = min(finite, default=0.0), max(finite, default=0.0)
    scale = 7 / (high - low) if high > low else 0.0
    return "".join("▁▂▃▄▅▆▇█"[round((one - low) * scale)] if abs(one) < float("inf") else " " for one in values)


def _measures(facts: dict[str, Any]) -> list[str]:
    if facts.get("text") is None or facts.get("text_divergence") is None:
        return []
    written = {"text_divergence": facts["text_divergence"], **facts["text"]}
    human = {"text_divergence": 0, **facts["human_text"]}
    known = {name: (written.get(name), human.get(name)) for name in MEASURES}
    rows = [
        (MEASURES[name], f"{own:.4g}", f"{theirs:.4g}")
        for name, (own, theirs) in known.items()
        if None not in (own, theirs)
    ]
    return [_table(("measure", "this model", "people"), rows)]


def _sample(sample: dict[str, str]) -> list[str]:
    return ["After", shown(sample["prompt"]), "it writes", shown(sample["text"])]


def shown(text: str) -> str:
    """Returns a text as a block of Markdown; long lines are broken between words, for the page does not."""
    return fenced("\n".join(piece for line in text.split("\n") for piece in _broken(line)))


def _broken(line: str) -> list[str]:
    """A line in pieces of at most WIDTH characters, which make up the whole line."""
    return wrap(line, WIDTH, drop_whitespace=False, replace_whitespace=False, expand_tabs=False) or [""]


# A study.


def study_note(now: Row, board: Sequence[FrozenTrial], importance: Sequence[str] = ()) -> str:
    """Returns what a study is and has come to; `board` are its trials that keep the limits, the best one first.

    `importance` is what to say beside the dashboard's chart of importances, in Markdown.
    """
    return "\n\n".join(
        [
            _what(now.study),
            _links(now),
            _budget(now),
            *_workers(now),
            *_board(now, board),
            *_importance(importance),
            *_failed(now),
            *_confirmation(now),
        ]
    )


def _what(study: Study) -> str:
    trial = f"{study.trial.tokens:,} tokens" if study.trial.tokens is not None else f"{study.trial.seconds:g} seconds"
    searched = ", ".join(code(name) for name in study.space.searched)
    about = f"Searches {searched}" if searched else "Searches nothing: all is fixed"
    if study.confirms is not None:
        about = f"Trains the best trials of study {code(study.confirms)} again with fresh seeds"
    return (
        f"## {code(study.name)}\n\n{about}, for the lowest {' and '.join(study.objectives).replace('_', ' ')} on "
        f"{code(study.corpus.described)}. A full trial reads {trial}, in {study.trial.rungs} rungs."
    )


def _links(now: Row) -> str:
    return f"[Steer this study](/tuner/{now.study_id}) or [read its report](/tuner/{now.study_id}/report)."


def _budget(now: Row) -> str:
    counts = now.counts
    states = {"complete": counts.complete, "pruned": now.pruned, "running": counts.running}
    others = {"did not fit": now.unfit, "failed": counts.fail, "waiting": counts.waiting}
    states |= {name: count for name, count in others.items() if count}
    spent = [f"{now.done} trials"] if now.study.trials is not None else []
    hours = now.study.budget.hours
    spent += [f"{duration(now.active_seconds)} of {duration(3600 * hours)}"] if hours is not None else []
    filled = round(20 * now.spent)
    bar = f"`{'█' * filled}{'░' * (20 - filled)}` {now.spent:.0%}: {', '.join(spent)}"
    left = "" if now.seconds_left is None else f", about {duration(now.seconds_left)} left"
    numbers = ", ".join(f"{count:,} {state}" for state, count in states.items())
    blocked = "" if now.blocked is None else f"\n\n{shown(str(now.blocked))}"
    hints = "".join(f"\n\n{hint}" for hint in _hints(now))
    return f"**{now.state.capitalize()}**{left}\n\n{bar} ({numbers}){hints}{blocked}"


def _hints(now: Row) -> list[str]:
    """The next step, its commands as code, and what helps against trials that do not fit."""
    step = now.next_step
    said = "" if step is None else str(Step(step.said, tuple(map(code, step.commands))))
    return [hint for hint in (said, unfit_hint(now)) if hint]


def _workers(now: Row) -> list[str]:
    if not now.workers:
        return []
    rows = []
    for worker in now.workers[:WORKER_ROWS]:
        words = activity(worker)
        trial = "" if worker.trial is None else _link(now, worker.trial)
        rows.append((str(worker.number), code(words["place"]), trial, *map(_cell, list(words.values())[2:])))
    more = len(now.workers) - len(rows)
    columns = ("worker", "where", "trial", "trains", "progress", "speed", "memory", "last heartbeat")
    return ["### Workers", _table(columns, rows), *([f"and {more} more"] if more > 0 else [])]


def _board(now: Row, board: Sequence[FrozenTrial]) -> list[str]:
    beyond = now.counts.complete - now.external - len(board)
    infeasible = [f"Beyond the limits, and not listed: {counted(beyond, 'completed trial')}."] if beyond > 0 else []
    infeasible += [f"Ended by no worker, and not listed: {counted(now.external, 'trial')}."] if now.external else []
    if not board:
        return infeasible or ["No trial is complete yet."]
    best = front(list(board)) if len(now.study.objectives) > 1 else board
    columns, rows = _filled(BOARD_COLUMNS, [_board_row(now, trial) for trial in best[:BOARD_ROWS]])
    commands = f"```sh\n{_command('export', now)}\ntuner train best.yaml -o my-run\n```"
    return ["### Best trials", _table(columns, rows), *infeasible, commands]


def _filled(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> tuple[list[str], list[list[str]]]:
    """The columns that some row has a text in: on a phone each one counts."""
    kept = [index for index in range(len(columns)) if any(row[index] for row in rows)]
    return [columns[index] for index in kept], [[row[index] for index in kept] for row in rows]


def _importance(hints: Sequence[str]) -> list[str]:
    return ["### Importance", *hints] if hints else []


def _board_row(now: Row, trial: FrozenTrial) -> tuple[str, ...]:
    facts = trial.user_attrs
    divergence = facts.get("text_divergence")
    return (
        _link(now, trial.number),
        f"{quality(trial):.4f}",
        _confirmed(now, trial.number),
        "" if divergence is None else f"{divergence:.4f}",
        _number(facts.get("parameter_count")),
        _number(facts.get("tokens_per_second")),
        code(configured(trial)[:300]),
    )


def _confirmed(now: Row, number: int) -> str:
    if now.confirmation is None:
        return ""
    one = next((one for one in now.confirmation["candidates"] if one["trial"] == number), None)
    if one is None:
        return "no"
    star = ", chosen" if now.confirmation["winner"] == number else ""
    return f"{one['mean']:.4f} ± {one['high'] - one['mean']:.4f}{star}"


def _failed(now: Row) -> list[str]:
    failed = counted(now.counts.fail, "trial")
    return [f"{failed} failed: {code(_command('status', now, '--failed'))}"] if now.counts.fail else []


def _confirmation(now: Row) -> list[str]:
    if now.confirmation is None:
        return []
    return ["### Confirmation", shown("\n".join(lines(now.confirmation)))]


def _command(name: str, now: Row, *more: str) -> str:
    return shlex.join(["tuner", name, now.study.name, *more])


def _link(now: Row, number: int) -> str:
    return f"[{number}](/dashboard/studies/{now.study_id}/trials?numbers={number})"


def _table(columns: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    return "\n".join(_rows([columns, ["---"] * len(columns), *rows]))


def _rows(rows: Iterable[Sequence[str]]) -> Iterator[str]:
    for row in rows:
        yield f"| {' | '.join(row)} |"


def _cell(text: str) -> str:
    """A cell of words: those of our own as they are, all else as code."""
    return text if not text or re.fullmatch(r"[\w ,.%/]+", text) else code(text)


def _number(value: Any, unit: str = "", by: float = 1) -> str:
    return f"{value / by:,.0f}{unit}" if isinstance(value, int | float) else ""


def _value(value: Any) -> str:
    text = f"{value:.4g}" if isinstance(value, float) else str(value)
    return text if len(text) <= VALUE_CHARACTERS else text[: VALUE_CHARACTERS - 1] + "…"

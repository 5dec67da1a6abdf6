"""Notes of trials and studies: readable, complete, small, and safe whatever a model writes."""

from collections.abc import Callable
from typing import Any

import optuna
import pytest
from hypothesis import given
from hypothesis import strategies as st
from markdown_it import MarkdownIt
from optuna.distributions import CategoricalDistribution
from optuna.storages import RDBStorage
from optuna.trial import FrozenTrial, TrialState, create_trial

from models.safe_text.markdown import code, fenced
from tests.tuner.conftest import WRITTEN
from tuner.results.summary import Row
from tuner.storage.leases import Counts, Leases, Worker
from tuner.study.definition import Study
from tuner.trials.attachments import SAMPLES_ATTRIBUTE, samples_kept
from tuner.watch.notes import BEGIN, END, joined, shown, sparkline, study_note, trial_note

EVIL = "`|` </td><script>alert(1)</script> [x](javascript:1) \x1b[2J **b** ![i](http://x/i.png)\n\n# title"
TEXTS: dict[str, Any] = {
    "text_divergence": 0.0812,
    "text": {"bleu": 9.5, "self_bleu": 7.4, "rouge_l": 0.07, "distinct_1": 0.6, "distinct_2": 0.9, "distinct_3": 1.0}
    | {"repetition": 0.01, "zipf": 0.8},
    "human_text": {"bleu": 9.9, "self_bleu": 7.0, "rouge_l": 0.08, "distinct_1": 0.7, "distinct_2": 0.9}
    | {"distinct_3": 1.0, "repetition": 0.0, "zipf": 0.9},
}
SAMPLE = [{"prompt": "Once upon", "text": " a time, there"}, {"prompt": "In", "text": "deed"}]
FACTS: dict[str, Any] = {
    "parameter_count": 12345,
    "tokens_per_second": 678,
    "peak_memory_bytes": 2**30,
    "worker": "host cuda:1",
}


def made(state: TrialState = TrialState.COMPLETE, rungs: int = 3, **facts: Any) -> FrozenTrial:
    system = facts.pop("system", {})
    facts = WRITTEN | facts
    value = 2.5 if state == TrialState.COMPLETE else None
    curve = {rung: 3.0 - rung / 10 for rung in range(1, rungs + 1)}
    distribution = CategoricalDistribution(["gru", EVIL])
    params = {"architecture": facts.pop("architecture", "gru")}
    trial = create_trial(
        state=state, value=value, intermediate_values=curve, user_attrs=facts, system_attrs=system, params=params,
        distributions={"architecture": distribution},
    )  # fmt: skip
    trial.number = 0
    return trial


def html(note: str) -> str:
    return MarkdownIt("commonmark", {"html": False}).enable("table").render(note)


def test_a_note_of_a_completed_trial_has_all_that_is_known(small: Callable[..., Study]) -> None:
    facts = FACTS | TEXTS | {"configuration": {"architecture": "gru", "hidden_size": 77, "seed": 0}}
    page = html(trial_note(small(), made(**facts, system={SAMPLES_ATTRIBUTE: SAMPLE})))
    assert page.count("<table>") == 4  # facts, configuration, curve, measures
    for text in ("Complete: 2.5000", "12,345", "1,024 MiB", "678 tokens/s", "host cuda:1", "hidden_size", "4,096", "▁"):
        assert text in page
    for text in ("Once upon", " a time, there", "deed", "0.0812", "9.5", "self-BLEU", "2.7000"):
        assert text in page
    assert "seed" not in page  # it has its default


def test_a_failed_trial_says_why_and_where(small: Callable[..., Study]) -> None:
    facts = {"reason": "ValueError: no", "traceback": "Traceback:\n  in here", "attempts": 3, "crashes": 3}
    page = html(trial_note(small(), made(TrialState.FAIL, rungs=0, **facts)))
    assert page.count("<pre>") == 2
    for text in ("Failed", "ValueError: no", "  in here", "attempts", "crashes"):
        assert text in page


def test_what_did_not_fit_is_infeasible(small: Callable[..., Study]) -> None:
    page = html(trial_note(small(), made(TrialState.PRUNED, rungs=0, system={"constraints:memory": 0.25})))
    assert "Ended before its first rung" in page
    assert "<strong>Infeasible</strong>: exceeds <code>memory</code> by 25%" in page


def test_a_note_is_small_whatever_a_trial_did(small: Callable[..., Study]) -> None:
    facts = {"reason": "x" * 10**5, "traceback": "y" * 10**5, "worker": "h" * 10**4, "architecture": EVIL}
    long = made(TrialState.FAIL, rungs=1000, **facts, **TEXTS, system={SAMPLES_ATTRIBUTE: SAMPLE})
    note = trial_note(small(trial={"tokens": 10**6, "rungs": 1000}), long)
    assert len(note) < 15_000
    assert html(note).count("<tr>") < 40
    assert "| 1000 |" in note


@pytest.mark.parametrize("place", ["reason", "traceback", "worker", "architecture", "prompt", "text", "limit", "name"])
def test_nothing_in_a_note_is_markup(small: Callable[..., Study], place: str) -> None:
    facts: dict[str, Any] = {"reason": "r", "worker": "w"}
    system: dict[str, Any] = {SAMPLES_ATTRIBUTE: [{"prompt": "p", "text": "t"} | {place: EVIL}]}
    system |= {f"constraints:{EVIL}": 1.0} if place == "limit" else {}
    facts |= {"configuration": {EVIL: EVIL}} if place == "name" else {}
    facts |= {place: EVIL} if place in ("reason", "traceback", "worker", "architecture") else {}
    page = html(trial_note(small(), made(**facts, system=system)))
    assert not any(mark in page for mark in ("<script", "<a ", "<img", "<h1", "</td><script", "\x1b"))
    assert "script" in page
    for row in page.split("<tr>")[1:]:
        assert row.count("<td") <= 3


@given(st.text())
def test_no_text_is_markup(text: str) -> None:
    tokens = MarkdownIt("commonmark").parse(fenced(text) + "\n\nbehind")
    assert [token.type for token in tokens][:2] == ["fence", "paragraph_open"]
    assert "".join(tokens[0].content.split()) == "".join(fenced(text).split("\n", 1)[1].rsplit("\n", 1)[0].split())


@given(st.text())
def test_code_is_one_cell(text: str) -> None:
    page = html(f"| a | b |\n|---|---|\n| {code(text)} | end |")
    assert page.count("<td>") == 2
    assert page.count("<code>") == 1


@pytest.mark.parametrize(
    "text",
    ["```\n<script>alert(1)</script>\n```", "~~~\n# title", "a\x00b\x1b[31m", "`" * 50, "a\r\nb\tc", "\u202eevil", ""],
)
def test_markup_and_control_characters_are_shown_as_text(text: str) -> None:
    html = MarkdownIt("commonmark").render(fenced(text))
    assert html.startswith("<pre><code")
    assert "<script" not in html
    assert not set(html) & {"\x00", "\x1b", "\r", "\u202e"}


def test_long_lines_are_broken_and_nothing_is_lost() -> None:
    text = "word " * 60 + "\n\nend"
    block = shown(text)
    assert max(map(len, block.splitlines())) == 100
    assert set(shown("a " + text).split()) == {"```text", "```", "a", "word", "end"}  # no line ends within a word
    assert block.replace("\n", "") == fenced(text).replace("\n", "")


def test_a_curve_is_a_line_of_blocks() -> None:
    assert sparkline([3.0, 2.0, float("nan"), 1.0, float("inf")]) == "█▅ ▁ "
    assert sparkline([2.0, 2.0]) == "▁▁"
    assert sparkline([]) == ""


# A study.

WORKER = Worker(3, EVIL, 17, "cuda:0", 2, 1.0, 6, "gru", 0.5, 65432.1, 3 * 2**20)


def row(study: Study, **changes: Any) -> Row:
    counts = Counts(complete=3, pruned=2, running=1, waiting=1, fail=2)
    values: dict[str, Any] = {"counts": counts, "workers": [WORKER], "active_seconds": 50.0, "study_id": 7, "best": 2.5}
    values["trial_seconds"] = 20.0
    return Row(study, **(values | {"best_trial": 0} | changes))


def test_the_note_of_a_study_says_what_where_how_far_who_and_how_good(small: Callable[..., Study]) -> None:
    study = small(10, name="it's mine")
    confirmation = {
        "seeds": 2, "interval": "95%", "dropped": [], "winner": 0, "within_seed_noise": [], "chosen": "best",
        "test": None,
        "candidates": [{"trial": 0, "mean": 2.6, "low": 2.5, "high": 2.7, "reported": 2.5}
            | {"parameter_count": 1, "tokens_per_second": 1}],
    }  # fmt: skip
    note = study_note(row(study, confirmation=confirmation), [made(**FACTS)])
    page = html(note)
    for text in ("Running", "5/10 trials", "50%", "██████████░", "0:01:30 left", "1 s ago", "65,432 tokens/s"):
        assert text in page
    assert '<a href="/dashboard/studies/7/trials?numbers=6">6</a>' in page
    assert '<a href="/dashboard/studies/7/trials?numbers=0">0</a>' in page
    assert "tuner export 'it'\"'\"'s mine'" in note
    assert "2.6000 ± 0.1000, chosen" in page
    assert "Beyond the limits, and not listed: 2 completed trials." in page
    assert "2 trials failed: <code>tuner status 'it'&quot;'&quot;'s mine' --failed</code>" in page
    assert "Trial 0 is chosen: best." in page
    assert not any(mark in page for mark in ("<script", "<img", "<h1", "\x1b"))


def test_the_note_of_a_study_that_has_just_begun(small: Callable[..., Study]) -> None:
    now = row(small(None, budget={"hours": 1}), counts=Counts(), workers=[], active_seconds=36.0)
    note = study_note(now, [])
    for text in ("No worker is there", "tuner work small-", "No trial is complete yet", "0:00:36 of 1:00:00"):
        assert text in note


def test_the_note_of_a_study_stays_short(small: Callable[..., Study]) -> None:
    now = row(small(), workers=[WORKER] * 500)
    note = study_note(now, [made(**FACTS, architecture=EVIL)] * 5000)
    assert "and 460 more" in note
    assert len(note) < 25_000


def test_what_a_person_wrote_stays_above_ours() -> None:
    first = joined("", "ours")
    assert first == f"{BEGIN}\n\nours\n\n{END}"
    edited = joined(first.replace(BEGIN, f"Mine.\n\n{BEGIN}"), "newer")
    assert edited == f"Mine.\n\n{BEGIN}\n\nnewer\n\n{END}"
    assert joined(edited + "\nBelow.", "newest") == f"Mine.\n\n\nBelow.\n\n{BEGIN}\n\nnewest\n\n{END}"
    assert joined(joined("", f"a model writes {END}"), "ours") == first
    assert "tuner" not in html(first)


def test_samples_are_kept_short(
    small: Callable[..., Study], enter: Callable[[Study], optuna.Study], storage: RDBStorage
) -> None:
    found = enter(small())
    trial, leases = found.ask(), Leases(storage, found._study_id)
    for _ in range(2):  # a request may be done twice
        texts = samples_kept([{"prompt": "p" * 5000 + "end", "text": "begin" + "\x00" * 5000}])
        leases.note(trial._trial_id, texts, "system")
    (kept,) = trial.storage.get_trial(trial._trial_id).system_attrs[SAMPLES_ATTRIBUTE]
    assert kept["prompt"].endswith("end")
    assert kept["text"].startswith("begin")
    assert max(map(len, kept.values())) == 1000

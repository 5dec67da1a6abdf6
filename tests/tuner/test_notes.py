"""Notes of trials: readable, complete, and safe whatever a model writes."""

import pytest
from hypothesis import given
from hypothesis import strategies as st
from markdown_it import MarkdownIt

from models.report import fenced
from tuner.notes import shown, trial_note

FACTS = {
    "text_divergence": 0.0812,
    "text": {"bleu": 9.5, "self_bleu": 7.4, "rouge_l": 0.07, "distinct_1": 0.6, "distinct_2": 0.9, "distinct_3": 1.0}
    | {"repetition": 0.01, "zipf": 0.8},
    "human_text": {"bleu": 9.9, "self_bleu": 7.0, "rouge_l": 0.08, "distinct_1": 0.7, "distinct_2": 0.9}
    | {"distinct_3": 1.0, "repetition": 0.0, "zipf": 0.9},
}
SAMPLES = [{"prompt": "Once upon", "text": " a time, there"}, {"prompt": "In", "text": "deed"}]


def test_a_note_has_the_measures_and_the_samples() -> None:
    html = MarkdownIt("commonmark").enable("table").render(trial_note(FACTS, SAMPLES))
    assert html.count("<tr>") == 1 + 9
    for text in ("Once upon", " a time, there", "deed", "0.0812", "9.5", "self-BLEU"):
        assert text in html


def test_a_note_of_a_short_trial_has_the_samples_alone() -> None:
    html = MarkdownIt("commonmark").enable("table").render(trial_note({}, SAMPLES))
    assert "<table" not in html
    assert html.count("<pre>") == 4


@given(st.text())
def test_no_text_is_markup(text: str) -> None:
    tokens = MarkdownIt("commonmark").parse(fenced(text) + "\n\nbehind")
    assert [token.type for token in tokens][:2] == ["fence", "paragraph_open"]
    assert "".join(tokens[0].content.split()) == "".join(fenced(text).split("\n", 1)[1].rsplit("\n", 1)[0].split())


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
    assert block.replace("\n", "") == fenced(text).replace("\n", "")

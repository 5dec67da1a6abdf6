"""Untrusted text in Markdown, shown literally whatever markup it contains."""

from __future__ import annotations

import re


def fenced(text: str) -> str:
    """Returns text as a Markdown code block that nothing in it can end; control characters become U+FFFD."""
    text = visible(text, "\n\t")
    fence = "`" * max(3, 1 + _longest_run(text))
    return f"{fence}text\n{text}\n{fence}"


def code(text: str) -> str:
    """Returns text as code within a line, or within a cell of a table, that nothing in it can end."""
    text = visible(" ".join(text.split())).replace("|", "\u2223")  # a bar would end a cell, even in code
    fence = "`" * (1 + _longest_run(text))
    return f"{fence} {text} {fence}" if "`" in text else f"`{text or ' '}`"


def visible(text: str, kept: str = "") -> str:
    """Returns text with U+FFFD for what cannot be seen, but for the characters that are `kept`."""
    if text.translate(dict.fromkeys(map(ord, kept))).isprintable():  # as nearly all text, and many times faster
        return text
    return "".join(one if one.isprintable() or one in kept else "\ufffd" for one in text)


def _longest_run(text: str) -> int:
    return max((len(run) for run in re.findall("`+", text)), default=0)

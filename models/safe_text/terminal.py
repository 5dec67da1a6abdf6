"""Untrusted text in a terminal: control characters are shown as symbols."""

from __future__ import annotations

import sys

_CONTROLS = {code: 0x2400 + code for code in range(0x20)} | {0x7F: 0x2421}
_UNSEEN = [
    *range(0x80, 0xA0),
    0x61C,
    0x200E,
    0x200F,
    *range(0x2028, 0x202F),
    *range(0x2066, 0x206A),
    *range(0xD800, 0xE000),
]
_SYMBOLS = _CONTROLS | dict.fromkeys(_UNSEEN, 0xFFFD)
"""What stands for a character: ␛ for ESC and so on, and � for those that reorder text or are half a character."""

_IN_LINES = {code: symbol for code, symbol in _SYMBOLS.items() if chr(code) not in "\n\t"}


def line(text: str) -> str:
    """Returns text as one line without control characters, for names, values and hosts."""
    return text.translate(_SYMBOLS)


def lines(text: str) -> str:
    """Returns text without control characters other than newlines and tabs, for messages and tracebacks."""
    return text.translate(_IN_LINES)


def printed(text: str) -> str:
    """Returns what a model wrote as standard output may have it: as it is in a file or pipe, safe on a terminal."""
    return lines(text) if sys.stdout.isatty() else text

"""Numbers and times in words, each written in one way wherever people read it."""

from collections.abc import Sequence
from datetime import timedelta

LONGEST_SECONDS = 1e12
"""The longest time that is shown, some 30,000 years: a budget may be any number."""


def counted(number: int, what: str) -> str:
    """Returns a number of things, as in 1 trial, 2 trials."""
    return f"{number:,} {what}{'' if number == 1 else 's'}"


def listed(names: Sequence[str], most: int) -> str:
    """Returns names in a row, the first `most` of them: a, b and 3 more."""
    more = f" and {len(names) - most:,} more" if len(names) > most else ""
    return ", ".join(names[:most]) + more


def size(bytes: int) -> str:
    """Returns bytes in the unit that fits: 812 bytes, 3.4 kB, 1.2 GB."""
    if bytes < 1000:
        return counted(bytes, "byte")
    number, units = bytes / 1000, ["kB", "MB", "GB", "TB"]
    while number >= 999.5 and len(units) > 1:
        number, units = number / 1000, units[1:]
    return f"{number:.3g} {units[0]}"


def duration(seconds: float) -> str:
    """Returns a time as h:mm:ss."""
    return str(timedelta(seconds=round(min(seconds, LONGEST_SECONDS))))


def short_duration(seconds: float) -> str:
    """Returns a time as h:mm:ss, but in tenths of a second below a minute."""
    return f"{seconds:.1f} s" if seconds < 60 else duration(seconds)


def rough_duration(seconds: float) -> str:
    """Returns a time that is only guessed: 42 s, 12 min, 3.5 h."""
    if seconds < 100:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 6000 else f"{seconds / 3600:.1f} h"

"""Text from outside cannot act on a terminal, and loses nothing that can be read."""

import click
import pytest
from hypothesis import given
from hypothesis import strategies as st

from models.safe_text import terminal

EVIL = "\x1b[2J\x1b]0;mine\x07\x9b31m\r\x7f\u202eback\u2028"


@given(st.text())
def test_no_character_acts_on_a_terminal(text: str) -> None:
    for safe, kept in ((terminal.line(text), ""), (terminal.lines(text), "\n\t")):
        assert not [one for one in safe if (ord(one) < 32 or 127 <= ord(one) < 160) and one not in kept]
        assert len(safe) == len(text)


def test_what_can_be_read_stays() -> None:
    text = "größer 大きい \u00a0 👩\u200d💻 [b]"
    assert terminal.line(text) == terminal.lines(text) == text
    assert terminal.line("a\n\tb\x1b") == "a␊␉b␛"
    assert terminal.lines("a\n\tb\x1b") == "a\n\tb␛"


def test_a_models_text_is_made_safe_on_a_terminal_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    assert terminal.printed(EVIL) == EVIL
    monkeypatch.setattr("sys.stdout.isatty", lambda: True, raising=False)
    assert terminal.printed(EVIL) == terminal.lines(EVIL) != EVIL


def test_an_error_message_cannot_act_on_the_terminal(capsys: pytest.CaptureFixture[str]) -> None:
    from models.__main__ import main
    from models.errors import UserError

    @click.command()
    def fail() -> None:
        raise UserError(EVIL)

    with pytest.raises(SystemExit):
        main(fail, [])
    assert not set(capsys.readouterr().err) & {"\x1b", "\x07", "\x9b", "\r"}

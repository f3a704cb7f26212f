"""Output for people: a pipe gets complete text, and Discord's escapes are removed."""

from __future__ import annotations

import pytest
from rich.table import Table
from rtfm_cli.ask import unescape_markdown
from rtfm_cli.tables import table_console


def test_a_table_in_a_pipe_is_as_wide_as_what_is_in_it(capsys: pytest.CaptureFixture[str]) -> None:
    """A table in a pipe is as wide as its content, so that `rtfm-cli status | grep …` finds complete names."""
    name = "discord-message-processor-answer " * 10
    table = Table("group", "lag", box=None)
    table.add_row(name, "3")
    table_console().print(table)
    assert name in capsys.readouterr().out


def test_an_answer_on_a_terminal_has_no_escapes() -> None:
    """An answer on a terminal has no backslashes before Markdown characters, which only Discord needs."""
    assert unescape_markdown(r"> use \*all\* of it, dfx\_harrow [1]") == "> use *all* of it, dfx_harrow [1]"


def test_backslashes_of_code_stay() -> None:
    """Backslashes in code stay, because they are part of a quoted command."""
    answer = "run `find . -exec rm {} \\;` or\n```\nC:\\_x\n```"
    assert unescape_markdown(answer) == answer

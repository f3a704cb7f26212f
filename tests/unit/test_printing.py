"""Commands print data as text, so that the data cannot control the terminal or format the output."""

from __future__ import annotations

import ast
import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rtfm_cli import main
from rtfm_cli.options import echo_json
from rtfm_cli.printing import echo, escape_unprintable, json_text
from rtfm_cli.tables import Table, styled, table_console

CLI = Path(__file__).parents[2] / "cli" / "rtfm_cli"
HOSTILE = "\x1b[2J\x1b]0;owned\x07\x9b31m\r\u202eabc\u2028def\x00[/nope][bold]"


def _is_safe(shown: str) -> bool:
    return all(character.isprintable() or character in "\n\t\u200b\u200c\u200d" for character in shown)


@given(st.text())
def test_control_characters_are_escaped(text: str) -> None:
    """Control characters are printed as readable escapes, in one line."""
    shown = escape_unprintable(text)
    assert _is_safe(shown)
    assert "\n" not in shown
    assert escape_unprintable(shown) == shown


def test_plain_text_is_unchanged() -> None:
    """Text in other scripts, composed emoji and combining marks are printed unchanged."""
    for text in ("Überraschung 日本語 e\u0301", "👩\u200d💻 🏳️", "naïve, [1] (a) <b>"):
        assert escape_unprintable(text) == text


def test_an_escape_shows_what_was_there() -> None:
    """An escape shows which character it replaces, because a reader of a dead letter needs to see the bytes."""
    assert escape_unprintable("a\x1b\x9b\u202e\n") == r"a\x1b\x9b\u202e\n"


def test_echo_prints_no_control_characters(capsys: pytest.CaptureFixture[str]) -> None:
    """`echo`, through which all commands print text, prints no control characters."""
    echo(f"name: {HOSTILE}\nnext")
    out = capsys.readouterr().out
    assert _is_safe(out)
    assert out.endswith("\nnext\n")


@given(st.recursive(st.text() | st.integers(), lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner)))
def test_json_for_scripts_is_safe_and_has_the_same_value(value: object) -> None:
    """JSON for scripts has the same value and no control characters, so that it is safe on a terminal."""
    written = json_text(value)
    assert _is_safe(written)
    assert json.loads(written) == value


def test_json_in_a_pipe_is_unchanged(capsys: pytest.CaptureFixture[str]) -> None:
    """A script that reads JSON from a pipe gets the original data."""
    echo_json({"key": HOSTILE, "more": "a\u200bb"})
    assert json.loads(capsys.readouterr().out) == {"key": HOSTILE, "more": "a\u200bb"}


def test_a_cell_is_text_and_no_markup(capsys: pytest.CaptureFixture[str]) -> None:
    """A cell of a table is text without markup; a key like ``[/nope]`` once made `dlq list` fail."""
    table = Table("key", box=None)
    table.add_row(HOSTILE)
    table.add_row(styled("[/nope]", "red"))
    table_console().print(table)
    out = capsys.readouterr().out
    assert out.count("[/nope]") == 2
    assert "[bold]" in out
    assert _is_safe(out)


def test_an_error_is_one_line_without_control_characters(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    """An error is one line without control characters, even if it names a file whose name contains them."""
    assert main.run(["import", str(tmp_path / f"a{HOSTILE.replace(chr(0), '').replace('/', '')}.json")]) == 2
    err = capsys.readouterr().err
    assert _is_safe(err)
    assert r"\x1b[2J" in err


def test_every_command_prints_through_these_functions() -> None:
    """Commands print and build table cells only through the modules printing and tables."""
    found = []
    for path in sorted(CLI.rglob("*.py")):
        if path.name in ("printing.py", "tables.py"):
            continue
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            where = f"{path.name}:{getattr(node, 'lineno', 0)}"
            if isinstance(node, ast.ImportFrom) and node.module in ("rich.table", "rich.text", "rich.markup", "rich"):
                found.append(f"{where} imports {node.module}")
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute):
                owner = node.func.value.id if isinstance(node.func.value, ast.Name) else ""
                if owner == "click" and node.func.attr in ("echo", "secho", "style", "echo_via_pager"):
                    found.append(f"{where} click.{node.func.attr}")
                if node.func.attr == "print" and any(isinstance(a, (ast.JoinedStr, ast.Constant)) for a in node.args):
                    found.append(f"{where} prints a string as markup")
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "print":
                found.append(f"{where} print")
    assert found == []

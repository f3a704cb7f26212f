"""What commands print for people: the one way out to the terminal.

Owns that nothing which came from outside (what was said, names, keys, files, other services' errors) reaches the
terminal as anything but text, and no secret of the settings at all. Tables are in ``rtfm_cli.tables``, so that rich is
only imported where there is one.
"""

from __future__ import annotations

import json
from typing import Any

import click

from rtfm.characters import escape_unprintable
from rtfm.redaction import redact

__all__ = ["echo", "escape_unprintable", "json_text"]


def echo(text: str = "", *, err: bool = False, nl: bool = True, fg: str | None = None, bold: bool = False) -> None:
    """Print lines, to stderr with ``err``. Escape data that must stay on its line with ``escape_unprintable`` first."""
    shown = redact(escape_unprintable(text, newlines=True))
    click.secho(shown, err=err, nl=nl, fg=fg, bold=bold or None)


def json_text(value: Any, *, indent: int | None = None) -> str:
    """JSON whose strings hold no character that a terminal would obey; it means the same."""
    written = redact(json.dumps(value, ensure_ascii=False, indent=indent))
    if written.isprintable():
        return written
    return "".join(
        character if character.isprintable() or character == "\n" else json.dumps(character)[1:-1]
        for character in written
    )

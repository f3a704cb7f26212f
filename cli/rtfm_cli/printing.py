"""What commands print for people: the one way out to the terminal.

Owns that nothing which came from outside (what was said, names, keys, files, other services' errors) reaches the
terminal as anything but text, and no secret of the settings at all. Tables are in ``rtfm_cli.tables``, so that rich is
only imported where there is one.
"""

from __future__ import annotations

import json
from typing import Any

import click

from rtfm.characters import printable
from rtfm.redaction import redacted

__all__ = ["echo", "json_text", "printable"]


def echo(text: str = "", *, err: bool = False, nl: bool = True, fg: str | None = None, bold: bool = False) -> None:
    """Print lines, to stderr with ``err``. Data that must stay on its line goes through ``printable`` before."""
    shown = redacted(printable(text, newlines=True))
    click.secho(shown, err=err, nl=nl, fg=fg, bold=bold or None)


def json_text(value: Any, *, indent: int | None = None) -> str:
    """JSON whose strings hold no character that a terminal would obey; it means the same."""
    written = redacted(json.dumps(value, ensure_ascii=False, indent=indent))
    if written.isprintable():
        return written
    return "".join(
        character if character.isprintable() or character == "\n" else json.dumps(character)[1:-1]
        for character in written
    )

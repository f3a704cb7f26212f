"""Prints lines for people, and JSON.

This module prints plain lines and JSON. It removes escape sequences from text that comes from outside (messages, names,
keys, files, errors of dependencies), and it removes the secrets of the settings. Tables and styled lines are in
``rtfm_cli.tables``, so that rich is imported only for them.
"""

from __future__ import annotations

import json
from typing import Any

import click

from rtfm.characters import escape_unprintable
from rtfm.redaction import redact

__all__ = ["echo", "escape_unprintable", "json_text"]


def echo(text: str = "", *, err: bool = False, nl: bool = True, fg: str | None = None, bold: bool = False) -> None:
    """Print lines on stdout, or on stderr with ``err``.

    Line feeds in ``text`` are printed. If data must stay on one line, call ``escape_unprintable`` for it first.
    """
    shown = redact(escape_unprintable(text, newlines=True))
    click.secho(shown, err=err, nl=nl, fg=fg, bold=bold or None)


def json_text(value: Any, *, indent: int | None = None) -> str:
    """Return JSON in which every character that a terminal would interpret is escaped."""
    written = redact(json.dumps(value, ensure_ascii=False, indent=indent))
    if written.isprintable():
        return written
    return "".join(
        character if character.isprintable() or character == "\n" else json.dumps(character)[1:-1]
        for character in written
    )

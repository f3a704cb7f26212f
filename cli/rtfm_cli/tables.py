"""Tables and styled lines for people. Square brackets in their text are printed, not read as rich's markup."""

from __future__ import annotations

import sys
from collections.abc import Iterable
from typing import Any

from rich import table, text
from rich.console import Console

from rtfm.redaction import redact
from rtfm_cli.printing import escape_unprintable


def table_console() -> Console:
    """Return the console for tables. It is as wide as the terminal; in a pipe it is so wide that no line is cut."""
    return Console(highlight=False, width=None if sys.stdout.isatty() else 10_000)


class Table(table.Table):
    """A rich table that prints each string literally and on one line."""

    def add_row(self, *cells: Any, **options: Any) -> None:
        """Add a row of strings or styled texts."""
        super().add_row(
            *(
                cell if isinstance(cell, text.Text) else text.Text(redact(escape_unprintable(str(cell))))
                for cell in cells
            )
        )


def print_table(columns: Iterable[str], rows: Iterable[Iterable[object]], *, pad_edge: bool = True) -> None:
    """Print ``rows`` below the names of the columns. If a cell is too wide for the terminal, it gets more lines."""
    shown = Table(box=None, pad_edge=pad_edge)
    for column in columns:
        shown.add_column(column, overflow="fold")
    for row in rows:
        shown.add_row(*row)
    table_console().print(shown)


def styled(content: str, style: str = "", *, newlines: bool = False) -> text.Text:
    """Return ``content`` as rich text in a style; with ``newlines``, line feeds are kept."""
    return text.Text(redact(escape_unprintable(content, newlines=newlines)), style=style)

"""Tables and styled lines for people, whose cells and words are text and never rich's markup."""

from __future__ import annotations

import sys
from collections.abc import Iterable
from typing import Any

from rich import table, text
from rich.console import Console

from rtfm.redaction import redact
from rtfm_cli.printing import escape_unprintable


def table_console() -> Console:
    """Where tables go: as wide as the terminal, and in a pipe as wide as the table, so that nothing is cut off."""
    return Console(highlight=False, width=None if sys.stdout.isatty() else 10_000)


class Table(table.Table):
    """A table of rich's: a cell that is a string is shown as it stands, on one line."""

    def add_row(self, *cells: Any, **options: Any) -> None:
        """Add a row of strings, or of what ``words`` made."""
        super().add_row(
            *(
                cell if isinstance(cell, text.Text) else text.Text(redact(escape_unprintable(str(cell))))
                for cell in cells
            )
        )


def print_table(columns: Iterable[str], rows: Iterable[Iterable[object]], *, pad_edge: bool = True) -> None:
    """Print ``rows`` below the names of their columns; a cell that is too wide for the terminal goes on below."""
    shown = Table(box=None, pad_edge=pad_edge)
    for column in columns:
        shown.add_column(column, overflow="fold")
    for row in rows:
        shown.add_row(*row)
    table_console().print(shown)


def words(said: str, style: str = "", *, newlines: bool = False) -> text.Text:
    """``said`` in a style; its own line feeds stay with ``newlines``."""
    return text.Text(redact(escape_unprintable(said, newlines=newlines)), style=style)

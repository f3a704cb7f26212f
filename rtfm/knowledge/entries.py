"""Ids of entries in Chroma: one for each passage and each message with a vector. Pure."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Literal

Table = Literal["passages", "messages"]
"""The table of the archive that stores the vector of an entry."""

TABLES: tuple[Table, ...] = ("passages", "messages")

PREFIX: dict[Table, str] = {"passages": "p", "messages": "m"}
"""The prefix that makes the id of an entry from the id of its row."""


def entry_id(table: Table, row_id: str) -> str:
    """Return the id of a row's entry."""
    return PREFIX[table] + row_id


def passage_entry(passage_id: str) -> str:
    """Return the id of a passage's own entry."""
    return entry_id("passages", passage_id)


def message_entry(message_id: str) -> str:
    """Return the id of a message's entry."""
    return entry_id("messages", message_id)


def row_ids(table: Table, entry_ids: Iterable[str]) -> list[str]:
    """Return the ids of the rows of ``table`` whose entries are among ``entry_ids``, in the same order."""
    prefix = PREFIX[table]
    return [entry_id.removeprefix(prefix) for entry_id in entry_ids if entry_id.startswith(prefix)]

"""Ids of entries in Chroma: one for each passage and each message that has a vector. Pure."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Literal

Table = Literal["passages", "messages"]
"""The table of the archive that keeps the vector of an entry."""

TABLES: tuple[Table, ...] = ("passages", "messages")

PREFIX: dict[Table, str] = {"passages": "p", "messages": "m"}
"""What stands before the id of the row in the id of its entry."""


def entry_id(table: Table, row_id: str) -> str:
    """The id of the entry of a row."""
    return PREFIX[table] + row_id


def passage_entry(passage_id: str) -> str:
    """The id of a passage's own entry."""
    return entry_id("passages", passage_id)


def message_entry(message_id: str) -> str:
    """The id of a message's entry."""
    return entry_id("messages", message_id)


def row_ids(table: Table, entry_ids: Iterable[str]) -> list[str]:
    """The ids of the rows whose entries are among ``entry_ids``, in the same order."""
    prefix = PREFIX[table]
    return [one.removeprefix(prefix) for one in entry_ids if one.startswith(prefix)]

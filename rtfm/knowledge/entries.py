"""The ids of entries in Chroma. A passage or message has an entry if it has a vector. Pure."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Literal

Table = Literal["passages", "messages"]
"""The archive's tables whose rows may have a vector, and thus an entry."""

TABLES: tuple[Table, ...] = ("passages", "messages")

PREFIX: dict[Table, str] = {"passages": "p", "messages": "m"}
"""The prefix for each table. The id of an entry is the prefix of the table, followed by the id of the row."""


def entry_id(table: Table, row_id: str) -> str:
    """Return the id of the entry of a row of ``table``."""
    return PREFIX[table] + row_id


def passage_entry(passage_id: str) -> str:
    """Return the id of the entry of a passage."""
    return entry_id("passages", passage_id)


def message_entry(message_id: str) -> str:
    """Return the id of the entry of a message."""
    return entry_id("messages", message_id)


def row_ids(table: Table, entry_ids: Iterable[str]) -> list[str]:
    """Return the row ids of those ``entry_ids`` that are entries of ``table``, in the same order."""
    prefix = PREFIX[table]
    return [entry_id.removeprefix(prefix) for entry_id in entry_ids if entry_id.startswith(prefix)]

"""The archive: every message, passage, stored answer and setting, in PostgreSQL.

An event that arrives late never overwrites a newer version of its message. Every write is idempotent. This package
does not embed texts and does not link messages, and it ranks passages by terms only.
"""

from __future__ import annotations

from rtfm.knowledge.archive.answers import StoredAnswer
from rtfm.knowledge.archive.collections import CollectionChanged
from rtfm.knowledge.archive.questions import OpenQuestion
from rtfm.knowledge.archive.removals import source_message_ids
from rtfm.knowledge.archive.rows import (
    Change,
    Channel,
    Erasures,
    GuildCollection,
    Place,
    StoredMessage,
    StoredPassage,
    guild_key,
)
from rtfm.knowledge.archive.sql import SqlArchive

__all__ = [
    "Change",
    "Channel",
    "CollectionChanged",
    "Erasures",
    "GuildCollection",
    "OpenQuestion",
    "Place",
    "SqlArchive",
    "StoredAnswer",
    "StoredMessage",
    "StoredPassage",
    "guild_key",
    "source_message_ids",
]

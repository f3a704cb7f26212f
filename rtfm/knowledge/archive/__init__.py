"""The archive: every message, passage, stored answer and setting, in PostgreSQL.

Owns the messages with their versions and deletions, and the answers that were given and sent. Promises that a late
event never overwrites a newer one, and that writing is idempotent. Does not embed, link or rank.
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

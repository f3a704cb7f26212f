"""The archive: the messages, passages, stored answers and guild settings, in PostgreSQL.

If an event arrives late, it does not overwrite a newer version of its message. Repeating a write changes nothing. This
package does not embed texts, link messages or compare vectors. It ranks passages by terms only.
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

"""The archive: every message and passage, in PostgreSQL.

Owns the record of what was said, with versions and deletions, and of what was answered and sent. Promises that a late
event never undoes a newer one, and that writing twice is writing once. Does not embed, link or rank.
"""

from __future__ import annotations

from rtfm.knowledge.archive.answers import KeptAnswer
from rtfm.knowledge.archive.collections import CollectionChanged
from rtfm.knowledge.archive.questions import OpenQuestion
from rtfm.knowledge.archive.removals import rests_on
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
    "KeptAnswer",
    "OpenQuestion",
    "Place",
    "SqlArchive",
    "StoredMessage",
    "StoredPassage",
    "guild_key",
    "rests_on",
]

"""Helpers for tests of the knowledge: messages like those of a chat, and a small substitute for the embedding model."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from functools import lru_cache
from typing import Any

import numpy as np
import psycopg
from attrs import frozen

from rtfm.events import ChannelKind, DiscordMessage, MessageChange, TimestampMillis
from rtfm.knowledge import Knowledge, Retriever
from rtfm.knowledge.archive import Channel, SqlArchive, StoredMessage
from rtfm.knowledge.embedding import DIMENSION
from rtfm.knowledge.float32 import Vectors
from rtfm.knowledge.vectors import ChromaVectors
from rtfm.knowledge.words import terms
from rtfm.settings import Settings
from rtfm.visibility import ChannelFacts

GUILD = "100"
CHANNEL = Channel(channel_id="200", guild_id=GUILD, facts=ChannelFacts(kind=ChannelKind.TEXT, parent_channel_id=None))
START = TimestampMillis(1_700_000_000_000)


@frozen
class RecordOfEvent:
    """A record as ingest receives it."""

    event: object


class WordEmbedding:
    """An embedding that gives similar vectors to texts that share words, because each word has its own direction.

    ``calls`` keeps the number of texts of each call. With another ``name``, each word has another direction.
    """

    def __init__(self, name: str = "words", dimension: int = DIMENSION) -> None:
        self.name = name
        self.dimension = dimension
        self.calls: list[int] = []
        self.texts: list[str] = []

    def embed(self, texts: Sequence[str]) -> Vectors:
        """Return unit vectors of shape (len(texts), dimension)."""
        self.calls.append(len(texts))
        self.texts += texts
        vectors = np.zeros((len(texts), self.dimension), dtype=np.float32)
        for row, text in enumerate(texts):
            for word in set(terms(text)) or {""}:
                vectors[row] += _direction(f"{self.name} {word}", self.dimension)
            vectors[row] /= np.linalg.norm(vectors[row])
        return vectors


@lru_cache(maxsize=10_000)
def _direction(word: str, dimension: int) -> Vectors:
    seed = int.from_bytes(hashlib.sha256(word.encode()).digest()[:4], "big")
    return np.random.default_rng(seed).standard_normal(dimension, dtype=np.float32)


def knowledge_of(settings: Settings, embedding: WordEmbedding | None) -> Knowledge:
    """Return the knowledge over the real stores of ``settings``, with a migrated archive."""
    archive = SqlArchive(settings.database_url)
    archive.migrate()
    vectors = ChromaVectors(settings.chroma_url, settings.kafka_topic_prefix)
    return Knowledge(
        archive=archive, vectors=vectors, embedding=embedding, retriever=Retriever(archive, vectors, embedding)
    )


def message(number: int, content: str, **fields: Any) -> DiscordMessage:
    """Return message ``number``; by default, author 1 wrote it in channel 200, ``number`` minutes after ``START``."""
    values: dict[str, Any] = {
        "message_id": str(1000 + number),
        "guild_id": GUILD,
        "channel_id": "200",
        "channel_kind": ChannelKind.TEXT,
        "author_id": "1",
        "author_name": "ada",
        "content": content,
        "created_at": TimestampMillis(START + number * 60_000),
        "change": MessageChange.CREATED,
    }
    return DiscordMessage(**{**values, **fields})


def deletion(number: int, **fields: Any) -> DiscordMessage:
    """Return the event by which Discord reports the deletion of message ``number``, without author and text."""
    values: dict[str, Any] = {
        "message_id": str(1000 + number),
        "guild_id": GUILD,
        "channel_id": "200",
        "channel_kind": ChannelKind.UNKNOWN,
        "created_at": TimestampMillis(START + number * 60_000),
        "change": MessageChange.DELETED,
    }
    return DiscordMessage(**{**values, **fields})


def stored(number: int, content: str, **fields: Any) -> StoredMessage:
    """Return message ``number`` as the archive stores it."""
    values: dict[str, Any] = {
        "message_id": str(number),
        "guild_id": GUILD,
        "channel_id": "200",
        "author_id": "1",
        "author_name": "ada",
        "author_is_bot": False,
        "content": content,
        "created_at": TimestampMillis(START + number * 60_000),
        "edited_at": None,
        "version": 0,
        "deleted": False,
        "reply_to_message_id": None,
        "mentioned_user_ids": [],
        "attachments": [],
    }
    return StoredMessage(**{**values, **fields})


_DERIVED = ("channels", "messages", "passages", "corpora", "document_frequencies")


def dump(settings: Settings) -> list[tuple[object, ...]]:
    """Return the rows of the tables in ``_DERIVED``, sorted within each table."""
    rows: list[tuple[object, ...]] = []
    with psycopg.connect(settings.database_url) as connection:
        for table in _DERIVED:
            rows += connection.execute(f"SELECT '{table}', t::text FROM {table} AS t ORDER BY 2").fetchall()  # noqa: S608 - the names above
    return rows


def empty(settings: Settings) -> None:
    """Delete all rows of the tables that ingest writes."""
    with psycopg.connect(settings.database_url) as connection:
        connection.execute("TRUNCATE collections, channels, messages, passages, corpora, document_frequencies")

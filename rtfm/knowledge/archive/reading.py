"""Retrieval's side of the archive: candidates, their vectors and words, and the messages behind them.

Every read that leads to a passage is limited to one guild and to the channels that may be seen.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence

from attrs import frozen
from sqlalchemy import ARRAY, Text, TextClause, bindparam, select, text

from rtfm.events import ChannelKind, TimestampMillis
from rtfm.knowledge.archive.database import Database
from rtfm.knowledge.archive.tables import corpora, document_frequencies, messages
from rtfm.knowledge.archive.writing import quoted

# The channel itself, or the parent of a public thread or forum post.
_VISIBLE = "guild_id = :guild AND (acl_channel_id = ANY(:visible) OR channel_id = ANY(:visible))"


@frozen(kw_only=True)
class Corpus:
    """How much a guild has said: passages, and terms in all of them."""

    passages: int
    terms: int


@frozen(kw_only=True)
class Candidate:
    """A passage with what scoring needs. ``counts`` gives the occurrences of each asked term that is in it."""

    passage_id: str
    text: str
    length: int
    counts: dict[str, int]
    last_at: TimestampMillis
    vector: bytes | None
    message_vectors: list[bytes]


@frozen(kw_only=True)
class FoundMessage:
    """A message of a passage, with the channel that it stands in."""

    passage_id: str
    message_id: str
    guild_id: str
    channel_id: str
    parent_channel_id: str | None
    kind: ChannelKind
    author_id: str | None
    author_name: str | None
    created_at: TimestampMillis
    content: str


class ArchiveReading:
    """Reads of the retrieval."""

    def __init__(self, database: Database) -> None:
        self._database = database

    def corpus(self, guild_id: str) -> Corpus:
        """The size of a guild's corpus."""
        with self._database.begin() as connection:
            row = connection.execute(select(corpora).where(corpora.c.guild_id == guild_id)).one_or_none()
        return Corpus(passages=row.passages if row else 0, terms=row.terms if row else 0)

    def frequencies(self, guild_id: str, words: Collection[str]) -> dict[str, int]:
        """In how many passages of the guild each of ``words`` occurs; unknown ones are left out."""
        table = document_frequencies
        statement = select(table.c.term, table.c.passages).where(
            table.c.guild_id == guild_id, table.c.term.in_(list(words)), table.c.passages > 0
        )
        with self._database.begin() as connection:
            return {row.term: row.passages for row in connection.execute(statement)}

    def visible_vectors(self, guild_id: str, visible: Sequence[str], *, limit: int) -> dict[str, bytes] | None:
        """The vectors of all passages that may be seen, by passage id; None when there are more than ``limit``."""
        parameters = {"guild": guild_id, "visible": list(visible), "limit": limit + 1}
        count = text(
            f"SELECT count(*) FROM (SELECT 1 FROM passages WHERE {_VISIBLE} LIMIT :limit) AS sample"  # noqa: S608 - a constant
        )
        vectors = text(
            f"SELECT passage_id, vector FROM passages WHERE {_VISIBLE} AND vector IS NOT NULL"  # noqa: S608 - a constant
        )
        with self._database.begin() as connection:
            if connection.execute(_visible(count), parameters).scalar_one() > limit:
                return None
            return {row.passage_id: row.vector for row in connection.execute(_visible(vectors), parameters)}

    def containing(
        self, guild_id: str, visible: Sequence[str], words: Sequence[str], *, limit: int
    ) -> dict[str, dict[str, int]]:
        """At most ``limit`` passages that may be seen and hold any of ``words``: passage id → word → occurrences."""
        if not words:
            return {}
        statement = text(
            f"""
            SELECT found.passage_id, word.lexeme, cardinality(word.positions) AS occurrences
            FROM (SELECT passage_id, terms FROM passages WHERE {_VISIBLE} AND terms @@ CAST(:query AS tsquery)
                  LIMIT :limit) AS found, unnest(found.terms) AS word
            WHERE word.lexeme = ANY(:words)
            """  # noqa: S608 - a constant
        ).bindparams(bindparam("words", type_=ARRAY(Text)))
        parameters = {
            "guild": guild_id,
            "visible": list(visible),
            "words": list(words),
            "query": " | ".join(quoted(word) for word in words),
            "limit": limit,
        }
        counts: dict[str, dict[str, int]] = {}
        with self._database.begin() as connection:
            for row in connection.execute(_visible(statement), parameters):
                counts.setdefault(row.passage_id, {})[row.lexeme] = row.occurrences
        return counts

    def visible_among(self, guild_id: str, visible: Sequence[str], passage_ids: Collection[str]) -> set[str]:
        """Those of ``passage_ids`` that exist and may be seen."""
        statement = text(f"SELECT passage_id FROM passages WHERE passage_id = ANY(:ids) AND {_VISIBLE}")  # noqa: S608 - a constant
        parameters = {"guild": guild_id, "visible": list(visible), "ids": list(passage_ids)}
        with self._database.begin() as connection:
            return set(connection.execute(_visible(statement), parameters).scalars())

    def lengths(self, passage_ids: Collection[str]) -> dict[str, int]:
        """Terms in each passage."""
        statement = text("SELECT passage_id, length FROM passages WHERE passage_id = ANY(:ids)")
        with self._database.begin() as connection:
            rows = connection.execute(statement, {"ids": list(passage_ids)})
            return {row.passage_id: row.length for row in rows}

    def candidates(
        self, guild_id: str, visible: Sequence[str], passage_ids: Collection[str], words: Sequence[str]
    ) -> list[Candidate]:
        """Those of ``passage_ids`` that exist and may be seen, with all that scoring needs."""
        rows_of = text(
            f"""
            SELECT passage_id, text, length, last_at, vector,
                   (SELECT json_object_agg(word.lexeme, cardinality(word.positions)) FROM unnest(terms) AS word
                    WHERE word.lexeme = ANY(:words)) AS counts
            FROM passages WHERE passage_id = ANY(:ids) AND {_VISIBLE}
            """  # noqa: S608 - a constant
        ).bindparams(bindparam("words", type_=ARRAY(Text)))
        parameters = {"guild": guild_id, "visible": list(visible), "ids": list(passage_ids), "words": list(words)}
        vectors_of = select(messages.c.passage_id, messages.c.vector).where(
            messages.c.passage_id.in_(list(passage_ids)), messages.c.vector.is_not(None), ~messages.c.deleted
        )
        message_vectors: dict[str, list[bytes]] = {}
        with self._database.begin() as connection:
            rows = connection.execute(_visible(rows_of), parameters).all()
            for row in connection.execute(vectors_of):
                message_vectors.setdefault(row.passage_id, []).append(row.vector)
        return [
            Candidate(
                passage_id=row.passage_id,
                text=row.text,
                length=row.length,
                counts=row.counts or {},
                last_at=TimestampMillis(row.last_at),
                vector=row.vector,
                message_vectors=message_vectors.get(row.passage_id, []),
            )
            for row in rows
        ]

    def messages_of(self, passage_ids: Sequence[str], visible: Sequence[str]) -> list[FoundMessage]:
        """The messages of these passages in order, with their channels; what may not be seen is left out."""
        statement = text(
            """
            SELECT m.passage_id, m.message_id, m.guild_id, m.channel_id, c.parent_channel_id, c.kind, m.author_id,
                   m.author_name, m.created_at, m.content
            FROM messages AS m JOIN channels AS c USING (channel_id)
            WHERE m.passage_id = ANY(:ids) AND NOT m.deleted
              AND (c.acl_channel_id = ANY(:visible) OR m.channel_id = ANY(:visible))
            ORDER BY m.created_at, length(m.message_id), m.message_id
            """
        )
        parameters = {"ids": list(passage_ids), "visible": list(visible)}
        with self._database.begin() as connection:
            rows = connection.execute(_visible(statement), parameters).all()
        return [
            FoundMessage(
                passage_id=row.passage_id,
                message_id=row.message_id,
                guild_id=row.guild_id,
                channel_id=row.channel_id,
                parent_channel_id=row.parent_channel_id,
                kind=ChannelKind(row.kind),
                author_id=row.author_id,
                author_name=row.author_name,
                created_at=TimestampMillis(row.created_at),
                content=row.content,
            )
            for row in rows
        ]

    def author_names(self, author_ids: Collection[str]) -> dict[str, str]:
        """The latest known name of each author."""
        if not author_ids:
            return {}
        statement = text(
            """
            SELECT DISTINCT ON (author_id) author_id, author_name FROM messages
            WHERE author_id = ANY(:ids) AND author_name IS NOT NULL ORDER BY author_id, created_at DESC
            """
        )
        with self._database.begin() as connection:
            rows = connection.execute(statement, {"ids": list(author_ids)})
            return {row.author_id: row.author_name for row in rows}


def _visible(statement: TextClause) -> TextClause:
    return statement.bindparams(bindparam("visible", type_=ARRAY(Text)))

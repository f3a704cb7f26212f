"""Retrieval's side of the archive: candidates, their vectors and words, and the messages behind them.

Every read that leads to a passage is limited to one guild and to the channels that may be seen.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from attrs import frozen
from sqlalchemy import ARRAY, Connection, Row, Text, bindparam, select, text

from rtfm.events import ChannelKind, TimestampMillis
from rtfm.knowledge.archive.database import Database
from rtfm.knowledge.archive.rows import GuildCollection
from rtfm.knowledge.archive.tables import collections, corpora, document_frequencies, floors
from rtfm.knowledge.archive.writing import quoted

# The channel itself, or the parent of a public thread or forum post.
_VISIBLE = "guild_id = :guild AND (acl_channel_id = ANY(:visible) OR channel_id = ANY(:visible))"

_BETWEEN = 2_000
"""Messages that are looked at between the first and the last one of a passage, at most."""


@frozen(kw_only=True)
class Corpus:
    """How much a guild has said: passages, and terms in all of them; and where its vectors stand."""

    passages: int
    terms: int
    collection: GuildCollection | None = None


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
class Match:
    """A passage that holds asked words: their occurrences, and how many terms it has in all."""

    counts: dict[str, int]
    length: int


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

    @contextmanager
    def view(self, guild_id: str, visible: Sequence[str]) -> Iterator[View]:
        """What of a guild may be seen, in one short transaction."""
        with self._database.begin() as connection:
            yield View(connection, guild_id, visible)


class View:
    """The passages of one guild that stand in channels which may be seen."""

    def __init__(self, connection: Connection, guild_id: str, visible: Sequence[str]) -> None:
        self._connection = connection
        self._guild = guild_id
        self._visible = list(visible)

    def corpus(self) -> Corpus:
        """The size of the guild's corpus, whoever may see it."""
        row = self._connection.execute(select(corpora).where(corpora.c.guild_id == self._guild)).one_or_none()
        return Corpus(passages=row.passages if row else 0, terms=row.terms if row else 0, collection=self.collection())

    def collection(self) -> GuildCollection | None:
        """Where the guild's vectors stand; None before its first message, and after an older version."""
        row = self._connection.execute(select(collections).where(collections.c.guild_id == self._guild)).one_or_none()
        return None if row is None else GuildCollection(**row._mapping)

    def floor(self, mode: str) -> float | None:
        """The floor that was calibrated on the guild's corpus for a mode of search; None if there is none yet."""
        statement = select(floors.c.floor).where(floors.c.guild_id == self._guild, floors.c.mode == mode)
        found: float | None = self._connection.execute(statement).scalar_one_or_none()
        return found

    def frequencies(self, words: Collection[str]) -> dict[str, int]:
        """In how many passages of the guild each of ``words`` occurs; unknown ones are left out."""
        table = document_frequencies
        statement = select(table.c.term, table.c.passages).where(
            table.c.guild_id == self._guild, table.c.term.in_(list(words)), table.c.passages > 0
        )
        return {row.term: row.passages for row in self._connection.execute(statement)}

    def vectors(self, *, limit: int) -> dict[str, bytes] | None:
        """The vectors of all passages, by passage id; None when there are more than ``limit``."""
        count = f"SELECT count(*) FROM (SELECT 1 FROM passages WHERE {_VISIBLE} LIMIT :limit) AS sample"  # noqa: S608 - a constant
        ((found,),) = self._select(count, limit=limit + 1)
        if found > limit:
            return None
        rows = self._select(f"SELECT passage_id, vector FROM passages WHERE {_VISIBLE} AND vector IS NOT NULL")  # noqa: S608 - a constant
        return {row.passage_id: row.vector for row in rows}

    def containing(self, wanted: Sequence[Sequence[str]], *, limit: int) -> dict[str, Match]:
        """At most ``limit`` passages that hold all words of any of the ``wanted`` groups, by passage id."""
        if not wanted:
            return {}
        rows = self._select(
            f"""
            SELECT found.passage_id, found.length, word.lexeme, cardinality(word.positions) AS occurrences
            FROM (SELECT passage_id, length, terms FROM passages
                  WHERE {_VISIBLE} AND terms @@ CAST(:query AS tsquery)
                  LIMIT :limit) AS found, unnest(found.terms) AS word
            WHERE word.lexeme = ANY(:words)
            """,  # noqa: S608 - a constant
            words=sorted({word for group in wanted for word in group}),
            query=" | ".join("(" + " & ".join(quoted(word) for word in group) + ")" for group in wanted),
            limit=limit,
        )
        counts: dict[str, dict[str, int]] = {}
        lengths: dict[str, int] = {}
        for row in rows:
            counts.setdefault(row.passage_id, {})[row.lexeme] = row.occurrences
            lengths[row.passage_id] = row.length
        return {passage_id: Match(counts=counts[passage_id], length=lengths[passage_id]) for passage_id in counts}

    def among(self, passage_ids: Collection[str]) -> set[str]:
        """Those of ``passage_ids`` that exist and may be seen."""
        rows = self._select(
            f"SELECT passage_id FROM passages WHERE passage_id = ANY(:ids) AND {_VISIBLE}",  # noqa: S608 - a constant
            ids=list(passage_ids),
        )
        return {row.passage_id for row in rows}

    def candidates(self, passage_ids: Collection[str], words: Sequence[str]) -> list[Candidate]:
        """Those of ``passage_ids`` that exist and may be seen, with all that scoring needs."""
        rows = self._select(
            f"""
            SELECT passage_id, text, length, last_at, vector,
                   (SELECT json_object_agg(word.lexeme, cardinality(word.positions)) FROM unnest(terms) AS word
                    WHERE word.lexeme = ANY(:words)) AS counts
            FROM passages WHERE passage_id = ANY(:ids) AND {_VISIBLE}
            """,  # noqa: S608 - a constant
            ids=list(passage_ids),
            words=list(words),
        )
        message_vectors: dict[str, list[bytes]] = {}
        for row in self._select(
            "SELECT passage_id, vector FROM messages "
            "WHERE passage_id = ANY(:ids) AND vector IS NOT NULL AND NOT deleted",
            ids=[row.passage_id for row in rows],
        ):
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

    def around(self, passage_id: str, *, messages: int) -> dict[str, frozenset[str]]:
        """Who speaks in a passage and in those from ``messages`` messages before it to as many after it.

        Author ids by passage id. All of them are in one channel, so that who may see one may see all.
        """
        rows = self._select(
            """
            WITH place AS (SELECT min(channel_id) AS channel_id, min(created_at) AS first_at, max(created_at) AS last_at
                           FROM messages WHERE passage_id = :passage AND NOT deleted)
            (SELECT m.passage_id, m.author_id FROM messages AS m, place
             WHERE m.channel_id = place.channel_id AND m.created_at < place.first_at
             ORDER BY m.created_at DESC LIMIT :messages)
            UNION ALL
            (SELECT m.passage_id, m.author_id FROM messages AS m, place
             WHERE m.channel_id = place.channel_id AND m.created_at > place.last_at
             ORDER BY m.created_at LIMIT :messages)
            UNION ALL
            (SELECT m.passage_id, m.author_id FROM messages AS m, place
             WHERE m.channel_id = place.channel_id AND m.created_at BETWEEN place.first_at AND place.last_at
             LIMIT :between)
            """,
            passage=passage_id,
            messages=messages,
            between=_BETWEEN,
        )
        people: dict[str, set[str]] = {}
        for row in rows:
            if row.passage_id is not None and row.author_id is not None:
                people.setdefault(row.passage_id, set()).add(row.author_id)
        return {found: frozenset(authors) for found, authors in people.items()}

    def messages_of(self, passage_ids: Sequence[str]) -> list[FoundMessage]:
        """The messages of these passages in order, with their channels; what may not be seen is left out."""
        rows = self._select(
            """
            SELECT m.passage_id, m.message_id, m.guild_id, m.channel_id, c.parent_channel_id, c.kind, m.author_id,
                   m.author_name, m.created_at, m.content
            FROM messages AS m JOIN channels AS c USING (channel_id)
            WHERE m.passage_id = ANY(:ids) AND NOT m.deleted AND m.guild_id = :guild
              AND (c.acl_channel_id = ANY(:visible) OR m.channel_id = ANY(:visible))
            ORDER BY m.created_at, length(m.message_id), m.message_id
            """,
            ids=list(passage_ids),
        )
        return [FoundMessage(**{**row._mapping, "kind": ChannelKind(row.kind)}) for row in rows]

    def author_names(self, author_ids: Collection[str]) -> dict[str, str]:
        """The latest known name of each author."""
        if not author_ids:
            return {}
        rows = self._select(
            """
            SELECT author.id, named.author_name FROM unnest(:ids) AS author(id), LATERAL (
                SELECT author_name FROM messages WHERE author_id = author.id AND author_name IS NOT NULL
                ORDER BY created_at DESC LIMIT 1) AS named
            """,
            ids=list(author_ids),
        )
        return {row.id: row.author_name for row in rows}

    def _select(self, statement: str, **parameters: Any) -> Sequence[Row[Any]]:
        lists = [name for name in ("visible", "ids", "words") if f":{name}" in statement]
        values = {"guild": self._guild, "visible": self._visible, **parameters}
        return self._connection.execute(
            text(statement).bindparams(*(bindparam(name, type_=ARRAY(Text)) for name in lists)),
            {name: value for name, value in values.items() if f":{name}" in statement},
        ).all()

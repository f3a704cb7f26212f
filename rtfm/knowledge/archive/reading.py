"""The reads of retrieval: candidates, their vectors and terms, and their messages.

A read that selects passages is limited to one guild and to its visible channels, unless the docstring of the read says
otherwise. This module ranks passages by terms only; ``candidates`` and ``retrieval`` compare vectors.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

from psycopg.rows import namedtuple_row, tuple_row
from sqlalchemy import Connection

from rtfm.events import ChannelKind, TimestampMillis
from rtfm.knowledge.archive.database import Database
from rtfm.knowledge.archive.removals import IS_ERASED, IS_READABLE
from rtfm.knowledge.archive.rows import GuildCollection
from rtfm.knowledge.archive.search_rows import (
    Candidate,
    Corpus,
    GuildSnapshot,
    PassageVectors,
    VisiblePassage,
    WordGroup,
)
from rtfm.knowledge.archive.tables import GUILD_TERMS
from rtfm.knowledge.archive.tsvectors import quote_lexeme
from rtfm.knowledge.entries import PREFIX, row_ids
from rtfm.knowledge.passages import PassageMessage

# ``visibility.is_readable`` in SQL: the channel or its access channel is visible. The condition does not use
# ANY(array). With ANY(array), PostgreSQL's planner would estimate each element of the array, and this would take 100 ms
# for a thousand channels.
_VISIBLE = """guild_id = %(guild)s AND (acl_channel_id IN (SELECT unnest(%(visible_channel_ids)s::text[]))
              OR channel_id IN (SELECT unnest(%(visible_channel_ids)s::text[])))"""

# The passages for which _VISIBLE is true, found by the indexes on their channels. If few passages are visible, this
# query is faster than a query with the condition _VISIBLE.
_VISIBLE_PASSAGES = """
    SELECT p.* FROM unnest(%(visible_channel_ids)s::text[]) AS visible(id)
        JOIN passages AS p ON p.guild_id = %(guild)s AND p.acl_channel_id = visible.id
    UNION ALL
    SELECT p.* FROM unnest(%(visible_channel_ids)s::text[]) AS visible(id)
        JOIN passages AS p ON p.guild_id = %(guild)s AND p.channel_id = visible.id
    WHERE p.acl_channel_id NOT IN (SELECT unnest(%(visible_channel_ids)s::text[]))
"""

# If a passage contains an erased message, the passage is hidden until ingest has built it again without the message.
# PostgreSQL evaluates the first NOT EXISTS once for each statement, so the condition costs little if nothing was ever
# erased.
_NOT_ERASED = f"""(NOT EXISTS (SELECT FROM erasures) OR NOT EXISTS (
    SELECT FROM messages AS m WHERE (m.passage_id = passages.passage_id OR m.message_id = passages.part_of)
        AND NOT m.deleted AND {IS_ERASED}))"""  # noqa: S608 - a constant

_MAX_BETWEEN = 2_000
"""Maximum number of messages that are read between the first and the last message of a passage."""


class ArchiveReading:
    """Opens views for retrieval. Every method raises what ``Database.begin`` raises."""

    def __init__(self, database: Database) -> None:
        self._database = database

    @contextmanager
    def view(self, guild_id: str, visible_channel_ids: Sequence[str]) -> Iterator[View]:
        """Open a view of a guild's visible channels.

        A connection is in use until the block ends, but no transaction is open.
        """
        with self._database.read() as connection:
            yield View(connection, guild_id, visible_channel_ids)


class View:
    """The reads of one search: passages of one guild in the visible channels."""

    def __init__(self, connection: Connection, guild_id: str, visible_channel_ids: Sequence[str]) -> None:
        # psycopg's own cursor reads vectors in binary form; as text they would be twice as long.
        self._cursor = connection.connection.cursor(binary=True)
        self._guild_id = guild_id
        self._visible_channel_ids = list(visible_channel_ids)

    def snapshot(self, words: Collection[str]) -> GuildSnapshot:
        """Return the current state of the guild. ``words`` are the terms whose frequencies are needed."""
        (row,) = self._select(
            """
            SELECT coalesce(corpora.passages, 0) AS passages, coalesce(corpora.terms, 0) AS terms,
                   (SELECT row_to_json(collections) FROM collections WHERE guild_id = %(guild)s) AS collection,
                   (SELECT json_object_agg(mode, floor) FROM floors WHERE guild_id = %(guild)s) AS floors,
                   (SELECT json_object_agg(term, passages) FROM document_frequencies
                    WHERE guild_id = %(guild)s AND term = ANY(%(words)s) AND passages > 0) AS frequencies
            FROM (SELECT 1) AS always LEFT JOIN corpora ON corpora.guild_id = %(guild)s
            """,
            words=list(words),
        )
        return GuildSnapshot(
            guild_id=self._guild_id,
            corpus=Corpus(passages=row.passages, terms=row.terms),
            collection=GuildCollection(**row.collection) if row.collection else None,
            floors=row.floors or {},
            frequencies=row.frequencies or {},
        )

    def collection(self) -> GuildCollection | None:
        """Return the guild's current collection."""
        rows = self._select(
            "SELECT guild_id, generation, model, dimension, rules FROM collections WHERE guild_id = %(guild)s"
        )
        return GuildCollection(**rows[0]._asdict()) if rows else None

    def count_by_access_channel(self) -> dict[str, int]:
        """Return the number of passages in each access channel of the guild, including invisible channels."""
        rows = self._select(
            "SELECT acl_channel_id, count(*) AS passages FROM passages WHERE guild_id = %(guild)s GROUP BY 1"
        )
        return {row.acl_channel_id: row.passages for row in rows}

    def score_all(
        self, rarity: Mapping[str, float], *, mean_length: float, with_vectors: bool, limit: int
    ) -> list[VisiblePassage] | None:
        """Return all visible passages with their points, or None if there are more than ``limit``.

        ``rarity`` gives the rarity of each term of the question. The points of a passage are the sum of the rarities of
        the terms that it contains, divided by (1 + its length / ``mean_length``).
        """
        words = [quote_lexeme(word) for word in rarity]
        rows = self._select(
            f"""
            SELECT passage_id, {"vector" if with_vectors else "NULL::bytea"},
                   -- Most passages contain none of the words, and need only this comparison.
                   CASE WHEN terms @@ %(any)s::tsquery THEN
                       (SELECT sum(word.rarity)
                        FROM unnest(%(queries)s::tsquery[], %(rarities)s::float8[]) AS word(query, rarity)
                        WHERE terms @@ word.query) / (1 + length / %(mean_length)s) ELSE 0 END
            FROM ({_VISIBLE_PASSAGES}) AS visible LIMIT %(limit)s
            """,  # noqa: S608 - constants
            row_factory=tuple_row,
            any=" | ".join(words),
            queries=words,
            rarities=list(rarity.values()),
            mean_length=mean_length,
            limit=limit + 1,
        )
        if len(rows) > limit:
            return None
        return [
            VisiblePassage(passage_id=passage_id, vector=vector, points=points or 0.0)
            for passage_id, vector, points in rows
        ]

    def find_by_words(self, groups: Sequence[WordGroup], *, mean_length: float, limit: int) -> list[str]:
        """Return the ids of the ``limit`` best visible passages that contain all words of a group, best first.

        The rarer the groups in a passage are, the higher the passage ranks. The longer a passage is in relation to
        ``mean_length``, the lower it ranks. Some words form a group alone. Of some other words, every pair is a group.
        """
        if not groups:
            return []
        in_guild = quote_lexeme(f"guild:{self._guild_id}")
        # The term index already limits the search to the guild. With a plain comparison of guild_id, PostgreSQL would
        # also read all passages of the guild by another index, once for each group. The expression below prevents this,
        # because no index contains it.
        visible = _VISIBLE.replace("guild_id =", "guild_id || '' =")
        rows = self._select(
            f"""
            SELECT passage_id FROM unnest(%(queries)s::tsquery[], %(rarities)s::float8[], %(paired)s::bool[])
                AS word_group(query, rarity, paired), passages
            WHERE {GUILD_TERMS} @@ word_group.query AND {visible}
            GROUP BY passage_id, length
            -- A word is in several pairs, so its rarity is counted several times: n words make n (n - 1) / 2 pairs, and
            -- each word is in n - 1 of them. So the sum is divided by n - 1, as computed from the number of pairs.
            ORDER BY (coalesce(sum(rarity) FILTER (WHERE NOT paired), 0)
                      + coalesce(2 * sum(rarity) FILTER (WHERE paired)
                                 / nullif(sqrt(1 + 8 * count(*) FILTER (WHERE paired)) - 1, 0), 0))
                     / (1 + length / %(mean_length)s) DESC, passage_id
            LIMIT %(limit)s
            """,  # noqa: S608 - constants
            queries=[" & ".join(quote_lexeme(word) for word in group.words) + f" & {in_guild}" for group in groups],
            rarities=[group.rarity for group in groups],
            paired=[len(group.words) > 1 for group in groups],
            mean_length=mean_length,
            limit=limit,
        )
        return [row.passage_id for row in rows]

    def candidates(self, passage_ids: Collection[str], words: Sequence[str]) -> list[Candidate]:
        """Return the existing, visible passages among ``passage_ids``, and how often ``words`` occur in them."""
        rows = self._select(
            f"""
            SELECT passage_id, text, length, last_at,
                   -- Label the words and drop all other lexemes, so that unnest has less to expand.
                   (SELECT json_object_agg(word.lexeme, cardinality(word.positions))
                    FROM unnest(ts_filter(setweight(terms, 'A', %(words)s), '{{a}}')) AS word) AS counts
            FROM passages WHERE passage_id = ANY(%(ids)s) AND {_VISIBLE} AND {_NOT_ERASED}
            """,  # noqa: S608 - constants
            ids=list(passage_ids),
            words=list(words),
        )
        return [
            Candidate(
                passage_id=row.passage_id,
                text=row.text,
                length=row.length,
                counts=row.counts or {},
                last_at=TimestampMillis(row.last_at),
            )
            for row in rows
        ]

    def visible_entries(self, entry_ids: Collection[str]) -> dict[str, str]:
        """Return the passage id of each entry among ``entry_ids`` that exists and is visible, by entry id."""
        rows = self._select(
            f"""
            SELECT entry_id, passage_id FROM (
                SELECT '{PREFIX["messages"]}' || message_id AS entry_id, passage_id FROM messages
                WHERE message_id = ANY(%(messages)s) AND NOT deleted
                UNION ALL SELECT '{PREFIX["passages"]}' || id, id FROM unnest(%(ids)s::text[]) AS own(id)
            ) AS found JOIN passages USING (passage_id) WHERE {_VISIBLE}
            """,  # noqa: S608 - constants
            ids=row_ids("passages", entry_ids),
            messages=row_ids("messages", entry_ids),
        )
        return {row.entry_id: row.passage_id for row in rows}

    def vectors_of(self, passage_ids: Sequence[str], *, only_speakers: bool) -> dict[str, PassageVectors]:
        """Return the vectors and the number of authors of each passage, by passage id.

        With ``only_speakers``, the vectors are left out. Visibility is not checked: the caller must pass the ids of
        visible passages only.
        """
        rows = self._select(
            f"""
            SELECT p.passage_id, {"NULL::bytea" if only_speakers else "p.vector"} AS own,
                   {"NULL::bytea[]" if only_speakers else "array_agg(m.vector) FILTER (WHERE m.vector IS NOT NULL)"}
                       AS messages,
                   count(DISTINCT m.author_id) AS speakers
            FROM passages AS p LEFT JOIN messages AS m ON m.passage_id = p.passage_id AND NOT m.deleted
            WHERE p.passage_id = ANY(%(ids)s) GROUP BY p.passage_id
            """,  # noqa: S608 - constants
            ids=list(passage_ids),
        )
        return {
            row.passage_id: PassageVectors(own=row.own, messages=row.messages or (), speakers=row.speakers)
            for row in rows
        }

    def speakers_around(self, passage_id: str, *, messages: int) -> dict[str, frozenset[str]]:
        """Return the author ids of a passage and of the passages near it, by passage id.

        A passage is near if it contains one of the ``messages`` messages before the given passage, one of the
        ``messages`` messages after it, or a message between the first and the last message of the given passage. All
        these passages are in the same channel and have the same visibility.
        """
        rows = self._select(
            """
            WITH place AS MATERIALIZED (
                SELECT min(channel_id) AS channel_id, min(created_at) AS first_at, max(created_at) AS last_at
                FROM messages
                WHERE (passage_id = %(passage)s OR message_id = (SELECT part_of FROM passages
                                                                 WHERE passage_id = %(passage)s))
                  AND NOT deleted)
            -- Subqueries, because with a join PostgreSQL would sort all messages of the channel.
            (SELECT passage_id, author_id FROM messages
             WHERE guild_id = %(guild)s AND channel_id = (SELECT channel_id FROM place)
               AND created_at < (SELECT first_at FROM place)
             ORDER BY created_at DESC LIMIT %(messages)s)
            UNION ALL
            (SELECT passage_id, author_id FROM messages
             WHERE guild_id = %(guild)s AND channel_id = (SELECT channel_id FROM place)
               AND created_at > (SELECT last_at FROM place)
             ORDER BY created_at LIMIT %(messages)s)
            UNION ALL
            (SELECT passage_id, author_id FROM messages
             WHERE guild_id = %(guild)s AND channel_id = (SELECT channel_id FROM place)
               AND created_at BETWEEN (SELECT first_at FROM place) AND (SELECT last_at FROM place)
             LIMIT %(between)s)
            UNION ALL
            (SELECT p.passage_id, m.author_id FROM passages AS p JOIN messages AS m ON m.message_id = p.part_of
             WHERE p.passage_id = %(passage)s)
            """,
            passage=passage_id,
            messages=messages,
            between=_MAX_BETWEEN,
        )
        people: dict[str, set[str]] = {}
        for row in rows:
            if row.passage_id is not None and row.author_id is not None:
                people.setdefault(row.passage_id, set()).add(row.author_id)
        return {found: frozenset(authors) for found, authors in people.items()}

    def messages_of(self, passage_ids: Sequence[str]) -> dict[str, list[PassageMessage]]:
        """Return the visible messages of these passages in order, by passage id, with their original text.

        If a passage is a part of a message or of its file, this message is returned with the text of the part.
        ``thread_title`` is the name of the message's channel, even if the channel is not a thread.
        """
        columns = """m.message_id, nullif(m.guild_id, '') AS guild_id, m.channel_id, c.parent_channel_id,
                     c.kind AS channel_kind, c.name AS thread_title, m.author_id,
                     coalesce(m.author_name, '') AS author_name, m.created_at"""
        visible = f"""{IS_READABLE} AND m.guild_id = %(guild)s
                  AND (c.acl_channel_id IN (SELECT unnest(%(visible_channel_ids)s::text[]))
                       OR m.channel_id IN (SELECT unnest(%(visible_channel_ids)s::text[])))"""
        rows = self._select(
            f"""
            SELECT * FROM (
                SELECT p.passage_id, {columns}, m.content
                FROM messages AS m JOIN passages AS p USING (passage_id)
                                   JOIN channels AS c ON (c.guild_id, c.channel_id) = (m.guild_id, m.channel_id)
                WHERE m.passage_id = ANY(%(ids)s) AND p.part_of IS NULL AND {visible}
                UNION ALL
                SELECT p.passage_id, {columns}, p.text
                FROM passages AS p JOIN messages AS m ON m.message_id = p.part_of
                                   JOIN channels AS c ON (c.guild_id, c.channel_id) = (m.guild_id, m.channel_id)
                WHERE p.passage_id = ANY(%(ids)s) AND {visible}) AS found
            ORDER BY created_at, length(message_id), message_id
            """,  # noqa: S608 - constants
            ids=list(passage_ids),
        )
        found: dict[str, list[PassageMessage]] = {}
        for row in rows:
            values = {**row._asdict(), "channel_kind": ChannelKind(row.channel_kind)}
            found.setdefault(values.pop("passage_id"), []).append(PassageMessage(**values))
        return found

    def author_names(self, author_ids: Collection[str]) -> dict[str, str]:
        """Return the latest name of each author in this guild, by author id. Names in other guilds are not used."""
        if not author_ids:
            return {}
        rows = self._select(
            f"""
            SELECT author.id, named.author_name FROM unnest(%(ids)s::text[]) AS author(id), LATERAL (
                SELECT author_name FROM messages AS m
                WHERE author_id = author.id AND guild_id = %(guild)s AND author_name IS NOT NULL AND {IS_READABLE}
                ORDER BY created_at DESC LIMIT 1) AS named
            """,  # noqa: S608 - a constant
            ids=list(author_ids),
        )
        return {row.id: row.author_name for row in rows}

    def _select(self, statement: str, row_factory: Any = namedtuple_row, **parameters: Any) -> Sequence[Any]:
        values = {"guild": self._guild_id, "visible_channel_ids": self._visible_channel_ids, **parameters}
        # The statement is not prepared. For a prepared statement, PostgreSQL makes a generic plan for lists of any
        # length, and such a plan is many times slower.
        self._cursor.row_factory = row_factory  # type: ignore[attr-defined]  # psycopg's own
        self._cursor.execute(statement, values, prepare=False)  # type: ignore[call-arg]  # psycopg's own
        return self._cursor.fetchall()

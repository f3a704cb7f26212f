"""The reads and writes of ingest.

This module owns the transaction that writes a batch. The transaction also updates the number of passages that contain
each term, because the search by terms needs these numbers. The caller decides what the batch changes.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import Any

import attrs
from sqlalchemy import ColumnElement, Connection, Row, and_, bindparam, delete, func, or_, select, text, tuple_, update
from sqlalchemy.dialects.postgresql import insert

from rtfm.errors import InvalidEvent
from rtfm.events import ChannelKind
from rtfm.knowledge.archive.collections import lock_collections
from rtfm.knowledge.archive.database import Database
from rtfm.knowledge.archive.removals import lock_removals, withdraw_answers
from rtfm.knowledge.archive.rows import Change, Channel, Place, StoredMessage, StoredPassage
from rtfm.knowledge.archive.tables import channels, messages, passages, upsert
from rtfm.knowledge.archive.tsvectors import to_tsvector
from rtfm.knowledge.words import terms
from rtfm.visibility import ChannelFacts

_MESSAGE_COLUMNS = [messages.c[field.name] for field in attrs.fields(StoredMessage)]
_PASSAGE_COLUMNS = [passages.c[field.name] for field in attrs.fields(StoredPassage)]

_POSITION = (messages.c.created_at, func.length(messages.c.message_id), messages.c.message_id)
"""``StoredMessage.position`` in SQL."""


class ArchiveWriting:
    """Reads and writes the archive for ingest. Raises what ``Database.begin`` raises."""

    def __init__(self, database: Database) -> None:
        self._database = database

    def messages(self, message_ids: Collection[str]) -> dict[str, StoredMessage]:
        """Return the messages among ``message_ids`` that are in the archive, by id. Deleted messages are included."""
        return self._select_messages(messages.c.message_id.in_(message_ids))

    def channels(self, places: Collection[Place]) -> dict[Place, Channel]:
        """Return the channels among ``places`` that are in the archive."""
        statement = select(channels).where(tuple_(channels.c.guild_id, channels.c.channel_id).in_(list(places)))
        with self._database.begin() as connection:
            found = [to_channel(row) for row in connection.execute(statement)] if places else []
        return {channel.place: channel for channel in found}

    def context(self, place: Place, *, first_at: int, last_at: int, window: int) -> list[StoredMessage]:
        """Return the channel's linked messages before and during the time of a batch, in order.

        The messages of the batch are from the times ``first_at`` to ``last_at``. The result contains the last
        ``window`` messages whose time is not after ``first_at``, and the first ``20 * window`` messages whose time is
        after ``first_at`` and not after ``last_at``.
        """
        linked = and_(_is_in_channel(place), messages.c.conversation_id.is_not(None), ~messages.c.deleted)
        before = (
            select(*_MESSAGE_COLUMNS)
            .where(linked, messages.c.created_at <= first_at)
            .order_by(*(column.desc() for column in _POSITION))
            .limit(window)
        )
        between = (
            select(*_MESSAGE_COLUMNS)
            .where(linked, messages.c.created_at > first_at, messages.c.created_at <= last_at)
            .order_by(messages.c.created_at)
            .limit(window * 20)
        )
        with self._database.begin() as connection:
            rows = [*connection.execute(before), *connection.execute(between)]
        return sorted((StoredMessage(**row._mapping) for row in rows), key=lambda message: message.position)

    def conversation_messages(self, conversation_ids: Collection[str]) -> dict[str, StoredMessage]:
        """Return all messages of these conversations, by id."""
        return self._select_messages(messages.c.conversation_id.in_(conversation_ids))

    def passages_of(self, conversation_ids: Collection[str]) -> dict[str, StoredPassage]:
        """Return the passages of these conversations, by id."""
        statement = select(*_PASSAGE_COLUMNS).where(passages.c.conversation_id.in_(conversation_ids))
        with self._database.begin() as connection:
            return {row.passage_id: StoredPassage(**row._mapping) for row in connection.execute(statement)}

    def write(self, change: Change) -> None:
        """Write a batch in one transaction. Writing it again changes nothing.

        A stored message is replaced only if it is not deleted and if the message in the batch is newer or deleted. A
        stored answer is withdrawn if the batch deletes one of its sources. Raises CollectionChanged if a rebuild has
        switched a guild to another collection since the batch began.
        """
        with self._database.begin() as connection:
            lock_collections(connection, change.collections)
            known = _write_channels(connection, change)
            _write_messages(connection, change)
            _write_passages(connection, change, known)
            _assign_passages(connection, change.passage_of_message)
            deleted = [message.message_id for message in change.messages if message.deleted]
            if deleted:
                # The lock is taken last, because no answer can be stored while it is held.
                lock_removals(connection, shared=False)
                withdraw_answers(connection, deleted)

    def channel_messages(self, place: Place, after: StoredMessage | None, *, limit: int) -> list[StoredMessage]:
        """Return the next ``limit`` messages of a channel after the message ``after``, in order.

        If ``after`` is None, the first ``limit`` messages of the channel are returned. Deleted messages are left out.
        """
        statement = (
            select(*_MESSAGE_COLUMNS)
            .where(_is_in_channel(place), ~messages.c.deleted)
            .order_by(*_POSITION)
            .limit(limit)
        )
        if after is not None:
            statement = statement.where(messages.c.created_at >= after.created_at, tuple_(*_POSITION) > after.position)
        with self._database.begin() as connection:
            return [StoredMessage(**row._mapping) for row in connection.execute(statement)]

    def _select_messages(self, condition: ColumnElement[bool]) -> dict[str, StoredMessage]:
        with self._database.begin() as connection:
            rows = connection.execute(select(*_MESSAGE_COLUMNS).where(condition))
            return {row.message_id: StoredMessage(**row._mapping) for row in rows}


def to_channel(row: Row[Any]) -> Channel:
    """Convert a row of ``channels``."""
    return Channel(
        channel_id=row.channel_id,
        guild_id=row.guild_id,
        facts=ChannelFacts(
            kind=ChannelKind(row.kind),
            parent_channel_id=row.parent_channel_id,
            observed_at=row.observed_at,
            from_discord=row.from_discord,
        ),
        name=row.name,
    )


def _is_in_channel(place: Place) -> ColumnElement[bool]:
    return and_(messages.c.guild_id == place[0], messages.c.channel_id == place[1])


def _write_channels(connection: Connection, change: Change) -> dict[Place, Channel]:
    """Write the channels of a batch, and return the rows of these channels and of the channels of its passages.

    The rows stay locked until the transaction ends, so that no passage is written with an outdated access channel.
    """
    seen = {channel.place: channel for channel in change.channels}
    if seen:
        rows = [_channel_row(seen[place]) for place in sorted(seen)]
        connection.execute(insert(channels).on_conflict_do_nothing(), rows)
    places = sorted(seen.keys() | {(passage.guild_id, passage.channel_id) for passage in change.passages})
    if not places:
        return {}
    # All batches lock in the same order, so that they cannot deadlock.
    statement = (
        select(channels)
        .where(tuple_(channels.c.guild_id, channels.c.channel_id).in_(places))
        .order_by(channels.c.guild_id, channels.c.channel_id)
        .with_for_update(key_share=True)
    )
    known = {channel.place: channel for channel in map(to_channel, connection.execute(statement))}
    for place, channel in seen.items():
        before, after = known[place], known[place].merge(channel)
        if after == before:
            continue
        known[place] = after
        row = _channel_row(after)
        connection.execute(
            update(channels)
            .where(channels.c.guild_id == after.guild_id, channels.c.channel_id == after.channel_id)
            .values({name: value for name, value in row.items() if name not in ("guild_id", "channel_id")})
        )
        if after.acl_channel_id != before.acl_channel_id:
            # The passages of the channel get the new access channel, too.
            connection.execute(
                update(passages)
                .where(passages.c.guild_id == after.guild_id, passages.c.channel_id == after.channel_id)
                .values(acl_channel_id=after.acl_channel_id)
            )
    return known


def _channel_row(channel: Channel) -> dict[str, Any]:
    return {
        "guild_id": channel.guild_id,
        "channel_id": channel.channel_id,
        "parent_channel_id": channel.parent_channel_id,
        "kind": channel.kind.value,
        "acl_channel_id": channel.acl_channel_id,
        "name": channel.name,
        "observed_at": channel.facts.observed_at,
        "from_discord": channel.facts.from_discord,
    }


def _write_messages(connection: Connection, change: Change) -> None:
    if not change.messages:
        return
    statement = insert(messages)
    new = statement.excluded
    unchanged = ("message_id", "passage_id")
    statement = statement.on_conflict_do_update(
        index_elements=["message_id"],
        set_={column.name: new[column.name] for column in messages.c if column.name not in unchanged},
        where=and_(
            ~messages.c.deleted,
            or_(messages.c.version < new.version, new.deleted),
            messages.c.channel_id == new.channel_id,
            messages.c.guild_id == new.guild_id,
        ),
    )
    rows = [
        {**attrs.asdict(message, recurse=False), "vector": change.message_vectors.get(message.message_id)}
        for message in sorted(change.messages, key=lambda message: message.message_id)
    ]
    connection.execute(statement, rows)
    # Two records that are handled at the same time may name different channels for the same message. The record that is
    # written second fails here.
    places = [(message.message_id, message.channel_id, message.guild_id) for message in change.messages]
    ids, channel_ids, guild_ids = zip(*places, strict=True)
    moved = connection.execute(
        _FIND_MOVED, {"ids": list(ids), "channels": list(channel_ids), "guilds": list(guild_ids)}
    )
    if moved.first() is not None:
        raise InvalidEvent("a message must stay in the channel and guild in which it is archived")


_FIND_MOVED = text(
    """
    SELECT FROM messages JOIN unnest(CAST(:ids AS text[]), CAST(:channels AS text[]), CAST(:guilds AS text[]))
        AS given(message_id, channel_id, guild_id) USING (message_id)
    WHERE (messages.channel_id, messages.guild_id) <> (given.channel_id, given.guild_id) LIMIT 1
    """
)


def _write_passages(connection: Connection, change: Change, known: Mapping[Place, Channel]) -> None:
    """Write and remove passages, and update the counts of their terms."""
    rows = []
    for passage in sorted(change.passages, key=lambda passage: passage.passage_id):
        words = terms(passage.text)
        channel = known.get((passage.guild_id, passage.channel_id))
        rows.append(
            {
                **attrs.asdict(passage),
                "acl_channel_id": channel.acl_channel_id if channel else passage.acl_channel_id,
                "terms": to_tsvector(words),
                "length": len(words),
            }
        )
    replaced = [*change.removed_passage_ids, *(row["passage_id"] for row in rows)]
    if replaced:
        _count_terms(connection, replaced, rows)
    if change.removed_passage_ids:
        connection.execute(delete(passages).where(passages.c.passage_id.in_(change.removed_passage_ids)))
    if rows:
        connection.execute(upsert(passages, "passage_id"), rows)


def _assign_passages(connection: Connection, passage_of_message: Mapping[str, str | None]) -> None:
    if not passage_of_message:
        return
    statement = (
        update(messages)
        .where(
            messages.c.message_id == bindparam("of_message"),
            messages.c.passage_id.is_distinct_from(bindparam("to_passage")),
        )
        .values(passage_id=bindparam("to_passage"))
    )
    connection.execute(
        statement,
        [{"of_message": message, "to_passage": passage} for message, passage in sorted(passage_of_message.items())],
    )


def _count_terms(connection: Connection, replaced: Sequence[str], rows: Sequence[Mapping[str, Any]]) -> None:
    """Update the number of passages that contain each term of a guild. BM25 needs these numbers; no index has them.

    ``rows`` are about to replace the passages ``replaced``.
    """
    values = {
        "replaced": list(replaced),
        "guilds": [row["guild_id"] for row in rows],
        "terms": [row["terms"] for row in rows],
        "lengths": [row["length"] for row in rows],
    }
    unused = connection.execute(_COUNT_TERMS, values).all()
    if unused:
        guilds, words = zip(*unused, strict=True)
        connection.execute(_DELETE_UNUSED_TERMS, {"guilds": list(guilds), "terms": list(words)})
    connection.execute(_COUNT_PASSAGES, values)


_TERM_CHANGES = """
    SELECT guild_id, terms, length, -1 AS sign FROM passages WHERE passage_id = ANY(:replaced)
    UNION ALL SELECT guild_id, terms, length, 1
    FROM unnest(CAST(:guilds AS text[]), CAST(:terms AS tsvector[]), CAST(:lengths AS int[]))
        AS new(guild_id, terms, length)
"""

# The rows are sorted by key, so that two processes lock them in the same order and cannot deadlock.
_COUNT_TERMS = text(
    f"""
    WITH counted AS (
        INSERT INTO document_frequencies AS known (guild_id, term, passages)
        SELECT guild_id, lexeme, sum(sign) FROM ({_TERM_CHANGES}) AS changed, unnest(terms)
        GROUP BY guild_id, lexeme HAVING sum(sign) <> 0 ORDER BY guild_id, lexeme
        ON CONFLICT (guild_id, term) DO UPDATE SET passages = known.passages + excluded.passages
        RETURNING guild_id, term, passages)
    SELECT guild_id, term FROM counted WHERE passages <= 0
    """  # noqa: S608 - constants
)

_DELETE_UNUSED_TERMS = text(
    """
    DELETE FROM document_frequencies AS known USING unnest(CAST(:guilds AS text[]), CAST(:terms AS text[]))
        AS unused(guild_id, term)
    WHERE (known.guild_id, known.term) = (unused.guild_id, unused.term) AND known.passages <= 0
    """
)

_COUNT_PASSAGES = text(
    f"""
    INSERT INTO corpora AS known (guild_id, passages, terms)
    SELECT guild_id, sum(sign), sum(sign * length) FROM ({_TERM_CHANGES}) AS changed GROUP BY guild_id ORDER BY guild_id
    ON CONFLICT (guild_id) DO UPDATE SET passages = known.passages + excluded.passages,
        terms = known.terms + excluded.terms
    """  # noqa: S608 - constants
)

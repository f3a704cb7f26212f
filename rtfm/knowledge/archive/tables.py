"""The tables of the archive and their columns, as the statements use them.

The types, keys and indexes are defined by the migrations. The columns of messages, passages and collections include the
fields of the classes into which their rows are read. Ids are text. Times are whole milliseconds since the epoch, UTC.
The guild id of direct messages is '' instead of NULL, so that it can be part of keys and comparisons.
"""

from __future__ import annotations

from typing import Any

import attrs
from sqlalchemy import ColumnClause, TableClause, column, table
from sqlalchemy.dialects.postgresql import JSONB, Insert, insert

from rtfm.knowledge.archive.rows import GuildCollection, StoredMessage, StoredPassage


def _columns(row: type[attrs.AttrsInstance]) -> list[ColumnClause[Any]]:
    """Return a column for each field of ``row``; ``attachments``, a list of objects, is JSON."""
    return [column(field.name, JSONB if field.name == "attachments" else None) for field in attrs.fields(row)]


channels = table(
    "channels",
    column("guild_id"),
    column("channel_id"),
    column("parent_channel_id"),
    column("kind"),
    column("acl_channel_id"),
    column("name"),
    column("observed_at"),
    column("from_discord"),
)

messages = table("messages", *_columns(StoredMessage), column("vector"))

GUILD_TERMS = "(terms || array_to_tsvector(ARRAY['guild:' || guild_id]))"
"""The indexed terms of a passage: its own terms, and its guild as an extra term that is different from every word."""

passages = table("passages", *_columns(StoredPassage), column("terms"), column("length"))

document_frequencies = table("document_frequencies", column("guild_id"), column("term"), column("passages"))

corpora = table("corpora", column("guild_id"), column("passages"), column("terms"))

floors = table("floors", column("guild_id"), column("mode"), column("floor"), column("passages"))

collections = table("collections", *_columns(GuildCollection))

SOURCE_MESSAGE_IDS = (
    "(jsonb_path_query_array(response, '$.citations[*].message_id')"
    " || jsonb_path_query_array(response, '$.retrieved[*].message_ids[*]'))"
)
"""SQL expression: the ids of a stored answer's sources as a JSON array. There is an index on this expression."""

answers = table("answers", column("query_id"), column("response", JSONB), column("answered_at"), column("made_by"))

erasures = table("erasures", column("scope"), column("id"), column("before"), column("guild_id"), column("produced_to"))

sent = table("sent", column("query_id"), column("part"), column("channel_id"), column("message_id"), column("sent_at"))

open_questions = table(
    "open_questions",
    column("query_id"),
    column("guild_id"),
    column("channel_id"),
    column("message_id"),
    column("asker_id"),
    column("audience"),
    column("expires_at"),
)


def upsert(rows: TableClause, *key: str) -> Insert:
    """Return a statement that inserts rows, or replaces a row with the same ``key``."""
    statement = insert(rows)
    new = {column.name: column for column in statement.excluded}
    return statement.on_conflict_do_update(index_elements=key, set_=new)

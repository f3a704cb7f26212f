"""The columns of the archive's tables, for statements; keys, indexes and what may be null stand in the migrations.

Ids are text. Times are whole milliseconds since the epoch, UTC. A guild id is '' for direct
messages, so that it can stand in keys and comparisons.
"""

from __future__ import annotations

from sqlalchemy import BigInteger, Boolean, Column, Double, Integer, LargeBinary, MetaData, Table, Text
from sqlalchemy.dialects.postgresql import ARRAY, JSONB, TSVECTOR

metadata = MetaData()

channels = Table(
    "channels",
    metadata,
    Column("guild_id", Text),
    Column("channel_id", Text),
    Column("parent_channel_id", Text),
    Column("kind", Text),
    Column("acl_channel_id", Text),
    Column("name", Text),
    Column("observed_at", BigInteger),
    Column("from_discord", Boolean),
)

messages = Table(
    "messages",
    metadata,
    Column("message_id", Text),
    Column("guild_id", Text),
    Column("channel_id", Text),
    Column("author_id", Text),
    Column("author_name", Text),
    Column("author_is_bot", Boolean),
    Column("content", Text),
    Column("created_at", BigInteger),
    Column("edited_at", BigInteger),
    Column("version", BigInteger),
    Column("deleted", Boolean),
    Column("reply_to_message_id", Text),
    Column("mentioned_user_ids", ARRAY(Text)),
    Column("attachments", JSONB),
    Column("conversation_id", Text),
    Column("passage_id", Text),
    Column("vector", LargeBinary),
)

GUILD_TERMS = "(terms || array_to_tsvector(ARRAY['guild:' || guild_id]))"
"""What the term index holds of a passage: its terms, and its guild as one more, which no word can be."""

passages = Table(
    "passages",
    metadata,
    Column("passage_id", Text),
    Column("conversation_id", Text),
    Column("guild_id", Text),
    Column("channel_id", Text),
    Column("acl_channel_id", Text),
    Column("text", Text),
    Column("terms", TSVECTOR),
    Column("length", Integer),
    Column("vector", LargeBinary),
    Column("first_at", BigInteger),
    Column("last_at", BigInteger),
    Column("part_of", Text),
)

document_frequencies = Table(
    "document_frequencies",
    metadata,
    Column("guild_id", Text),
    Column("term", Text),
    Column("passages", BigInteger),
)

corpora = Table(
    "corpora",
    metadata,
    Column("guild_id", Text),
    Column("passages", BigInteger),
    Column("terms", BigInteger),
)

floors = Table(
    "floors",
    metadata,
    Column("guild_id", Text),
    Column("mode", Text),
    Column("floor", Double),
    Column("passages", BigInteger),
)

collections = Table(
    "collections",
    metadata,
    Column("guild_id", Text),
    Column("generation", Integer),
    Column("model", Text),
    Column("dimension", Integer),
    Column("rules", Text),
)

RESTS_ON = (
    "(jsonb_path_query_array(response, '$.citations[*].message_id')"
    " || jsonb_path_query_array(response, '$.retrieved[*].message_ids[*]'))"
)
"""The ids of the messages that a kept answer rests on, as a JSON array; indexed."""

answers = Table(
    "answers",
    metadata,
    Column("query_id", Text),
    Column("response", JSONB),
    Column("answered_at", BigInteger),
    Column("made_by", Text),
)

erasures = Table(
    "erasures",
    metadata,
    Column("scope", Text),
    Column("id", Text),
    Column("before", BigInteger),
    Column("guild_id", Text),
    Column("produced_to", Text),
)

sent = Table(
    "sent",
    metadata,
    Column("query_id", Text),
    Column("part", Integer),
    Column("channel_id", Text),
    Column("message_id", Text),
    Column("sent_at", BigInteger),
)

open_questions = Table(
    "open_questions",
    metadata,
    Column("query_id", Text),
    Column("guild_id", Text),
    Column("channel_id", Text),
    Column("message_id", Text),
    Column("asker_id", Text),
    Column("audience", Text),
    Column("expires_at", BigInteger),
)

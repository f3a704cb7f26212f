"""The archive's tables as SQLAlchemy sees them; the migrations make them.

Ids are text. Times are whole milliseconds since the epoch, UTC. A guild id is '' for direct
messages, so that it can stand in keys and comparisons.
"""

from __future__ import annotations

from sqlalchemy import (
    BigInteger,
    Boolean,
    Column,
    Double,
    Index,
    Integer,
    LargeBinary,
    MetaData,
    PrimaryKeyConstraint,
    Table,
    Text,
    text,
)
from sqlalchemy.dialects.postgresql import ARRAY, JSONB, TSVECTOR

metadata = MetaData()

channels = Table(
    "channels",
    metadata,
    Column("guild_id", Text, nullable=False),
    Column("channel_id", Text, nullable=False),
    Column("parent_channel_id", Text),
    Column("kind", Text, nullable=False),
    Column("acl_channel_id", Text, nullable=False),
    Column("name", Text),
    Column("observed_at", BigInteger, nullable=False),
    Column("from_discord", Boolean, nullable=False),
    PrimaryKeyConstraint("guild_id", "channel_id"),
    Index("channels_channel", "channel_id"),
    Index("channels_acl", "acl_channel_id"),
)

messages = Table(
    "messages",
    metadata,
    Column("message_id", Text, primary_key=True),
    Column("guild_id", Text, nullable=False),
    Column("channel_id", Text, nullable=False),
    Column("author_id", Text),
    Column("author_name", Text),
    Column("author_is_bot", Boolean, nullable=False),
    Column("content", Text, nullable=False),
    Column("created_at", BigInteger, nullable=False),
    Column("edited_at", BigInteger),
    Column("version", BigInteger, nullable=False),
    Column("deleted", Boolean, nullable=False),
    Column("reply_to_message_id", Text),
    Column("mentioned_user_ids", ARRAY(Text), nullable=False),
    Column("attachments", JSONB, nullable=False),
    Column("conversation_id", Text),
    Column("passage_id", Text),
    Column("vector", LargeBinary),
    Index("messages_channel_time", "channel_id", "created_at"),
    Index("messages_conversation", "conversation_id"),
    Index("messages_passage", "passage_id"),
    Index("messages_author", "author_id"),
)

GUILD_TERMS = "(terms || array_to_tsvector(ARRAY['guild:' || guild_id]))"
"""What the term index holds of a passage: its terms, and its guild as one more, which no word can be."""

passages = Table(
    "passages",
    metadata,
    Column("passage_id", Text, primary_key=True),
    Column("conversation_id", Text, nullable=False),
    Column("guild_id", Text, nullable=False),
    Column("channel_id", Text, nullable=False),
    Column("acl_channel_id", Text, nullable=False),
    Column("text", Text, nullable=False),
    Column("terms", TSVECTOR, nullable=False),
    Column("length", Integer, nullable=False),
    Column("vector", LargeBinary),
    Column("first_at", BigInteger, nullable=False),
    Column("last_at", BigInteger, nullable=False),
    Column("part_of", Text),
    Index("passages_conversation", "conversation_id"),
    Index("passages_acl", "guild_id", "acl_channel_id"),
    Index("passages_channel", "channel_id"),
    Index(
        "passages_guild_terms",
        text(GUILD_TERMS),
        postgresql_using="gin",
        postgresql_with={"gin_pending_list_limit": 128},
    ),
)

document_frequencies = Table(
    "document_frequencies",
    metadata,
    Column("guild_id", Text, nullable=False),
    Column("term", Text, nullable=False),
    Column("passages", BigInteger, nullable=False),
    PrimaryKeyConstraint("guild_id", "term"),
)

corpora = Table(
    "corpora",
    metadata,
    Column("guild_id", Text, primary_key=True),
    Column("passages", BigInteger, nullable=False),
    Column("terms", BigInteger, nullable=False),
)

floors = Table(
    "floors",
    metadata,
    Column("guild_id", Text, nullable=False),
    Column("mode", Text, nullable=False),
    Column("floor", Double, nullable=False),
    Column("passages", BigInteger, nullable=False),
    PrimaryKeyConstraint("guild_id", "mode"),
)

collections = Table(
    "collections",
    metadata,
    Column("guild_id", Text, primary_key=True),
    Column("generation", Integer, nullable=False),
    Column("model", Text),
    Column("dimension", Integer),
    Column("rules", Text, nullable=False),
)

RESTS_ON = (
    "(jsonb_path_query_array(response, '$.citations[*].message_id')"
    " || jsonb_path_query_array(response, '$.retrieved[*].message_ids[*]'))"
)
"""The ids of the messages that a kept answer rests on, as a JSON array; indexed."""

answers = Table(
    "answers",
    metadata,
    Column("query_id", Text, primary_key=True),
    Column("response", JSONB, nullable=False),
    Column("answered_at", BigInteger, nullable=False),
    Column("made_by", Text, nullable=False),
    Index("answers_rest_on", text(RESTS_ON), postgresql_using="gin"),
)

erasures = Table(
    "erasures",
    metadata,
    Column("scope", Text, nullable=False),
    Column("id", Text, nullable=False),
    Column("before", BigInteger, nullable=False),
    Column("guild_id", Text, nullable=False, server_default=""),
    Column("produced_to", Text),
    PrimaryKeyConstraint("scope", "id", "guild_id"),
)

sent = Table(
    "sent",
    metadata,
    Column("query_id", Text, nullable=False),
    Column("part", Integer, nullable=False),
    Column("channel_id", Text, nullable=False),
    Column("message_id", Text, nullable=False),
    Column("sent_at", BigInteger, nullable=False),
    PrimaryKeyConstraint("query_id", "part"),
)

open_questions = Table(
    "open_questions",
    metadata,
    Column("query_id", Text, primary_key=True),
    Column("guild_id", Text, nullable=False),
    Column("channel_id", Text, nullable=False),
    Column("message_id", Text),
    Column("asker_id", Text, nullable=False),
    Column("audience", Text, nullable=False),
    Column("expires_at", BigInteger, nullable=False),
    Index("open_questions_expiry", "expires_at"),
)

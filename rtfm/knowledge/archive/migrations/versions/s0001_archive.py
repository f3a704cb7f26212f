"""The archive's tables and indexes.

This step is changed in place until the first release.
"""

from __future__ import annotations

from alembic import op

revision = "0001"
down_revision = None

_STATEMENTS = (
    """
    CREATE TABLE channels (
        guild_id text NOT NULL,
        channel_id text NOT NULL,
        parent_channel_id text,
        kind text NOT NULL,
        acl_channel_id text NOT NULL,
        name text,
        observed_at bigint NOT NULL,
        from_discord boolean NOT NULL,
        PRIMARY KEY (guild_id, channel_id)
    )
    """,
    "CREATE INDEX channels_channel ON channels (channel_id)",
    "CREATE INDEX channels_acl ON channels (acl_channel_id)",
    """
    CREATE TABLE messages (
        message_id text PRIMARY KEY,
        guild_id text NOT NULL,
        channel_id text NOT NULL,
        author_id text,
        author_name text,
        author_is_bot boolean NOT NULL,
        content text NOT NULL,
        created_at bigint NOT NULL,
        edited_at bigint,
        version bigint NOT NULL,
        deleted boolean NOT NULL,
        reply_to_message_id text,
        mentioned_user_ids text[] NOT NULL,
        attachments jsonb NOT NULL,
        conversation_id text,
        passage_id text,
        vector bytea
    )
    """,
    "CREATE INDEX messages_channel_time ON messages (channel_id, created_at)",
    "CREATE INDEX messages_conversation ON messages (conversation_id)",
    "CREATE INDEX messages_passage ON messages (passage_id)",
    "CREATE INDEX messages_author ON messages (author_id)",
    """
    CREATE TABLE passages (
        passage_id text PRIMARY KEY,
        conversation_id text NOT NULL,
        guild_id text NOT NULL,
        channel_id text NOT NULL,
        acl_channel_id text NOT NULL,
        text text NOT NULL,
        terms tsvector NOT NULL,
        length integer NOT NULL,
        vector bytea,
        first_at bigint NOT NULL,
        last_at bigint NOT NULL,
        part_of text
    )
    """,
    "CREATE INDEX passages_conversation ON passages (conversation_id)",
    "CREATE INDEX passages_acl ON passages (guild_id, acl_channel_id)",
    "CREATE INDEX passages_channel ON passages (channel_id)",
    # For each word, a search reads the whole pending list: the terms that are not merged into this index yet. By
    # default, PostgreSQL lets this list grow to 4 MB; here the list is limited to 128 kB.
    """
    CREATE INDEX passages_guild_terms ON passages USING gin ((terms || array_to_tsvector(ARRAY['guild:' || guild_id])))
        WITH (gin_pending_list_limit = 128)
    """,
    """
    CREATE TABLE document_frequencies (
        guild_id text NOT NULL,
        term text NOT NULL,
        passages bigint NOT NULL,
        PRIMARY KEY (guild_id, term)
    )
    """,
    "CREATE TABLE corpora (guild_id text PRIMARY KEY, passages bigint NOT NULL, terms bigint NOT NULL)",
    """
    CREATE TABLE floors (
        guild_id text NOT NULL,
        mode text NOT NULL,
        floor double precision NOT NULL,
        passages bigint NOT NULL,
        PRIMARY KEY (guild_id, mode)
    )
    """,
    """
    CREATE TABLE collections (
        guild_id text PRIMARY KEY,
        generation integer NOT NULL,
        model text,
        dimension integer,
        rules text NOT NULL
    )
    """,
    """
    CREATE TABLE answers (
        query_id text PRIMARY KEY,
        response jsonb NOT NULL,
        answered_at bigint NOT NULL,
        made_by text NOT NULL
    )
    """,
    """
    CREATE INDEX answers_rest_on ON answers USING gin ((jsonb_path_query_array(response, '$.citations[*].message_id')
        || jsonb_path_query_array(response, '$.retrieved[*].message_ids[*]')))
    """,
    """
    CREATE TABLE erasures (
        scope text NOT NULL,
        id text NOT NULL,
        before bigint NOT NULL,
        guild_id text NOT NULL DEFAULT '',
        produced_to text,
        PRIMARY KEY (scope, id, guild_id)
    )
    """,
    """
    CREATE TABLE sent (
        query_id text NOT NULL,
        part integer NOT NULL,
        channel_id text NOT NULL,
        message_id text NOT NULL,
        sent_at bigint NOT NULL,
        PRIMARY KEY (query_id, part)
    )
    """,
    """
    CREATE TABLE open_questions (
        query_id text PRIMARY KEY,
        guild_id text NOT NULL,
        channel_id text NOT NULL,
        message_id text,
        asker_id text NOT NULL,
        audience text NOT NULL,
        expires_at bigint NOT NULL
    )
    """,
    "CREATE INDEX open_questions_expiry ON open_questions (expires_at)",
)


def upgrade() -> None:
    """Create the tables and indexes."""
    for statement in _STATEMENTS:
        op.execute(statement)

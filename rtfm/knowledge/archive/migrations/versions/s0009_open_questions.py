"""The questions that the bot asked and that still wait for their response."""

from __future__ import annotations

from alembic import op

revision = "0009"
down_revision = "0008"


def upgrade() -> None:
    """Make the table and the index by which rows that nobody waits for any more are removed."""
    op.execute(
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
        """
    )
    op.execute("CREATE INDEX open_questions_expiry ON open_questions (expires_at)")

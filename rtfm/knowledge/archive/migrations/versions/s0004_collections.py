"""Which collection of Chroma a guild's vectors stand in, and of which model and rules they and its passages are."""

from __future__ import annotations

from alembic import op

revision = "0004"
down_revision = "0003"


def upgrade() -> None:
    """Make the table. A guild of an older version has no row until its next message, and its vectors stay in use."""
    op.execute(
        """
        CREATE TABLE collections (
            guild_id text PRIMARY KEY,
            generation integer NOT NULL,
            model text,
            dimension integer,
            rules text NOT NULL
        )
        """
    )

"""Passages that are a part of one long message or of a file that came with it."""

from __future__ import annotations

from alembic import op

revision = "0006"
down_revision = "0005"


def upgrade() -> None:
    """Add the column; adding one without a default rewrites no table."""
    op.execute("ALTER TABLE passages ADD COLUMN part_of text")

"""Each answer names the record that made it, so that a second record of its question produces nothing."""

from __future__ import annotations

from alembic import op

revision = "0002"
down_revision = "0001"


def upgrade() -> None:
    """Add the column; adding one with a constant default rewrites no table."""
    op.execute("ALTER TABLE answers ADD COLUMN made_by text NOT NULL DEFAULT ''")

"""The relevance floor of each guild, with the size of the corpus that it was calibrated on."""

from __future__ import annotations

from alembic import op

revision = "0003"
down_revision = "0002"


def upgrade() -> None:
    """Make the table."""
    op.execute(
        """
        CREATE TABLE floors (
            guild_id text NOT NULL,
            mode text NOT NULL,
            floor double precision NOT NULL,
            passages bigint NOT NULL,
            PRIMARY KEY (guild_id, mode)
        )
        """
    )

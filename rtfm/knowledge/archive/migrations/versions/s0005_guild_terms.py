"""The term index knows guilds: looking a word up does not touch what other guilds said."""

from __future__ import annotations

from alembic import op

revision = "0005"
down_revision = "0004"


def upgrade() -> None:
    """Replace the index; ingest waits meanwhile, search does not."""
    op.execute(
        "CREATE INDEX passages_guild_terms ON passages"
        " USING gin ((terms || array_to_tsvector(ARRAY['guild:' || guild_id])))"
        # Each search reads all that waits to be put in order, which is 4 MB by default, once a word.
        " WITH (gin_pending_list_limit = 128)"
    )
    op.execute("DROP INDEX passages_terms")

"""The term index knows guilds: looking a word up does not touch what other guilds said."""

from __future__ import annotations

from rtfm.knowledge.archive.migrations.indexes import drop_index, make_index

revision = "0005"
down_revision = "0004"


def upgrade() -> None:
    """Replace the index; search and ingest go on meanwhile."""
    make_index(
        "passages_guild_terms",
        "passages USING gin ((terms || array_to_tsvector(ARRAY['guild:' || guild_id])))"
        # Each search reads all that waits to be put in order, which is 4 MB by default, once a word.
        " WITH (gin_pending_list_limit = 128)",
    )
    drop_index("passages_terms")

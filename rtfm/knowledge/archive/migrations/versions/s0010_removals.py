"""Erasures of a person in one guild, and how far telling of an erasure has come.

Also removes what earlier versions kept of deleted messages: answers that rest on them, and words that nobody says.
"""

from __future__ import annotations

from alembic import op

revision = "0010"
down_revision = "0009"


def upgrade() -> None:
    """Change ``erasures``, and remove."""
    op.execute("ALTER TABLE erasures ADD COLUMN guild_id text NOT NULL DEFAULT ''")
    op.execute("ALTER TABLE erasures ADD COLUMN produced_to text")
    op.execute("ALTER TABLE erasures DROP CONSTRAINT erasures_pkey")
    op.execute("ALTER TABLE erasures ADD PRIMARY KEY (scope, id, guild_id)")
    op.execute("DELETE FROM document_frequencies WHERE passages <= 0")
    op.execute(
        """
        UPDATE answers SET response = response || jsonb_build_object(
            'outcome', 'NOT_FOUND', 'reason', 'SOURCE_REMOVED', 'answer', '',
            'citations', jsonb_build_array(), 'retrieved', jsonb_build_array())
        WHERE EXISTS (
            SELECT FROM jsonb_array_elements_text(
                jsonb_path_query_array(response, '$.citations[*].message_id')
                || jsonb_path_query_array(response, '$.retrieved[*].message_ids[*]')) AS one(id)
            JOIN messages ON message_id = one.id WHERE deleted)
        """
    )

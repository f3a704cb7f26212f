"""The kept answers that rest on a message are found by an index, so that a deletion reaches them."""

from __future__ import annotations

from rtfm.knowledge.archive.migrations.indexes import make_index

revision = "0011"
down_revision = "0010"


def upgrade() -> None:
    """Make the index; answering and ingest go on meanwhile."""
    make_index(
        "answers_rest_on",
        "answers USING gin ((jsonb_path_query_array(response, '$.citations[*].message_id')"
        " || jsonb_path_query_array(response, '$.retrieved[*].message_ids[*]')))",
    )

"""Sketches stand together by channel; passages of public threads and posts are found by their own channel, too."""

from __future__ import annotations

from rtfm.knowledge.archive.migrations.indexes import make_index

revision = "0008"
down_revision = "0007"


def upgrade() -> None:
    """Make the indexes; search and ingest go on meanwhile."""
    make_index("passages_sketches", "passages (guild_id, acl_channel_id) INCLUDE (passage_id, sketch)")
    make_index("passages_threads", "passages (channel_id) WHERE acl_channel_id <> channel_id")

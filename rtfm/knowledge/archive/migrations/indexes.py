"""Indexes that are made while others read and write.

That cannot be done inside a transaction: a step that uses this does nothing else, so that it can be begun again.
"""

from __future__ import annotations

from alembic import op
from sqlalchemy import text

from rtfm.knowledge.archive.database import LOCK_TIMEOUT_S

INDEX_LOCK_TIMEOUT_S = 600
"""How long transactions that began earlier are waited for. Nobody waits behind that, other than behind a step which
changes a table."""

_VALID = "SELECT indisvalid FROM pg_index WHERE indexrelid = to_regclass(:name)"


def create_index(name: str, definition: str) -> None:
    """Make an index, which is there already only if it is whole. ``definition`` is what stands after ON."""
    with op.get_context().autocommit_block():
        op.execute(f"SET lock_timeout = '{INDEX_LOCK_TIMEOUT_S}s'")
        # An attempt that was cut off leaves one behind that is kept up to date and never used.
        if op.get_bind().execute(text(_VALID), {"name": name}).scalar() is False:
            op.execute(f"DROP INDEX CONCURRENTLY IF EXISTS {name}")
        op.execute(f"CREATE INDEX CONCURRENTLY IF NOT EXISTS {name} ON {definition}")
        op.execute(f"SET lock_timeout = '{LOCK_TIMEOUT_S}s'")

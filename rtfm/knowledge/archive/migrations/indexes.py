"""Creates indexes while other connections read and write.

PostgreSQL cannot create an index in this way inside a transaction, so a failed step is not rolled back. Therefore a
step that creates an index must do nothing else. Then the whole step can be repeated after a failure.
"""

from __future__ import annotations

from alembic import op
from sqlalchemy import text

from rtfm.knowledge.archive.database import LOCK_TIMEOUT_S

INDEX_LOCK_TIMEOUT_S = 600
"""Maximum number of seconds to wait for the end of earlier transactions. This wait does not block other statements."""

_VALID = "SELECT indisvalid FROM pg_index WHERE indexrelid = to_regclass(:name)"


def create_index(name: str, definition: str) -> None:
    """Create an index, unless it exists and is valid. ``definition`` is the part of CREATE INDEX after ON."""
    with op.get_context().autocommit_block():
        op.execute(f"SET lock_timeout = '{INDEX_LOCK_TIMEOUT_S}s'")
        # An interrupted CREATE INDEX leaves an invalid index. PostgreSQL updates such an index but never uses it. So
        # the invalid index is dropped and created again.
        if op.get_bind().execute(text(_VALID), {"name": name}).scalar() is False:
            op.execute(f"DROP INDEX CONCURRENTLY IF EXISTS {name}")
        op.execute(f"CREATE INDEX CONCURRENTLY IF NOT EXISTS {name} ON {definition}")
        op.execute(f"SET lock_timeout = '{LOCK_TIMEOUT_S}s'")

"""Sketches of passages: search among few of them reads these instead of whole passages and vectors."""

from __future__ import annotations

from alembic import op

revision = "0007"
down_revision = "0006"

_STATEMENTS = (
    "ALTER TABLE passages ADD COLUMN sketch bytea",
    """
    CREATE FUNCTION passages_forget_sketch() RETURNS trigger LANGUAGE plpgsql AS $$
    BEGIN
        NEW.sketch := NULL;
        RETURN NEW;
    END
    $$
    """,
    # A processor of an older version, at work beside newer ones, knows nothing of sketches.
    """
    CREATE TRIGGER passages_forget_sketch BEFORE UPDATE OF vector, terms ON passages FOR EACH ROW
    WHEN (NEW.sketch IS NOT DISTINCT FROM OLD.sketch AND NEW.sketch IS NOT NULL
          AND (NEW.vector IS DISTINCT FROM OLD.vector OR NEW.terms IS DISTINCT FROM OLD.terms))
    EXECUTE FUNCTION passages_forget_sketch()
    """,
)


def upgrade() -> None:
    """Add the column, which rewrites no table; it fills as passages are written, and a rebuild writes them all."""
    for statement in _STATEMENTS:
        op.execute(statement)

"""Alembic's entry point: runs the steps on the connection of ``SqlArchive.migrate``."""

from __future__ import annotations

from alembic import context

# One transaction for each step, so that a step can leave it: CREATE INDEX CONCURRENTLY cannot run in a transaction.
context.configure(
    connection=context.config.attributes["connection"], target_metadata=None, transaction_per_migration=True
)
with context.begin_transaction():
    context.run_migrations()

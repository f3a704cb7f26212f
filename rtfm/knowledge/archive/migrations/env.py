"""Alembic's entry point. It runs the migration steps on the connection of ``Database.migrate``."""

from __future__ import annotations

from alembic import context

# Each step has its own transaction, which a step can end: CREATE INDEX CONCURRENTLY cannot run in a transaction.
context.configure(
    connection=context.config.attributes["connection"], target_metadata=None, transaction_per_migration=True
)
with context.begin_transaction():
    context.run_migrations()

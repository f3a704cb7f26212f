"""Alembic's entry point. It runs the migration steps on the connection of ``Database.migrate``."""

from __future__ import annotations

from alembic import context

# Each step has its own transaction. A step that creates an index ends this transaction first, because CREATE INDEX
# CONCURRENTLY cannot run inside a transaction.
context.configure(
    connection=context.config.attributes["connection"], target_metadata=None, transaction_per_migration=True
)
with context.begin_transaction():
    context.run_migrations()

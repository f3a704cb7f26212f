"""Alembic's entry point: runs the steps over the connection that ``SqlArchive.migrate`` hands in."""

from __future__ import annotations

from alembic import context

# A transaction a step: one that makes an index beside others' work can be in none.
context.configure(
    connection=context.config.attributes["connection"], target_metadata=None, transaction_per_migration=True
)
with context.begin_transaction():
    context.run_migrations()

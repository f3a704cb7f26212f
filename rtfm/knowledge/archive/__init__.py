"""The archive: every message and passage, in PostgreSQL."""

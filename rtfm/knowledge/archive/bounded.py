"""Connections to PostgreSQL that wait only a limited time for a response.

PostgreSQL can limit the time of a statement, but only the server applies this limit. If the connection is broken, for
example by a firewall or by a proxy that hangs, the client gets no response. Without a limit of its own, the client
would wait forever.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import psycopg
from psycopg.abc import RV, PQGen
from sqlalchemy.dialects import registry
from sqlalchemy.dialects.postgresql.psycopg import PGDialect_psycopg

DIALECT = "postgresql+bounded"
PING_TIMEOUT_S = 3.0
"""Maximum number of seconds that a connection may take to respond to a ping.

SQLAlchemy pings an idle connection before using it again."""


class BoundedConnection(psycopg.Connection[Any]):
    """A connection that closes itself when a response takes longer than ``answer_timeout_s``; None means no limit."""

    answer_timeout_s: float | None = None

    def wait(self, gen: PQGen[RV], interval: float = 0.1, timeout: float | None = None) -> RV:
        """Wait for a response as psycopg does, but for at most ``timeout`` seconds.

        If ``timeout`` is None, the limit is ``answer_timeout_s``. psycopg calls this method for every request. Raises
        OperationalError if no response arrives in time.
        """
        bound_s = self.answer_timeout_s if timeout is None else timeout
        started_s = time.monotonic()
        try:
            return super().wait(gen, interval, bound_s)
        except psycopg.OperationalError as exc:
            if timeout is not None or bound_s is None or time.monotonic() - started_s < bound_s:
                raise
            self.pgconn.finish()
            raise psycopg.OperationalError(f"no response within {bound_s:g} s") from exc

    @contextmanager
    def limit_answer_time(self, bound_s: float | None) -> Iterator[None]:
        """Set ``answer_timeout_s`` to ``bound_s`` inside the block; None means no limit."""
        before, self.answer_timeout_s = self.answer_timeout_s, bound_s
        try:
            yield
        finally:
            self.answer_timeout_s = before


class BoundedDialect(PGDialect_psycopg):
    """SQLAlchemy's dialect for psycopg, with bounded connections."""

    supports_statement_cache = True

    def connect(self, *arguments: Any, answer_timeout_s: float | None = None, **options: Any) -> Any:
        """Connect, and limit the time of each response to ``answer_timeout_s``."""
        connection = BoundedConnection.connect(*arguments, **options)
        connection.answer_timeout_s = answer_timeout_s
        return connection

    def do_ping(self, dbapi_connection: Any) -> bool:
        """Return whether the connection responds within ``PING_TIMEOUT_S``."""
        with dbapi_connection.limit_answer_time(PING_TIMEOUT_S):
            return bool(super().do_ping(dbapi_connection))  # type: ignore[no-untyped-call]  # SQLAlchemy has no types there


registry.register("postgresql.bounded", __name__, BoundedDialect.__name__)

"""Connections to PostgreSQL on which nothing waits for ever.

PostgreSQL's own limits end statements, not the waiting of a client whose connection is dead without a word, as behind a
firewall that forgot it or a proxy that hangs.
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
"""How long a connection that was not used for a while has to show that it lives."""


class BoundedConnection(psycopg.Connection[Any]):
    """Gives up, and closes itself, when an answer takes longer than ``answer_within_s``; None waits."""

    answer_within_s: float | None = None

    def wait(self, gen: PQGen[RV], interval: float = 0.1, timeout: float | None = None) -> RV:
        """See psycopg, which sends every request of a connection through here. Raises OperationalError when late."""
        bound_s = self.answer_within_s if timeout is None else timeout
        begun_s = time.monotonic()
        try:
            return super().wait(gen, interval, bound_s)
        except psycopg.OperationalError as exc:
            if timeout is not None or bound_s is None or time.monotonic() - begun_s < bound_s:
                raise
            self.pgconn.finish()
            raise psycopg.OperationalError(f"no answer within {bound_s:g} s") from exc

    @contextmanager
    def answering_within(self, bound_s: float | None) -> Iterator[None]:
        """Another bound for a while."""
        before, self.answer_within_s = self.answer_within_s, bound_s
        try:
            yield
        finally:
            self.answer_within_s = before


class BoundedDialect(PGDialect_psycopg):
    """SQLAlchemy's dialect for psycopg, with such connections."""

    supports_statement_cache = True

    def connect(self, *arguments: Any, answer_within_s: float | None = None, **options: Any) -> Any:
        """Connect; ``answer_within_s`` is the connection's bound from then on."""
        connection = BoundedConnection.connect(*arguments, **options)
        connection.answer_within_s = answer_within_s
        return connection

    def do_ping(self, dbapi_connection: Any) -> bool:
        """Whether the connection answers at once."""
        with dbapi_connection.answering_within(PING_TIMEOUT_S):
            return bool(super().do_ping(dbapi_connection))  # type: ignore[no-untyped-call]  # SQLAlchemy has no types there


registry.register("postgresql.bounded", __name__, BoundedDialect.__name__)

"""The connection to PostgreSQL: one engine, short transactions, and its errors in the project's own words."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from urllib.parse import urlsplit

import psycopg
from psycopg.errors import UndefinedColumn, UndefinedTable
from sqlalchemy import Connection, create_engine, exc, text

from rtfm.errors import ConfigError, InvalidEvent, RtfmError, Unavailable

CONNECT_TIMEOUT_S = 5
STATEMENT_TIMEOUT_S = 60
LOCK_TIMEOUT_S = 2
"""How long a step of the migrations waits for a table."""

_MIGRATIONS = Path(__file__).parent / "migrations"

# Any number will do, as long as no other program takes advisory locks with it in this database.
_MIGRATION_LOCK = 7_305_108_171


class Database:
    """PostgreSQL as the archive uses it. Thread-safe; every ``begin`` is one short transaction."""

    def __init__(self, database_url: str, *, temporary: bool = False) -> None:
        """Prepare; nothing is connected yet. Raises ConfigError for an address that is none.

        ``temporary`` sees nothing but the temporary tables of its only connection, and waits for as long as it takes.
        """
        scheme, separator, rest = database_url.partition("://")
        if not separator or scheme.split("+")[0] not in ("postgresql", "postgres"):
            raise ConfigError(
                "DATABASE_URL is not a PostgreSQL address", hint="Write postgresql://user:password@host:port/name."
            )
        self.address = _without_secrets(database_url)
        try:
            self._engine = create_engine(
                f"postgresql+psycopg://{rest}",
                # Another connection would have other temporary tables: it must fail instead.
                pool_pre_ping=not temporary,
                pool_size=1 if temporary else 5,
                max_overflow=0 if temporary else 15,
                connect_args={
                    "connect_timeout": CONNECT_TIMEOUT_S,
                    # Short statements, mostly by index over pages that are in memory: PostgreSQL assumes neither.
                    "options": "-c timezone=UTC -c random_page_cost=1.1 -c jit=off "
                    + ("-c search_path=pg_temp" if temporary else f"-c statement_timeout={STATEMENT_TIMEOUT_S * 1000}"),
                    "application_name": "rtfm",
                },
            )
        except (exc.ArgumentError, ValueError) as error:
            raise ConfigError("DATABASE_URL cannot be read as an address") from error
        self._migrating = threading.Lock()

    @contextmanager
    def begin(self) -> Iterator[Connection]:
        """One transaction; commits at the end of the block.

        Raises Unavailable when PostgreSQL does not answer, ConfigError when the tables are not there, InvalidEvent when
        a value can never be stored.
        """
        try:
            with self._engine.begin() as connection:
                yield connection
        except (exc.ProgrammingError, psycopg.ProgrammingError) as error:
            if not isinstance(getattr(error, "orig", error), (UndefinedTable, UndefinedColumn)):
                raise RtfmError(f"PostgreSQL refused a statement: {_line(error)}") from error
            raise ConfigError(
                f"the archive at {self.address} does not have the tables that this version needs: {_line(error)}",
                hint="`rtfm-cli run processor` makes them when it starts.",
            ) from error
        except (exc.DataError, psycopg.DataError) as error:
            raise InvalidEvent(f"the archive cannot store a value: {_line(error)}") from error
        except (exc.DBAPIError, exc.TimeoutError, psycopg.Error) as error:
            # The last one comes from reads that use the driver's own cursor.
            raise self._unavailable(error) from error

    def migrate(self) -> None:
        """Bring the tables to this version; safe to call from several processes at once, and while others work.

        Raises Unavailable when a table that has to change stays in use: what waits for it keeps all others from it.
        """
        if self._is_current():
            return
        # Here, since every command that asks the archive would load it: a fifth of the time that `ask` takes to start.
        from alembic import command
        from alembic.config import Config

        config = Config()
        config.set_main_option("script_location", str(_MIGRATIONS))
        config.set_main_option("path_separator", "os")
        with self._migrating, self.begin() as connection:
            connection.execute(text("SELECT pg_advisory_xact_lock(:key)"), {"key": _MIGRATION_LOCK})
            connection.execute(text(f"SET LOCAL lock_timeout = '{LOCK_TIMEOUT_S}s'"))
            # To make an index takes as long as it takes.
            connection.execute(text("SET LOCAL statement_timeout = 0"))
            config.attributes["connection"] = connection
            command.upgrade(config, "head")

    def _is_current(self) -> bool:
        """Whether the tables are of the newest step, asked without the migrations' library."""
        newest = max(path.stem for path in (_MIGRATIONS / "versions").glob("s[0-9]*.py"))
        try:
            with self.begin() as connection:
                found = connection.execute(text("SELECT version_num FROM alembic_version")).scalar()
        except ConfigError:
            return False
        return found is not None and newest.startswith(f"s{found}_")

    def check(self) -> None:
        """Raise what keeps the archive from being used: Unavailable, or ConfigError when tables are missing."""
        with self.begin() as connection:
            connection.execute(text("SELECT 1 FROM messages LIMIT 1"))

    def close(self) -> None:
        """Close all connections."""
        self._engine.dispose()

    def _unavailable(self, error: Exception) -> Unavailable:
        return Unavailable(
            "PostgreSQL",
            f"PostgreSQL at {self.address}: {_line(error)}",
            hint="Start it with `rtfm-cli local up`, or set DATABASE_URL.",
        )


def _without_secrets(database_url: str) -> str:
    parts = urlsplit(database_url)
    try:
        port = parts.port
    except ValueError as error:
        raise ConfigError("DATABASE_URL: the port is no number") from error
    return f"{parts.hostname or 'localhost'}:{port or 5432}{parts.path}"


def _line(error: Exception) -> str:
    """The driver's own first line: no statement, no parameters, since these hold what people said."""
    cause = getattr(error, "orig", None) or error
    diagnosis = getattr(getattr(cause, "diag", None), "message_primary", None)
    return str(diagnosis or str(cause).strip().partition("\n")[0] or type(cause).__name__)

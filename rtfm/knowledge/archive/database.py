"""The connections to PostgreSQL, and the migrations of the archive's tables.

Errors of PostgreSQL and its driver are translated to errors of this project.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from urllib.parse import urlsplit

import psycopg
from sqlalchemy import Connection, create_engine, exc, text

from rtfm.addresses import redact_address
from rtfm.errors import ConfigError, InvalidEvent, RtfmError, Unavailable
from rtfm.knowledge.archive.bounded import DIALECT, BoundedConnection
from rtfm.telemetry import get_logger

CONNECT_TIMEOUT_S = 5
STATEMENT_TIMEOUT_S = 60
"""Maximum number of seconds that a statement may take, and that a transaction may be idle.

Without these limits, the locks of a vanished client would stay."""

ANSWER_MARGIN_S = 5
"""The client closes a connection if there is no response this many seconds after the limit for a statement."""

LOCK_TIMEOUT_S = 2
"""Maximum number of seconds that a migration waits for the lock of a table.

The limit is short because new statements on the table must wait as long as the migration waits for the lock."""

MIGRATION_WAIT_S = 1800
"""Maximum number of seconds that a process waits for a migration by another process.

Creating an index over many millions of rows takes minutes."""

_LOCK_POLL_S = 0.5

MIGRATIONS = Path(__file__).parent / "migrations"

# The key of the advisory lock for migrations. No other program may use this number in the archive's database.
_MIGRATION_LOCK = 7_305_108_171

_FIND_MIGRATING_BACKEND = """
    SELECT concat('backend ', pid, ' from ', coalesce(host(client_addr), 'a local socket'), ' since ', backend_start)
    FROM pg_locks JOIN pg_stat_activity USING (pid)
    WHERE locktype = 'advisory' AND granted AND objsubid = 1 AND (classid::bigint << 32) + objid::bigint = :key
      AND datname = current_database()
"""

# SQLSTATEs (https://www.postgresql.org/docs/18/errcodes-appendix.html). ``_REFUSES_CONTENT`` are the classes of errors
# which mean that a value can never be stored: data exceptions, integrity constraints, and exceeded limits, for example
# of the size of an index row.
_REFUSES_CONTENT = ("22", "23", "54")
_REFUSES_STATEMENT = "42"
_MISSES_TABLES = ("42P01", "42703")

_log = get_logger(__name__)


class Database:
    """The archive's database. Thread-safe."""

    def __init__(
        self,
        database_url: str,
        *,
        temporary: bool = False,
        statement_timeout_s: int = STATEMENT_TIMEOUT_S,
        migrations: Path = MIGRATIONS,
    ) -> None:
        """Prepare the connections, which are made at their first use.

        A ``temporary`` database has a single connection without time limits. In its statements, the names of tables
        mean the temporary tables of this connection. ``migrations`` is the folder with the steps of ``migrate``.
        Raises ConfigError if ``database_url`` is not a PostgreSQL address.
        """
        scheme, separator, rest = database_url.partition("://")
        if not separator or scheme.split("+")[0] not in ("postgresql", "postgres"):
            raise ConfigError(
                "DATABASE_URL is not a PostgreSQL address", hint="Write postgresql://user:password@host:port/name."
            )
        self.url = database_url
        self.address = _to_printable_address(database_url)
        limits = {"statement_timeout": statement_timeout_s, "idle_in_transaction_session_timeout": statement_timeout_s}
        timeouts = " ".join(f"-c {name}={seconds * 1000}" for name, seconds in limits.items())
        try:
            self._engine = create_engine(
                f"{DIALECT}://{rest}",
                # A broken connection of a temporary database must not be replaced, because a new connection would not
                # have the temporary tables.
                pool_pre_ping=not temporary,
                pool_size=1 if temporary else 5,
                max_overflow=0 if temporary else 15,
                connect_args={
                    "connect_timeout": CONNECT_TIMEOUT_S,
                    # PostgreSQL's defaults for planning suit long statements that read pages from the disk. These
                    # options suit the archive, whose statements are short and mostly read cached pages by index.
                    "options": "-c timezone=UTC -c random_page_cost=1.1 -c jit=off "
                    + ("-c search_path=pg_temp" if temporary else timeouts),
                    "answer_timeout_s": None if temporary else statement_timeout_s + ANSWER_MARGIN_S,
                    "application_name": "rtfm",
                },
            )
        except (exc.ArgumentError, ValueError):
            raise ConfigError("DATABASE_URL cannot be parsed") from None
        # The reader uses the same connections, but sends no BEGIN and COMMIT around statements.
        self._reader = self._engine.execution_options(isolation_level="AUTOCOMMIT")
        self._migrations = migrations
        self._migrating = threading.Lock()

    @contextmanager
    def begin(self) -> Iterator[Connection]:
        """Open a transaction, which commits at the end of the block.

        Raises Unavailable when PostgreSQL does not respond, ConfigError if the tables are missing, and InvalidEvent for
        a value that can never be stored.
        """
        with self._translate_errors(), self._engine.begin() as connection:
            yield connection

    @contextmanager
    def read(self) -> Iterator[Connection]:
        """Open a connection for reads. Each read sees all earlier commits. Raises what ``begin`` raises."""
        with self._translate_errors(), self._reader.connect() as connection:
            yield connection

    @contextmanager
    def _translate_errors(self) -> Iterator[None]:
        try:
            yield
        # Errors in reads that use the driver's cursor are of the type psycopg.Error. A parameter that contains an
        # unpaired surrogate causes a UnicodeEncodeError.
        except (exc.DBAPIError, exc.TimeoutError, psycopg.Error, UnicodeEncodeError) as error:
            raise self._to_rtfm_error(error) from error

    def migrate(self, *, wait_s: float = MIGRATION_WAIT_S, sleep: Callable[[float], None] = time.sleep) -> None:
        """Migrate the tables to the newest step.

        Several processes may call this method at once, and other connections may read and write meanwhile. Each step
        has its own transaction, so if a step fails, the earlier steps stay. Raises Unavailable when a table to be
        changed stays locked, or when another process is still migrating after ``wait_s`` seconds. Raises ConfigError if
        the tables are at a step that this version does not know.
        """
        if self._is_current():
            return
        # Importing Alembic takes a fifth of the time in which `ask` starts. So it is imported only when a migration is
        # needed.
        from alembic import command
        from alembic.config import Config
        from alembic.util import CommandError

        config = Config()
        config.set_main_option("script_location", str(self._migrations))
        config.set_main_option("path_separator", "os")
        with self._migrating, self._translate_errors(), self._engine.connect() as connection:
            try:
                self._take_migration_lock(connection, wait_s, sleep)
                connection.execute(text(f"SET lock_timeout = '{LOCK_TIMEOUT_S}s'"))
                connection.execute(text("SET statement_timeout = 0"))
                # The time of a response is not limited, because creating an index may take any time.
                _driver_connection(connection).answer_timeout_s = None
                connection.commit()
                config.attributes["connection"] = connection
                command.upgrade(config, "head")
            except CommandError as error:
                raise ConfigError(
                    f"the archive at {self.address} was made by another version of RTFM: {error}",
                    hint="Run the version that made it, or set DATABASE_URL to an empty database.",
                ) from error
            finally:
                # Closing the connection releases the lock. The connection must not be used again, because its settings
                # are for migrations only.
                connection.invalidate()

    def _take_migration_lock(self, connection: Connection, wait_s: float, sleep: Callable[[float], None]) -> None:
        # The lock is polled. If a statement of this process waited for the lock instead, CREATE INDEX CONCURRENTLY in
        # the other process would wait for this statement, which would be a deadlock.
        key = {"key": _MIGRATION_LOCK}
        waited_s = 0.0
        while not connection.execute(text("SELECT pg_try_advisory_lock(:key)"), key).scalar_one():
            holder = connection.execute(text(_FIND_MIGRATING_BACKEND), key).scalar()
            connection.commit()
            other = f"another process ({holder or 'just ended'})"
            if waited_s >= wait_s:
                raise Unavailable(
                    "PostgreSQL",
                    f"PostgreSQL at {self.address}: {other} is migrating the archive",
                    hint="A migration may take minutes. If it hangs, stop that process or its PostgreSQL backend.",
                )
            if not waited_s:
                _log.warning("waiting for another process to migrate the archive", who=other, at_most_s=wait_s)
            sleep(_LOCK_POLL_S)
            waited_s += _LOCK_POLL_S
        connection.commit()

    def _is_current(self) -> bool:
        """Return whether the tables are at the newest step, without loading Alembic."""
        newest = max(path.stem for path in (self._migrations / "versions").glob("s[0-9]*.py"))
        try:
            with self.begin() as connection:
                found = connection.execute(text("SELECT version_num FROM alembic_version")).scalar()
        except ConfigError:
            return False
        return found is not None and newest.startswith(f"s{found}_")

    def check(self) -> None:
        """Raise Unavailable if the archive does not respond, and ConfigError if it has no tables."""
        with self.begin() as connection:
            connection.execute(text("SELECT 1 FROM messages LIMIT 1"))

    def close(self) -> None:
        """Close all connections."""
        self._engine.dispose()

    def _to_rtfm_error(self, error: Exception) -> RtfmError:
        """Return this project's error for ``error``, by its SQLSTATE; an error of the driver itself has no SQLSTATE."""
        cause = getattr(error, "orig", None) or error
        state = str(getattr(cause, "sqlstate", None) or "")
        if state.startswith(_REFUSES_CONTENT) or (not state and isinstance(cause, (psycopg.DataError, UnicodeError))):
            return InvalidEvent(f"the archive cannot store a value: {_first_line(error)}")
        if state in _MISSES_TABLES:
            return ConfigError(
                f"the archive at {self.address} does not have the tables that this version needs: {_first_line(error)}",
                hint="`rtfm-cli run processor` creates them when it starts.",
            )
        if state.startswith(_REFUSES_STATEMENT) or isinstance(cause, psycopg.ProgrammingError):
            return RtfmError(f"PostgreSQL refused a statement: {_first_line(error)}")
        return Unavailable(
            "PostgreSQL",
            f"PostgreSQL at {self.address}: {_first_line(error)}",
            hint="Start it with `rtfm-cli local up`, or set DATABASE_URL.",
        )


def _driver_connection(connection: Connection) -> BoundedConnection:
    found = connection.connection.driver_connection
    assert isinstance(found, BoundedConnection)  # noqa: S101 - BoundedDialect creates all connections
    return found


def _to_printable_address(database_url: str) -> str:
    try:
        _ = urlsplit(database_url).port
    except ValueError:  # not chained, because the ValueError contains the wrong port, maybe a part of the password
        raise ConfigError("DATABASE_URL: the port is not a number") from None
    return redact_address(database_url).partition("://")[2]


def _first_line(error: Exception) -> str:
    """Return the first line of the driver's error. The statement is left out: its parameters may contain messages."""
    cause = getattr(error, "orig", None) or error
    if isinstance(cause, UnicodeEncodeError):
        return "not valid UTF-8"  # str(cause) would contain the text
    diagnosis = getattr(getattr(cause, "diag", None), "message_primary", None)
    return str(diagnosis or str(cause).strip().partition("\n")[0] or type(cause).__name__)

"""The connection to PostgreSQL: one engine, short transactions, and its errors in the project's own words."""

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
"""For a statement, and for a transaction between two of them: one whose client is gone holds its locks no longer."""

ANSWER_MARGIN_S = 5
"""What the answer may take beyond the time of its statement."""

LOCK_TIMEOUT_S = 2
"""How long a step of the migrations waits for a table that it changes: what waits for it keeps all others from it."""

MIGRATION_WAIT_S = 1800
"""How long one process waits until another has migrated: the index of an archive of many millions takes minutes."""

_ASK_AGAIN_S = 0.5

MIGRATIONS = Path(__file__).parent / "migrations"

# Any number will do, as long as no other program takes advisory locks with it in this database.
_MIGRATION_LOCK = 7_305_108_171

_WHO_MIGRATES = """
    SELECT concat('backend ', pid, ' from ', coalesce(host(client_addr), 'this machine'), ' since ', backend_start)
    FROM pg_locks JOIN pg_stat_activity USING (pid)
    WHERE locktype = 'advisory' AND granted AND objsubid = 1 AND (classid::bigint << 32) + objid::bigint = :key
      AND datname = current_database()
"""

# SQLSTATEs (https://www.postgresql.org/docs/18/errcodes-appendix.html). Classes that say that a value can never be
# stored: data exceptions, integrity constraints, limits such as an index row's.
_REFUSES_CONTENT = ("22", "23", "54")
_REFUSES_STATEMENT = "42"
_MISSES_TABLES = ("42P01", "42703")

_log = get_logger(__name__)


class Database:
    """PostgreSQL as the archive uses it. Thread-safe; every ``begin`` is one short transaction."""

    def __init__(
        self,
        database_url: str,
        *,
        temporary: bool = False,
        statement_timeout_s: int = STATEMENT_TIMEOUT_S,
        migrations: Path = MIGRATIONS,
    ) -> None:
        """Prepare; nothing is connected yet. Raises ConfigError for an address that is none.

        ``temporary`` sees nothing but the temporary tables of its only connection, and waits for as long as it takes.
        ``migrations`` is the folder of the steps that ``migrate`` takes.
        """
        scheme, separator, rest = database_url.partition("://")
        if not separator or scheme.split("+")[0] not in ("postgresql", "postgres"):
            raise ConfigError(
                "DATABASE_URL is not a PostgreSQL address", hint="Write postgresql://user:password@host:port/name."
            )
        self.url = database_url
        self.address = _without_secrets(database_url)
        limits = {"statement_timeout": statement_timeout_s, "idle_in_transaction_session_timeout": statement_timeout_s}
        limited = " ".join(f"-c {name}={seconds * 1000}" for name, seconds in limits.items())
        try:
            self._engine = create_engine(
                f"{DIALECT}://{rest}",
                # Another connection would have other temporary tables: it must fail instead.
                pool_pre_ping=not temporary,
                pool_size=1 if temporary else 5,
                max_overflow=0 if temporary else 15,
                connect_args={
                    "connect_timeout": CONNECT_TIMEOUT_S,
                    # Short statements, mostly by index over pages that are in memory: PostgreSQL assumes neither.
                    "options": "-c timezone=UTC -c random_page_cost=1.1 -c jit=off "
                    + ("-c search_path=pg_temp" if temporary else limited),
                    "answer_within_s": None if temporary else statement_timeout_s + ANSWER_MARGIN_S,
                    "application_name": "rtfm",
                },
            )
        except (exc.ArgumentError, ValueError):
            raise ConfigError("DATABASE_URL cannot be read as an address") from None
        # A connection of the same pool, where a statement needs neither BEGIN nor COMMIT.
        self._reader = self._engine.execution_options(isolation_level="AUTOCOMMIT")
        self._migrations = migrations
        self._migrating = threading.Lock()

    @contextmanager
    def begin(self) -> Iterator[Connection]:
        """One transaction; commits at the end of the block.

        Raises Unavailable when PostgreSQL does not answer, ConfigError when the tables are not there, InvalidEvent when
        a value can never be stored.
        """
        with self._translated(), self._engine.begin() as connection:
            yield connection

    @contextmanager
    def read(self) -> Iterator[Connection]:
        """A connection for reads, each of which sees what was committed before it. Raises what ``begin`` raises."""
        with self._translated(), self._reader.connect() as connection:
            yield connection

    @contextmanager
    def _translated(self) -> Iterator[None]:
        try:
            yield
        # SQLAlchemy's, those of reads that use the driver's own cursor, and half of a surrogate pair.
        except (exc.DBAPIError, exc.TimeoutError, psycopg.Error, UnicodeEncodeError) as error:
            raise self._in_own_words(error) from error

    def migrate(self, *, wait_s: float = MIGRATION_WAIT_S, sleep: Callable[[float], None] = time.sleep) -> None:
        """Bring the tables to this version; safe to call from several processes at once, and while others work.

        Each step is a transaction of its own, so that what one has done stays done when a later one cannot be done yet.
        Raises Unavailable when a table that has to change stays in use, or when another process is at it for ``wait_s``
        and not done. Raises ConfigError when the tables are of a step that this version does not know.
        """
        if self._is_current():
            return
        # Here, since every command that asks the archive would load it: a fifth of the time that `ask` takes to start.
        from alembic import command
        from alembic.config import Config
        from alembic.util import CommandError

        config = Config()
        config.set_main_option("script_location", str(self._migrations))
        config.set_main_option("path_separator", "os")
        with self._migrating, self._translated(), self._engine.connect() as connection:
            try:
                self._become_the_only_one(connection, wait_s, sleep)
                connection.execute(text(f"SET lock_timeout = '{LOCK_TIMEOUT_S}s'"))
                connection.execute(text("SET statement_timeout = 0"))
                # An index takes as long as it takes.
                _driver_connection(connection).answer_within_s = None
                connection.commit()
                config.attributes["connection"] = connection
                command.upgrade(config, "head")
            except CommandError as error:
                raise ConfigError(
                    f"the archive at {self.address} was made by another version of RTFM: {error}",
                    hint="Run the version that made it, or set DATABASE_URL to an empty database.",
                ) from error
            finally:
                # It ends, since it is set up for this only and holds the lock.
                connection.invalidate()

    def _become_the_only_one(self, connection: Connection, wait_s: float, sleep: Callable[[float], None]) -> None:
        """Ask again and again: who waits inside a statement keeps an index that is made beside others' work waiting."""
        key = {"key": _MIGRATION_LOCK}
        waited_s = 0.0
        while not connection.execute(text("SELECT pg_try_advisory_lock(:key)"), key).scalar_one():
            holder = connection.execute(text(_WHO_MIGRATES), key).scalar()
            connection.commit()
            who = f"another process ({holder or 'which ended just now'})"
            if waited_s >= wait_s:
                raise Unavailable(
                    "PostgreSQL",
                    f"PostgreSQL at {self.address}: {who} is migrating the archive",
                    hint="That may take minutes; if it hangs, end that process or its backend.",
                )
            if not waited_s:
                _log.warning("waiting until another process has migrated the archive", who=who, at_most_s=wait_s)
            sleep(_ASK_AGAIN_S)
            waited_s += _ASK_AGAIN_S
        connection.commit()

    def _is_current(self) -> bool:
        """Whether the tables are of the newest step, asked without the migrations' library."""
        newest = max(path.stem for path in (self._migrations / "versions").glob("s[0-9]*.py"))
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

    def _in_own_words(self, error: Exception) -> RtfmError:
        """What ``error`` means, by its SQLSTATE; errors of the driver itself have none."""
        cause = getattr(error, "orig", None) or error
        state = str(getattr(cause, "sqlstate", None) or "")
        if state.startswith(_REFUSES_CONTENT) or (not state and isinstance(cause, (psycopg.DataError, UnicodeError))):
            return InvalidEvent(f"the archive cannot store a value: {_line(error)}")
        if state in _MISSES_TABLES:
            return ConfigError(
                f"the archive at {self.address} does not have the tables that this version needs: {_line(error)}",
                hint="`rtfm-cli run processor` makes them when it starts.",
            )
        if state.startswith(_REFUSES_STATEMENT) or isinstance(cause, psycopg.ProgrammingError):
            return RtfmError(f"PostgreSQL refused a statement: {_line(error)}")
        return Unavailable(
            "PostgreSQL",
            f"PostgreSQL at {self.address}: {_line(error)}",
            hint="Start it with `rtfm-cli local up`, or set DATABASE_URL.",
        )


def _driver_connection(connection: Connection) -> BoundedConnection:
    found = connection.connection.driver_connection
    assert isinstance(found, BoundedConnection)  # noqa: S101 - the dialect makes no other
    return found


def _without_secrets(database_url: str) -> str:
    try:
        _ = urlsplit(database_url).port
    except ValueError:  # its message repeats what stands where the port should be
        raise ConfigError("DATABASE_URL: the port is no number") from None
    return redact_address(database_url).partition("://")[2]


def _line(error: Exception) -> str:
    """The driver's own first line: no statement, no parameters, since these hold what people said."""
    cause = getattr(error, "orig", None) or error
    if isinstance(cause, UnicodeEncodeError):
        return "it is no UTF-8"  # its own words quote the text
    diagnosis = getattr(getattr(cause, "diag", None), "message_primary", None)
    return str(diagnosis or str(cause).strip().partition("\n")[0] or type(cause).__name__)

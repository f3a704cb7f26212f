"""The archive on real PostgreSQL: migrations, stored answers, sent parts, open questions and clear errors."""

from __future__ import annotations

import re
import shutil
import threading
from collections.abc import Iterator
from pathlib import Path

import attrs
import psycopg
import pytest
from sqlalchemy import TableClause

from rtfm.errors import ConfigError, RtfmError, Unavailable
from rtfm.events import Audience, BotQuery, BotResponse, ChannelKind, Citation, Outcome, SourceKind, TimestampMillis
from rtfm.knowledge.archive import OpenQuestion, SqlArchive, StoredAnswer
from rtfm.knowledge.archive.database import MIGRATIONS, Database
from rtfm.settings import Settings

RESPONSE = BotResponse(
    query_id="m1",
    guild_id="100",
    channel_id="200",
    query_message_id="1",
    asker_id="7",
    asked_at=TimestampMillis(0),
    audience=Audience.PUBLIC,
    outcome=Outcome.EXTRACTED,
    answer="Use **ntfs-3g** [1]",
    citations=[
        Citation(
            number=1,
            kind=SourceKind.MESSAGE,
            guild_id="100",
            channel_id="200",
            channel_kind=ChannelKind.TEXT,
            message_id="1002",
            author_name="bo",
            created_at=TimestampMillis(5),
            excerpt="use ntfs-3g",
            score=0.75,
        )
    ],
    answered_at=TimestampMillis(9),
    elapsed_ms=12,
)


LATER_STEPS = {
    "s0002_index": "create_index('passages_late', 'passages (length)')",
    "s0003_column": "op.execute('ALTER TABLE passages ADD COLUMN late text')",
}


@pytest.fixture
def later_steps(tmp_path: Path) -> Path:
    """Return the migrations of a later version: one builds an index on a table in use, the next adds a column."""
    folder = tmp_path / "migrations"
    shutil.copytree(MIGRATIONS, folder)
    for name, statement in LATER_STEPS.items():
        number = int(name[1:5])
        lines = [
            "from alembic import op",
            "from rtfm.knowledge.archive.migrations.indexes import create_index",
            f'revision = "{number:04}"',
            f'down_revision = "{number - 1:04}"',
            f"def upgrade(): {statement}",
        ]
        (folder / "versions" / f"{name}.py").write_text("\n".join(lines), encoding="utf-8")
    return folder


@pytest.fixture
def archive(unmigrated_settings: Settings) -> Iterator[SqlArchive]:
    opened = SqlArchive(unmigrated_settings.database_url)
    opened.migrate()
    yield opened
    opened.close()


def test_without_tables_the_error_says_what_makes_them(unmigrated_settings: Settings) -> None:
    """A command that runs before the first migration gets a configuration error that names the fix."""
    archive = SqlArchive(unmigrated_settings.database_url)
    with pytest.raises(ConfigError, match="does not have the tables") as caught:
        archive.check()
    assert "rtfm-cli run processor" in str(caught.value.hint)
    archive.close()


@pytest.mark.parametrize("address", ["sqlite:///x", "localhost:5432", "postgresql://host:port/x"])
def test_an_invalid_address_is_refused(address: str) -> None:
    """An invalid address is refused before any connection is opened."""
    with pytest.raises(ConfigError, match="DATABASE_URL"):
        SqlArchive(address)


def test_no_password_is_in_an_error() -> None:
    """Errors contain no password, because they end up in logs and chats."""
    archive = SqlArchive("postgresql://rtfm:tulip@127.0.0.1:9/rtfm")
    with pytest.raises(Unavailable) as caught:
        archive.check()
    assert "tulip" not in str(caught.value)
    assert "127.0.0.1:9/rtfm" in str(caught.value)


def test_several_processes_may_migrate_at_once(unmigrated_settings: Settings) -> None:
    """Processors that start at the same time may all migrate, and a second migration raises no error."""
    errors: list[BaseException] = []

    def migrate() -> None:
        archive = SqlArchive(unmigrated_settings.database_url)
        try:
            archive.migrate()
            archive.migrate()
            archive.check()
        except RtfmError as exc:
            errors.append(exc)
        finally:
            archive.close()

    threads = [threading.Thread(target=migrate) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert errors == []


def test_a_migration_does_not_keep_others_from_a_table_that_is_in_use(
    archive: SqlArchive, unmigrated_settings: Settings, later_steps: Path
) -> None:
    """If a long read uses a table, a migration of the table gives up, reads continue, and a later migration succeeds.

    Completed steps stay, so a finished index is kept if a later step gives up.
    """
    later = Database(unmigrated_settings.database_url, migrations=later_steps)
    with psycopg.connect(unmigrated_settings.database_url) as reader:
        # The reader takes no snapshot, because building the index would wait for a transaction with a snapshot.
        reader.execute("LOCK TABLE passages IN ACCESS SHARE MODE")
        with pytest.raises(Unavailable, match="lock timeout"):
            later.migrate()
        with psycopg.connect(unmigrated_settings.database_url) as other:
            assert other.execute("SELECT version_num FROM alembic_version").fetchone() == ("0002",)
        reader.execute("SELECT count(*) FROM passages")
    later.migrate()
    with psycopg.connect(unmigrated_settings.database_url) as connection:
        connection.execute("SELECT late FROM passages")
    later.close()


def is_index_usable(index: str, settings: Settings) -> bool:
    """Return whether PostgreSQL considers ``index`` valid, and so may use it in searches."""
    with psycopg.connect(settings.database_url) as connection:
        row = connection.execute("SELECT indisvalid FROM pg_index WHERE indexrelid = to_regclass(%s)", [index])
        return row.fetchone() == (True,)


INSERTED = """
    INSERT INTO passages (passage_id, conversation_id, guild_id, channel_id, acl_channel_id, text, terms, length,
                          first_at, last_at)
    VALUES (%s, '1', '100', '200', '200', 'disk', 'disk', 1, 0, 0)
"""


def test_ingest_writes_while_a_migration_makes_an_index(
    archive: SqlArchive, unmigrated_settings: Settings, later_steps: Path
) -> None:
    """Ingest finishes a second batch while a migration that builds an index waits for the first batch."""
    later = Database(unmigrated_settings.database_url, migrations=later_steps)
    errors: list[BaseException] = []

    def migrate() -> None:
        try:
            later.migrate()
        except RtfmError as exc:
            errors.append(exc)

    migration = threading.Thread(target=migrate)
    with psycopg.connect(unmigrated_settings.database_url) as early:
        early.execute(INSERTED, ["1"])
        migration.start()
        with psycopg.connect(unmigrated_settings.database_url, autocommit=True) as late:
            waits = "SELECT 1 FROM pg_stat_activity WHERE datname = current_database() AND wait_event_type = 'Lock'"
            while migration.is_alive() and late.execute(waits).fetchone() is None:
                pass
            # Fail instead of waiting forever.
            late.execute("SET lock_timeout = '30s'")
            late.execute(INSERTED, ["2"])
            assert migration.is_alive(), errors
    migration.join()
    assert errors == []
    assert is_index_usable("passages_late", unmigrated_settings)
    assert archive.counts()["passages"] == 2
    later.close()


def test_an_unfinished_index_is_made_again(
    archive: SqlArchive, unmigrated_settings: Settings, later_steps: Path
) -> None:
    """An index that a killed migration left unfinished is built again, because searches do not use it."""
    with psycopg.connect(unmigrated_settings.database_url) as connection:
        connection.execute("CREATE INDEX passages_late ON passages (first_at)")
        connection.execute("UPDATE pg_index SET indisvalid = false WHERE indexrelid = 'passages_late'::regclass")
    later = Database(unmigrated_settings.database_url, migrations=later_steps)
    later.migrate()
    assert is_index_usable("passages_late", unmigrated_settings)
    with psycopg.connect(unmigrated_settings.database_url) as connection:
        (definition,) = connection.execute("SELECT pg_get_indexdef('passages_late'::regclass)").fetchall()
        assert "(length)" in definition[0]
    later.close()


def test_a_finished_index_is_not_built_twice(
    archive: SqlArchive, unmigrated_settings: Settings, later_steps: Path
) -> None:
    """A finished index is not built again if the migration crashed before it recorded the step."""
    with psycopg.connect(unmigrated_settings.database_url) as connection:
        connection.execute("CREATE INDEX passages_late ON passages (length)")
        whole = connection.execute("SELECT 'passages_late'::regclass::oid").fetchone()
    later = Database(unmigrated_settings.database_url, migrations=later_steps)
    later.migrate()
    with psycopg.connect(unmigrated_settings.database_url) as connection:
        assert connection.execute("SELECT 'passages_late'::regclass::oid").fetchone() == whole
    later.close()


def test_an_archive_of_a_later_version_is_left_alone(unmigrated_settings: Settings, later_steps: Path) -> None:
    """If the tables are of a later version, an older processor reports that it cannot use them, and changes nothing."""
    later = Database(unmigrated_settings.database_url, migrations=later_steps)
    later.migrate()
    later.close()
    older = SqlArchive(unmigrated_settings.database_url)
    with pytest.raises(ConfigError, match="another version"):
        older.migrate()
    older.close()


def test_a_migration_that_waits_for_another_names_it_and_gives_up(
    unmigrated_settings: Settings, capsys: pytest.CaptureFixture[str]
) -> None:
    """If another process migrates, a migration names that process and waits, and gives up after its time limit.

    The migration waits between statements, where no statement timeout applies. It succeeds if the other process ends
    in time.
    """
    database = Database(unmigrated_settings.database_url)
    with psycopg.connect(unmigrated_settings.database_url, autocommit=True) as other:
        other.execute("SELECT pg_advisory_lock(7305108171)")
        backend = other.info.backend_pid
        with pytest.raises(Unavailable, match=rf"backend {backend} .* is migrating"):
            database.migrate(wait_s=0)
        slept: list[float] = []

        def sleep(seconds: float) -> None:
            idle = other.execute(
                "SELECT bool_and(state = 'idle') FROM pg_stat_activity"
                " WHERE datname = current_database() AND application_name = 'rtfm'"
            ).fetchone()
            assert idle == (True,), "an index that is made concurrently would wait for a transaction that waits"
            slept.append(seconds)
            if sum(slept) > 100:
                other.execute("SELECT pg_advisory_unlock(7305108171)")

        database.migrate(wait_s=1000, sleep=sleep)
    database.check()
    assert sum(slept) > 100
    assert capsys.readouterr().out.count("waiting for another process to migrate") == 1
    database.close()


def test_no_migration_makes_an_index_on_a_table_that_has_rows_inside_a_transaction() -> None:
    """No migration builds an index inside a transaction on a table that has rows, because that would block ingest."""
    from rtfm.knowledge.archive.migrations import versions

    for file in Path(versions.__path__[0]).glob("s*.py"):
        steps = file.read_text(encoding="utf-8")
        made = set(re.findall(r"CREATE TABLE (\w+)", steps))
        indexed = re.findall(r"CREATE (?:UNIQUE )?INDEX (?!CONCURRENTLY)\w+ ON (\w+)", steps)
        assert set(indexed) <= made, file.name


def test_the_migrations_have_consecutive_numbers() -> None:
    """The numbers of migrations are consecutive, because two migrations of one number would stop every service."""
    from rtfm.knowledge.archive.migrations import versions

    steps = sorted(Path(versions.__path__[0]).glob("s[0-9]*.py"))
    assert [step.name[1:5] for step in steps] == [f"{number:04}" for number in range(1, len(steps) + 1)]
    for number, step in enumerate(steps[1:], start=2):
        assert f'revision = "{number:04}"\ndown_revision = "{number - 1:04}"' in step.read_text(encoding="utf-8")


def test_the_tables_of_the_migrations_are_those_of_the_code(archive: SqlArchive, unmigrated_settings: Settings) -> None:
    """The migrated tables are those that the code declares, because a difference would only show at run time."""
    from rtfm.knowledge.archive import tables

    with psycopg.connect(unmigrated_settings.database_url) as connection:
        rows = connection.execute(
            "SELECT table_name, column_name FROM information_schema.columns"
            " WHERE table_schema = 'public' AND table_name <> 'alembic_version'"
        ).fetchall()
    coded = {
        (table.name, column.name)
        for table in vars(tables).values()
        if isinstance(table, TableClause)
        for column in table.c
    }
    assert set(rows) == coded


def test_the_first_answer_to_a_question_stays(archive: SqlArchive) -> None:
    """Storing a second answer to a question changes nothing and returns the first answer."""
    assert archive.answers.find("m1") is None
    kept = StoredAnswer(response=RESPONSE, made_by="bot-queries-0-7")
    assert archive.answers.store(RESPONSE, made_by="bot-queries-0-7") == kept
    assert archive.answers.store(attrs.evolve(RESPONSE, answer="other"), made_by="bot-queries-0-9") == kept
    assert archive.answers.find("m1") == kept
    assert archive.counts()["answers"] == 1


def test_the_first_record_of_a_sent_part_stays(archive: SqlArchive) -> None:
    """If a part of a reply is recorded as sent twice, the first message id stays."""
    assert archive.sent("m1", 0) is None
    archive.record_sent("m1", 0, channel_id="200", message_id="5", sent_at=TimestampMillis(1))
    archive.record_sent("m1", 0, channel_id="200", message_id="6", sent_at=TimestampMillis(2))
    assert archive.sent("m1", 0) == "5"
    assert archive.sent("m1", 1) is None
    assert archive.own_messages(["5", "6"]) == {"5"}


def test_an_open_question_stays_as_it_was_asked_until_it_is_closed(archive: SqlArchive) -> None:
    """Opening an open question again changes nothing, and closing a question removes it."""
    query = BotQuery(
        query_id="m1",
        guild_id="100",
        channel_id="200",
        message_id="1",
        asker_id="7",
        question="how?",
        asked_at=TimestampMillis(0),
        expires_at=TimestampMillis(600_000),
        audience=Audience.PUBLIC,
        visible_channel_ids=["200"],
    )
    archive.questions.open(query, now=TimestampMillis(0))
    archive.questions.open(attrs.evolve(query, channel_id="201"), now=TimestampMillis(1))
    assert archive.questions.find("m1") == OpenQuestion(
        query_id="m1",
        guild_id="100",
        channel_id="200",
        message_id="1",
        asker_id="7",
        audience=Audience.PUBLIC,
        expires_at=TimestampMillis(600_000),
    )
    archive.questions.close("m1")
    assert archive.questions.find("m1") is None


def test_a_question_whose_response_never_comes_is_removed_a_day_after_it_expired(archive: SqlArchive) -> None:
    """A question without a response is removed a day after it expired, when the next question is opened.

    Until then the asker can be told that the question expired.
    """
    query = BotQuery(
        query_id="m1",
        channel_id="200",
        asker_id="7",
        question="how?",
        asked_at=TimestampMillis(0),
        expires_at=TimestampMillis(600_000),
        audience=Audience.ASKER,
        visible_channel_ids=[],
    )
    day_ms = 24 * 3600 * 1000
    archive.questions.open(query, now=TimestampMillis(0))
    archive.questions.open(attrs.evolve(query, query_id="m2"), now=TimestampMillis(600_000 + day_ms))
    assert archive.questions.find("m1") is not None
    archive.questions.open(attrs.evolve(query, query_id="m3"), now=TimestampMillis(600_001 + day_ms))
    assert archive.questions.find("m1") is None


def test_a_broken_connection_is_replaced(archive: SqlArchive, unmigrated_settings: Settings) -> None:
    """A broken connection is replaced, so that a service survives a restart of PostgreSQL."""
    archive.check()
    with psycopg.connect(unmigrated_settings.database_url, autocommit=True) as connection:
        connection.execute(
            "SELECT pg_terminate_backend(pid) FROM pg_stat_activity"
            " WHERE datname = current_database() AND pid <> pg_backend_pid()"
        )
    archive.check()

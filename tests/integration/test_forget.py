"""`rtfm-cli forget` with real dependencies: no text of an erased person, channel or guild is left."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import tempfile
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import psycopg
import pytest

from rtfm.clock import now_ms
from rtfm.contracts import Contracts
from rtfm.events import MessageChange
from rtfm.knowledge import Knowledge
from rtfm.knowledge.archive.erasing import Target
from rtfm.processor.answer import Answering
from rtfm.processor.ingest import Ingest
from rtfm.settings import Settings
from rtfm.streams.dead_letters.replays import ReplayRules
from rtfm.streams.dead_letters.store import DeadLetterStore, LetterFilter
from rtfm.streams.pipeline import Output, Record
from tests.answering import answerer, asked
from tests.conftest import environment_of
from tests.integration.test_deletion import ADVICE, handle, is_withdrawn
from tests.integration.test_dlq import dead_letter_records
from tests.knowledge import GUILD, START, RecordOfEvent, WordEmbedding, knowledge_of, message
from tests.streams import MESSAGES, eventually, produce, records, running

Cli = Callable[..., subprocess.CompletedProcess[str]]

TALK = (
    message(1, "the printer is locked by a stale job after the power cut"),
    message(2, f"remove the stale job: `{ADVICE} unlock --stale`", author_id="2", author_name="wilma", guild_id=GUILD),
    message(3, "thanks <@2>, the stale job of the printer is gone", mentioned_user_ids=["2"]),
    message(4, f"{ADVICE} again, elsewhere", author_id="2", author_name="wilma", guild_id="101", channel_id="900"),
)


@pytest.fixture
def knowledge(settings: Settings) -> Iterator[Knowledge]:
    opened = knowledge_of(settings, WordEmbedding())
    Ingest(knowledge=opened)([RecordOfEvent(event) for event in TALK])
    yield opened
    for guild_id in (GUILD, "101"):
        opened.vectors.forget_guild(guild_id)
    opened.close()


def _ingesting(knowledge: Knowledge) -> Callable[[Sequence[Record]], list[Output]]:
    def handle(batch: Sequence[Record]) -> list[Output]:
        Ingest(knowledge=knowledge)(batch)
        return []

    return handle


def everything(settings: Settings) -> str:
    """Return the text of every row of every table in the archive, including the vectors."""
    with psycopg.connect(settings.database_url) as connection:
        tables = [
            name
            for (name,) in connection.execute("SELECT tablename FROM pg_tables WHERE schemaname = 'public'").fetchall()
        ]
        return "\n".join(
            f"{name}: {row}"
            for name in tables
            for (row,) in connection.execute(f"SELECT t::text FROM {name} AS t").fetchall()  # noqa: S608 - a catalogue's names
        )


def deletions(settings: Settings, contracts: Contracts) -> Counter[str]:
    """Return how many DELETED records each message has."""
    events = [record.event for record in records(settings, contracts, MESSAGES)]
    return Counter(event.message_id for event in events if getattr(event, "change", None) is MessageChange.DELETED)


def test_a_dry_run_counts_and_changes_nothing(
    settings: Settings, contracts: Contracts, knowledge: Knowledge, cli: Cli
) -> None:
    """A dry run changes nothing, and prints counts as a table for people and as JSON for scripts."""
    before = everything(settings)
    found = json.loads(cli(settings, "forget", "--user", "2", "--dry-run", "--json").stdout)
    assert (found["dry_run"], found["scope"], found["id"], found["guild_id"]) == (True, "user", "2", None)
    assert (found["reach"]["messages"], found["reach"]["passages"]) == (2, 2)
    assert found["reach"]["vectors"] > 2
    table = cli(settings, "forget", "--user", "2", "--guild", "101", "--dry-run").stdout
    assert "1      messages" in table
    assert everything(settings) == before
    assert deletions(settings, contracts) == {}


def test_a_person_is_forgotten_everywhere(
    settings: Settings, contracts: Contracts, knowledge: Knowledge, cli: Cli
) -> None:
    """After `forget --user`, the person's messages, name, questions and answers are gone from the archive.

    Each of the person's messages has one DELETED record.
    """
    handler = Answering(answerer=answerer(knowledge), archive=knowledge.archive)
    quoting, own = asked(query_id="m90"), asked("tulips?", query_id="m91", asker_id="2")
    naming = asked("stale job gone thanks", query_id="m92", message_id="1001")
    for query in (quoting, own, naming):
        handle(handler, query)
    with running(settings, contracts, _ingesting(knowledge)):
        report = json.loads(cli(settings, "forget", "--user", "2", "--yes", "--json", "--no-wait").stdout)
        eventually(lambda: knowledge.archive.counts()["deleted"] == 2)
        again = json.loads(cli(settings, "forget", "--user", "2", "--yes", "--json").stdout)
    assert (report["told"], report["reach"]["answers_to_own_questions"]) == (2, 1)
    assert (again["told"], again["reach"]["messages"]) == (0, 0)
    assert deletions(settings, contracts) == {"1002": 1, "1004": 1}
    left = everything(settings)
    assert ADVICE not in left
    assert "wilma" not in left
    assert '"asker_id": "2"' not in left
    assert all(is_withdrawn(handle(handler, query)) for query in (quoting, own, naming))
    assert is_withdrawn(handle(handler, asked(query_id="m93", asker_id="2", asked_at=START)))
    Ingest(knowledge=knowledge)([RecordOfEvent(TALK[1]), RecordOfEvent(TALK[3])])
    assert ADVICE not in everything(settings)


def test_a_channel_id_that_two_guilds_have_is_erased_in_both(knowledge: Knowledge) -> None:
    """If two guilds use one channel id, an erasure of the channel without a guild covers the messages of both guilds.

    Discord's ids are unique, but an export or another program may give one channel id to two guilds.
    """
    Ingest(knowledge=knowledge)([RecordOfEvent(message(9, "the same channel", guild_id="101", channel_id="200"))])
    knowledge.archive.erasing.begin(Target(scope="channel", id="200"), before=now_ms())
    assert set(knowledge.archive.removals.find_removed(["1001", "1004", "1009"])) == {"1001", "1009"}


def test_messages_that_are_written_after_an_erasure_are_not_left_of_it(knowledge: Knowledge) -> None:
    """Messages that are newer than an erasure do not count as messages that are left to remove.

    They are not erased, so the command must neither wait for their removal nor report them.
    """
    erasing, target = knowledge.archive.erasing, Target(scope="user", id="2")
    assert erasing.count(target).messages == 2
    assert erasing.count_left(target, before=START) == 0
    assert erasing.count_left(target, before=now_ms()) == 2


@pytest.mark.parametrize(
    ("given", "gone"), [(("--channel", "200"), {"1001", "1002", "1003"}), (("--guild", "101"), {"1004"})]
)
def test_a_channel_and_a_guild_are_forgotten(
    settings: Settings, contracts: Contracts, knowledge: Knowledge, cli: Cli, given: tuple[str, str], gone: set[str]
) -> None:
    """Forgetting a channel or a guild leaves other channels and guilds unchanged."""
    with running(settings, contracts, _ingesting(knowledge)):
        cli(settings, "forget", *given, "--yes", "--no-wait")
        eventually(lambda: knowledge.archive.counts()["deleted"] == len(gone))
    assert deletions(settings, contracts) == dict.fromkeys(gone, 1)
    rows = knowledge.archive.writing.messages(["1001", "1002", "1003", "1004"])
    assert {message_id for message_id, row in rows.items() if row.deleted} == gone


def test_after_a_kill_the_next_run_continues(
    settings: Settings, contracts: Contracts, knowledge: Knowledge, cli: Cli
) -> None:
    """If `forget` is killed, the next run neither repeats nor omits a deletion, even if ingest has handled none."""
    many = [message(n, f"tulip {n}", author_id="66", channel_id=str(n % 7 + 1)) for n in range(100, 650)]
    Ingest(knowledge=knowledge)([RecordOfEvent(event) for event in many])
    program = str(Path(sys.executable).with_name("rtfm-cli"))
    command = [program, "forget", "--user", "66", "--yes", "--json", "--no-wait", "--rate", "50"]
    with tempfile.TemporaryFile() as log:
        process = subprocess.Popen(command, env=environment_of(settings), stdout=log, stderr=log)

        def noted() -> bool:
            assert process.poll() is None
            return "erasures: (user,66," in everything(settings) and '"",1' in everything(settings)

        eventually(noted)
        process.send_signal(signal.SIGKILL)
        process.wait()
    told = deletions(settings, contracts)
    assert 0 < len(told) < len(many)
    report = json.loads(
        cli(settings, "forget", "--user", "66", "--yes", "--json", "--no-wait", "--rate", "5000").stdout
    )
    assert report["told"] == len(many) - len(told)
    assert deletions(settings, contracts) == {event.message_id: 1 for event in many}


def test_a_dead_letter_of_what_was_erased_is_not_replayed(
    settings: Settings, contracts: Contracts, knowledge: Knowledge, cli: Cli
) -> None:
    """A dead letter of an erased message is not replayed, not even with --force.

    A replay would produce the erased text again, and Kafka would keep it for another week.
    """
    produce(settings, contracts, MESSAGES, message(5, ADVICE, author_id="2"), message(6, "tulips"))
    dead_letter_records(settings, contracts, 2)
    cli(settings, "forget", "--user", "2", "--yes", "--no-wait")
    erased = knowledge.archive.removals.erasures().covers_event
    for force in (False, True):
        rules = ReplayRules(contracts=contracts, force=force, is_erased=erased)
        with DeadLetterStore(settings) as store:
            refusals = {found.letter.origin: rules(found) for found in store.find(LetterFilter())}
        assert sorted("erased" in str(reason) for reason in refusals.values()) == [False, True]
    assert "erased since" in cli(settings, "dlq", "replay", "--all").stdout


@pytest.mark.parametrize(
    "arguments",
    [(), ("--channel", "1", "--guild", "2"), ("--user", ""), ("--user", "a b"), ("--user", "1", "--json")],
)
def test_an_unclear_target_is_refused(settings: Settings, cli: Cli, arguments: tuple[str, ...]) -> None:
    """If the target is missing or unclear, the exit code is 2."""
    assert cli(settings, "forget", *arguments, check=False).returncode == 2


def test_without_an_answer_nothing_is_forgotten(settings: Settings, knowledge: Knowledge, cli: Cli) -> None:
    """If nobody confirms at the prompt, nothing is erased."""
    before = everything(settings)
    done = cli(settings, "forget", "--user", "2", check=False)
    assert done.returncode == 130
    assert everything(settings) == before

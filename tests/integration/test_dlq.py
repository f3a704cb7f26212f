"""`rtfm-cli dlq` on real dead letters: list, show, replay and discard."""

from __future__ import annotations

import json
import secrets
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import psycopg
import pytest
from confluent_kafka import Producer

from rtfm.contracts import Contracts
from rtfm.errors import InvalidEvent
from rtfm.processor.ingest import Ingest
from rtfm.settings import Settings
from rtfm.streams.dead_letters.letters import MAX_STACK_BYTES
from rtfm.streams.dead_letters.replays import ReplayRules
from rtfm.streams.dead_letters.store import DeadLetterStore, FiledLetter, LetterFilter
from rtfm.streams.pipeline import Output, Record
from rtfm.streams.transactions import Fenced
from tests.conftest import environment_of
from tests.knowledge import knowledge_of, message
from tests.streams import (
    MESSAGES,
    QUERIES,
    RecordingHandler,
    build_message,
    committed,
    dead_letters,
    eventually,
    limit_record_bytes,
    produce,
    produce_raw,
    produce_raws,
    produced,
    records,
    running,
)

Cli = Callable[..., subprocess.CompletedProcess[str]]
ANY = LetterFilter()


def refuse(batch: Sequence[Record]) -> list[Output]:
    """Refuse every record as invalid."""
    raise InvalidEvent("nothing is welcome")


def dead_letter_records(settings: Settings, contracts: Contracts, count: int, handler: Any = refuse) -> None:
    """Run a pipeline with ``handler`` until ``count`` records of discord-messages are committed."""
    with running(settings, contracts, handler):
        eventually(lambda: committed(settings) == count)


def open_letters(settings: Settings, wanted: LetterFilter = ANY) -> list[FiledLetter]:
    with DeadLetterStore(settings) as store:
        return list(store.find(wanted))


def replay(settings: Settings, contracts: Contracts, wanted: LetterFilter = ANY, **rules: Any) -> list[str | None]:
    """Replay dead letters, and return for each the reason why it was refused, or None."""
    with DeadLetterStore(settings) as store:
        decisions = list(store.replay(wanted, ReplayRules(contracts=contracts, **rules)))
    return [decision.refusal for decision in decisions]


def test_dead_letters_are_listed_by_filter_counted_and_discarded(
    settings: Settings, contracts: Contracts, cli: Cli
) -> None:
    """Each filter of `dlq list` selects its dead letters, and discarded dead letters are listed only on request."""
    produce(settings, contracts, MESSAGES, build_message(1, channel="200"))
    produce_raw(settings, MESSAGES, b"\x00\x7f\xff\xff\xffx", key=b"201")
    produce_raw(settings, MESSAGES, None, key=b"202")
    dead_letter_records(settings, contracts, 3)

    def ids(**wanted: Any) -> list[str]:
        return [found.letter.id for found in open_letters(settings, LetterFilter(**wanted))]

    listed = json.loads(cli(settings, "dlq", "list", "--json").stdout)["dead_letters"]
    rows = {row["key"]: row for row in listed}
    assert [rows[key]["error_class"] for key in ("200", "201", "202")] == [
        "InvalidEvent",
        "UnknownSchema",
        "UndecodableRecord",
    ]
    assert rows["201"]["schema_id"] == "2147483647"
    now_ms = int(time.time() * 1000)
    assert ids(error_class="InvalidEvent", since_ms=now_ms - 3_600_000) == [rows["200"]["id"]]
    assert ids(key=b"201", stage="DECODE", topic=MESSAGES) == [rows["201"]["id"]]
    assert ids(ids=frozenset([rows["202"]["id"]])) == [rows["202"]["id"]]
    assert ids(until_ms=now_ms - 3_600_000) == ids(since_ms=now_ms + 3_600_000) == ids(topic=QUERIES) == []
    assert "would be discarded" in cli(settings, "dlq", "discard", rows["202"]["id"]).stdout
    assert "1 discarded" in cli(settings, "dlq", "discard", rows["202"]["id"], "--yes").stdout
    assert sorted(ids()) == sorted([rows["200"]["id"], rows["201"]["id"]])
    table = cli(settings, "dlq", "list", "--state", "discarded", "--since", "1h", "--key", "202").stdout
    assert rows["202"]["id"] in table
    assert rows["200"]["id"] not in table
    stats = json.loads(cli(settings, "dlq", "stats", "--json").stdout)
    assert (stats["open"], stats["discarded"], stats["by_topic"]) == (2, 1, {MESSAGES: 2})
    assert stats["by_error_class"] == {"InvalidEvent": 1, "UnknownSchema": 1}
    assert stats["by_age"] == {"under 1 h": 2}


def test_a_key_and_headers_of_a_stranger_are_shown_as_text(settings: Settings, contracts: Contracts, cli: Cli) -> None:
    """Keys and headers of other programs are shown as text.

    A key like ``[/nope]`` could make `dlq list` fail, and headers could control the terminal.
    """
    key = "[/nope]\x1b[2J\u202e"
    produce_raw(
        settings, MESSAGES, b"\x00\x7f\xff\xff\xffx", key=key.encode(), headers=[("\x1b]0;x\x07", b"\x9b31m\n")]
    )
    dead_letter_records(settings, contracts, 1)
    (letter,) = open_letters(settings)
    listed = cli(settings, "dlq", "list").stdout
    assert r"[/nope]\x1b[2J\u202e" in listed
    for shown in (listed, *(cli(settings, "dlq", *more).stdout for more in (["show", letter.letter.id], ["stats"]))):
        assert all(character.isprintable() or character == "\n" for character in shown)
    as_json = cli(settings, "dlq", "list", "--json").stdout
    assert json.loads(as_json)["dead_letters"][0]["key"] == key
    assert "\u202e" not in as_json


def test_show_decodes_up_to_the_bad_byte_and_points_at_it(settings: Settings, contracts: Contracts, cli: Cli) -> None:
    """`dlq show` prints the values before an undecodable byte, and points at that byte."""
    good = contracts.encode(MESSAGES, build_message(1, content="hello there"))
    at = good.index(b"hello") + 3
    produce_raw(settings, MESSAGES, good[:at] + b"\xff" + good[at + 1 :], key=b"200", headers=[("odd", b"\xfe")])
    dead_letter_records(settings, contracts, 1)
    (found,) = open_letters(settings)
    shown = json.loads(cli(settings, "dlq", "show", found.letter.id, "--json").stdout)
    assert shown["fault"] == {"position": at, "path": "DiscordMessage.content", "reason": "the text is not UTF-8"}
    assert shown["fields"]["message_id"] == "1"
    assert "content" not in shown["fields"]
    assert shown["headers"] == [["odd", "\\xfe"]]
    assert shown["now"].startswith("still cannot be decoded: DiscordMessage.content: the text is not UTF-8")
    assert len(shown["facts"]["__connect.errors.exception.stacktrace"].encode()) <= MAX_STACK_BYTES
    lines = cli(settings, "dlq", "show", found.letter.id).stdout.splitlines()
    pointer = next(number for number, line in enumerate(lines) if line.strip() == "^^")
    column = lines[pointer].index("^^")
    assert lines[pointer - 1][column : column + 2] == "ff"


def test_a_replay_produces_the_original_once(settings: Settings, contracts: Contracts, cli: Cli) -> None:
    """A replay produces the original record once.

    A dry run does nothing, the fixed handler gets the record, and a second replay finds nothing to do.
    """
    headers = [("traceparent", b"00-" + b"a" * 32 + b"-" + b"b" * 16 + b"-01"), ("odd", b"\xff"), ("none", None)]
    value = contracts.encode(MESSAGES, build_message(1))
    produce_raw(settings, MESSAGES, value, key=b"any", headers=headers)  # type: ignore[arg-type]  # None is a value
    dead_letter_records(settings, contracts, 1)
    assert "would be replayed" in cli(settings, "dlq", "replay", "--all").stdout
    assert len(records(settings, contracts, MESSAGES)) == 1
    done = json.loads(cli(settings, "dlq", "replay", "--all", "--yes", "--json").stdout)
    assert (done["dry_run"], done["replayed"], done["refused"]) == (False, 1, 0)
    first, again = records(settings, contracts, MESSAGES)
    assert (again.key, again.value, again.partition) == (first.key, value, first.partition)
    assert again.headers[: len(headers)] == headers
    assert json.loads(cli(settings, "dlq", "replay", "--all", "--yes", "--json").stdout)["items"] == []
    named = cli(settings, "dlq", "replay", done["items"][0]["id"], "--yes", check=False)
    assert named.returncode == 1
    assert "replayed at" in named.stdout
    fixed = RecordingHandler()
    with running(settings, contracts, fixed):
        eventually(lambda: fixed.ids == ["1"])
    assert open_letters(settings) == []


def test_a_record_that_keeps_failing_is_not_replayed_forever(settings: Settings, contracts: Contracts) -> None:
    """A record that fails after every replay is replayed at most three times without --force.

    The headers of its dead letter do not grow, and the time of its first failure stays recorded.
    """
    produce_raw(settings, MESSAGES, contracts.encode(MESSAGES, build_message(1)), headers=[("odd", b"\xff")])
    with running(settings, contracts, refuse):
        eventually(lambda: len(open_letters(settings)) == 1)
        (first,) = (found.letter for found in open_letters(settings))
        for attempt in range(2, 5):
            assert replay(settings, contracts) == [None]
            eventually(lambda: len(open_letters(settings)) == 1)
            (found,) = open_letters(settings)
            assert (found.letter.attempt, found.letter.headers) == (attempt, [("odd", b"\xff")])
            assert found.letter.first_failure_ms == first.first_failure_ms
        (refusal,) = replay(settings, contracts)
        assert "failed 4 times" in (refusal or "")
        assert replay(settings, contracts, force=True) == [None]


def test_a_replay_refuses_records_that_cannot_succeed(settings: Settings, contracts: Contracts) -> None:
    """A replay leaves out undecodable bytes, dead letters of other programs, and records that crashed the processor."""
    produce(settings, contracts, MESSAGES, build_message(1))
    produce_raw(settings, MESSAGES, b"never")
    produce_raw(settings, MESSAGES, None)
    dead_letter_records(settings, contracts, 3)
    letter = next(found.letter for found in open_letters(settings) if found.letter.value == b"never")
    produce_raw(settings, "dead-letters", b"x", headers=[("__connect.errors.topic", MESSAGES.encode())])
    crashed = [
        (n, b"CRASH" if n == "__connect.errors.stage" else v) for n, v in read_headers(settings, contracts, letter.id)
    ]
    produce_raw(settings, "dead-letters", b"x", headers=crashed)
    refusals = replay(settings, contracts)
    assert refusals.count(None) == 1
    text = " ".join(filter(None, refusals))
    for reason in ("it would fail again", "no value", "another program", "crashed the processor"):
        assert reason in text
    assert len(records(settings, contracts, MESSAGES)) == 4


def read_headers(settings: Settings, contracts: Contracts, letter_id: str) -> list[tuple[str, bytes]]:
    """Return all headers of the dead letter with ``letter_id``."""
    found = dead_letters(settings, contracts)
    return next(record.headers for record in found if f"{record.partition}-{record.offset}" == letter_id)


def test_a_refused_replay_does_not_block_the_others(settings: Settings, contracts: Contracts) -> None:
    """If Kafka refuses the replay of one dead letter, the other dead letters are still replayed.

    The refused original is larger than its topic now allows. The transaction with it fails, and the other originals
    are sent again in another transaction.
    """
    produce(settings, contracts, MESSAGES, *(build_message(n, channel=str(n)) for n in range(2, 6)))
    produce(settings, contracts, MESSAGES, build_message(1, content=secrets.token_hex(20_000)))
    dead_letter_records(settings, contracts, 5)
    limit_record_bytes(settings, MESSAGES, 5000)
    refusals = replay(settings, contracts)
    assert refusals.count(None) == 4
    assert "Kafka refuses it" in next(reason for reason in refusals if reason)
    assert [found.letter.key for found in open_letters(settings)] == [b"200"]


def test_replays_that_are_killed_and_started_again_replay_each_dead_letter_once(
    settings: Settings, contracts: Contracts
) -> None:
    """If replays are killed at random moments and started again, each dead letter is replayed once.

    The replayed record and the mark of its dead letter are in one transaction.
    """
    count = 3000
    values = [contracts.encode(MESSAGES, build_message(n)) for n in range(count)]
    produce_raws(settings, "dead-letters", values, headers=template(settings, contracts))
    program = Path(sys.executable).with_name("rtfm-cli")
    for wait_s in (0.0, 0.15, 0.05):
        before = produced(settings, contracts, MESSAGES)
        run = subprocess.Popen(
            [program, "dlq", "replay", "--all", "--yes", "--json"],
            cwd=tempfile.gettempdir(),  # this folder has no .env file
            env=environment_of(settings),
            stdout=subprocess.DEVNULL,
        )
        while run.poll() is None and produced(settings, contracts, MESSAGES) == before:
            time.sleep(0.01)
        time.sleep(wait_s)
        run.kill()
        run.wait(60)
    assert set(replay(settings, contracts)) <= {None}
    replayed = [record.event.message_id for record in records(settings, contracts, MESSAGES) if record.event]
    assert sorted(replayed[1:], key=int) == [str(n) for n in range(count)]
    assert open_letters(settings) == []


def template(settings: Settings, contracts: Contracts) -> list[tuple[str, bytes]]:
    """Return the headers of a real dead letter, and discard this dead letter."""
    produce(settings, contracts, MESSAGES, build_message(999_999))
    dead_letter_records(settings, contracts, 1)
    (found,) = open_letters(settings)
    headers = read_headers(settings, contracts, found.letter.id)
    count = len(found.letter.headers or [])
    with DeadLetterStore(settings) as store:
        assert len(list(store.discard(ANY, lambda _: None))) == 1
    return [(name, value) for name, value in headers[:count]] + headers[count:]


def test_a_later_replay_fences_an_earlier_one(settings: Settings, contracts: Contracts) -> None:
    """If two replay commands find one dead letter, the later command fences the earlier one and alone replays it."""
    produce(settings, contracts, MESSAGES, build_message(1))
    dead_letter_records(settings, contracts, 1)
    rules = ReplayRules(contracts=contracts)
    with DeadLetterStore(settings) as slow, DeadLetterStore(settings) as quick:

        def meanwhile(found: FiledLetter) -> str | None:
            assert [decision.refusal for decision in quick.replay(ANY, rules)] == [None]
            return rules(found)

        with pytest.raises(Fenced):
            list(slow.replay(ANY, meanwhile))
    assert len(records(settings, contracts, MESSAGES)) == 2


def test_dead_letters_of_an_uncommitted_transaction_are_not_listed(settings: Settings, contracts: Contracts) -> None:
    """If the transaction of a dead letter is open, the dead letter is not listed, because it may still be aborted."""
    producer: Any = Producer(
        {"bootstrap.servers": settings.kafka_bootstrap_servers, "transactional.id": f"{settings.instance_id}-open"}
    )
    producer.init_transactions(10)
    producer.begin_transaction()
    producer.produce(f"{settings.kafka_topic_prefix}dead-letters", b"x", b"k")
    producer.flush(10)
    assert open_letters(settings) == []
    producer.commit_transaction(10)
    assert len(open_letters(settings)) == 1


def test_an_erased_message_does_not_come_back_by_a_replay(settings: Settings, contracts: Contracts) -> None:
    """If the dead letters of two messages are replayed and one message is erased, only the other message is stored."""
    kept, erased = message(1, "keep the tulips dry"), message(2, "my secret hobby", author_id="77")
    produce(settings, contracts, MESSAGES, kept, erased)
    dead_letter_records(settings, contracts, 2)
    with psycopg.connect(settings.database_url) as connection:
        connection.execute(
            "INSERT INTO erasures (scope, id, before) VALUES ('user', '77', %s)", [erased.created_at + 1_000_000]
        )
    assert replay(settings, contracts) == [None, None]
    knowledge = knowledge_of(settings, None)
    ingest = Ingest(knowledge=knowledge)

    def handler(batch: Sequence[Record]) -> list[Output]:
        ingest(batch)
        return []

    with running(settings, contracts, handler):
        eventually(lambda: knowledge.archive.counts()["messages"] == 1)
        eventually(lambda: committed(settings) >= 4)
    with psycopg.connect(settings.database_url) as connection:
        rows = connection.execute("SELECT author_id, content FROM messages").fetchall()
    assert rows == [("1", "keep the tulips dry")]
    knowledge.vectors.forget_guild("100")
    knowledge.close()


def test_missing_and_unknown_arguments_give_exit_code_2(settings: Settings, bare_settings: Settings, cli: Cli) -> None:
    """If an argument is missing, invalid or unknown, an error says which, and the exit code is 2."""
    for arguments, line in (
        (("replay",), "Name dead letters by ID"),
        (("replay", "--all", "0-1", "--yes"), "Give either IDs or --all"),
        (("replay", "9-9", "--yes"), "no dead letter 9-9"),
        (("discard", "0-0", "nonsense", "--yes"), "no dead letter 0-0, nonsense"),
        (("show", "0-7"), "no dead letter 0-7"),
        (("list", "--since", "yesterday"), "neither like 2h"),
    ):
        done = cli(settings, "dlq", *arguments, check=False)
        assert (done.returncode, line in done.stderr) == (2, True), done.stderr
    missing = cli(bare_settings, "dlq", "list", check=False)
    assert missing.returncode == 2
    assert "topics init" in missing.stderr

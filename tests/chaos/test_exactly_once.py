"""Exactly once on real Kafka: workers are killed, frozen, added and removed, and everything is accounted for."""

from __future__ import annotations

import random
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
from attrs import evolve, frozen
from confluent_kafka import Consumer, TopicPartition

from rtfm.contracts import open_contracts
from rtfm.events import DiscordMessage
from rtfm.settings import Settings
from rtfm.streams.topics import TopicAdmin
from tests.chaos.worker import SLEEPER
from tests.conftest import CHECKOUT, environment_of
from tests.streams import MESSAGES, RESPONSES, committed, eventually, produce, produce_raw, records, said

CHANNELS = 60


class Fleet:
    """Worker processes by their name; what they wrote to standard error is kept."""

    def __init__(self, settings: Settings, *arguments: object) -> None:
        self._settings = settings
        self._arguments = [str(argument) for argument in arguments]
        self._workers: dict[str, subprocess.Popen[bytes]] = {}
        self.log = Path(tempfile.mkstemp(suffix=".log")[1])
        self.codes: list[int] = []

    def start(self, name: str) -> None:
        """Start a worker, or start it again in place."""
        settings = evolve(self._settings, instance_id=name)
        with self.log.open("ab") as log:
            self._workers[name] = subprocess.Popen(
                [sys.executable, "-m", "tests.chaos.worker", *self._arguments],
                env=environment_of(settings),
                cwd=CHECKOUT,
                stderr=log,
            )

    def send(self, name: str, number: signal.Signals) -> None:
        """Send a signal."""
        self._workers[name].send_signal(number)

    def kill(self, name: str) -> None:
        """``kill -9``."""
        self._workers[name].kill()
        self._workers.pop(name).wait(20)

    def end(self, name: str) -> int:
        """SIGTERM; the exit code."""
        worker = self._workers.pop(name)
        worker.terminate()
        self.codes.append(worker.wait(60))
        return self.codes[-1]

    def revive(self) -> list[str]:
        """Start again whoever ended by itself, as a supervisor does; their names."""
        ended = [name for name, worker in self._workers.items() if worker.poll() is not None]
        for name in ended:
            self.codes.append(self._workers[name].returncode)
            self.start(name)
        return ended

    def close(self) -> None:
        """Kill whoever is left."""
        for name in list(self._workers):
            self.kill(name)
        self.log.unlink()

    @property
    def names(self) -> list[str]:
        """Who runs."""
        return list(self._workers)


@pytest.fixture
def fleets() -> Iterator[list[Fleet]]:
    """Fleets that are closed at the end, whatever happens."""
    started: list[Fleet] = []
    yield started
    for fleet in started:
        fleet.close()


@frozen(kw_only=True)
class Account:
    """What became of messages that were answered: all zero where zero is due."""

    missing: int
    duplicated: int
    out_of_order: int


def account(settings: Settings, messages: Sequence[DiscordMessage]) -> Account:
    """Compare bot-responses, as a reader of committed records sees it, with what was asked."""
    found = [
        (record.event.query_id, int(record.event.answer.split("|")[0]))
        for record in records(settings, open_contracts(settings), RESPONSES)
    ]
    counts = Counter(number for _, number in found)
    last: dict[str, int] = {}
    inversions = 0
    for channel, number in found:
        inversions += last.get(channel, -1) >= number
        last[channel] = max(number, last.get(channel, -1))
    return Account(
        missing=len({int(message.message_id) for message in messages} - counts.keys()),
        duplicated=sum(count - 1 for count in counts.values()),
        out_of_order=inversions,
    )


NOTHING_WRONG = Account(missing=0, duplicated=0, out_of_order=0)


def messages_for(settings: Settings, count: int, first: int = 0) -> list[DiscordMessage]:
    """Produce ``count`` messages over many channels."""
    messages = [said(number, channel=str(number % CHANNELS)) for number in range(first, first + count)]
    produce(settings, open_contracts(settings), MESSAGES, *messages)
    return messages


def aborted(settings: Settings) -> int:
    """Records of bot-responses that were written and never became visible."""
    contracts = open_contracts(settings)
    states = TopicAdmin(settings, contracts.catalogue).states()
    written = next(state.records for state in states if state.topic == RESPONSES)
    return written - sum(1 for _ in records(settings, contracts, RESPONSES))


class Peek:
    """Sees what is written to bot-responses before it is committed."""

    def __init__(self, settings: Settings) -> None:
        self._consumer: Any = Consumer(
            {
                "bootstrap.servers": settings.kafka_bootstrap_servers,
                "group.id": "peek",
                "isolation.level": "read_uncommitted",
                "enable.auto.commit": False,
                "fetch.wait.max.ms": 5,
            }
        )
        topic = f"{settings.kafka_topic_prefix}{RESPONSES}"
        self._consumer.assign([TopicPartition(topic, number, 0) for number in range(3)])

    def skip(self) -> None:
        """Read everything there is."""
        while self._consumer.consume(1000, 0.3):
            pass

    def wait(self) -> None:
        """Return as soon as there is something new."""
        eventually(lambda: self._consumer.poll(1.0))

    def close(self) -> None:
        """Leave."""
        self._consumer.close()


def test_killed_inside_open_transactions_everything_is_answered_once(settings: Settings, fleets: list[Fleet]) -> None:
    """R1, R2: the worker dies when its output is written and not committed; moments at random hardly ever are that."""
    messages = messages_for(settings, 3000)
    fleets.append(fleet := Fleet(settings, 0, 8000, 8))
    fleet.start("one")
    peek, hits = Peek(settings), 0
    while hits < 3 and committed(settings) < len(messages):
        peek.skip()
        before = aborted(settings)
        peek.wait()
        fleet.kill("one")
        fleet.start("one")
        hits += aborted(settings) > before
    peek.close()
    eventually(lambda: committed(settings) == len(messages), timeout_s=120)
    assert fleet.end("one") == 0
    assert account(settings, messages) == NOTHING_WRONG
    assert hits > 0, "no kill hit an open transaction"


def test_killed_at_random_with_many_keys_in_hand_everything_is_answered_once_and_in_order(
    settings: Settings, fleets: list[Fleet]
) -> None:
    """R1, R2, R14: two workers take over from each other while records finish out of order; poison is one letter."""
    seed = random.Random(11)
    messages = messages_for(settings, 2000)
    for number in range(20):
        produce_raw(settings, MESSAGES, b"poison %d" % number)
    messages += messages_for(settings, 2000, first=2000)
    fleets.append(fleet := Fleet(settings, 20, 10, 16))
    for name in ("one", "two"):
        fleet.start(name)
    for _ in range(6):
        time.sleep(seed.uniform(1.0, 3.0))
        victim = seed.choice(fleet.names)
        fleet.kill(victim)
        fleet.start(victim)
    eventually(lambda: fleet.revive() or committed(settings) == len(messages) + 20, timeout_s=120)
    assert [fleet.end(name) for name in fleet.names] == [0, 0]
    assert account(settings, messages) == NOTHING_WRONG
    letters = [r.value for r in records(settings, open_contracts(settings), "dead-letters")]
    assert sorted(letters) == sorted(b"poison %d" % n for n in range(20))  # type: ignore[type-var]  # none is None


def test_a_frozen_worker_that_wakes_up_adds_nothing_twice(settings: Settings, fleets: list[Fleet]) -> None:
    """R5: its partitions went elsewhere while it slept; it goes on as a member or ends and is started again."""
    messages = messages_for(settings, 2500)
    fleets.append(fleet := Fleet(settings, 20, 10, 8))
    for name in ("one", "two"):
        fleet.start(name)
    eventually(lambda: committed(settings) > 100)
    fleet.send("one", signal.SIGSTOP)
    time.sleep(9)  # past the session's 6 s
    fleet.send("one", signal.SIGCONT)
    eventually(lambda: fleet.revive() or committed(settings) == len(messages), timeout_s=120)
    assert account(settings, messages) == NOTHING_WRONG


def test_two_processes_of_one_name_do_not_both_work(settings: Settings, fleets: list[Fleet]) -> None:
    """R4: the older is fenced and says so; nothing of it is visible twice."""
    messages = messages_for(settings, 2000)
    fleets.append(older := Fleet(settings, 50, 10, 2))
    fleets.append(younger := Fleet(settings, 5, 10, 8))
    older.start("same")
    eventually(lambda: committed(settings) > 0)
    younger.start("same")
    eventually(lambda: "Fenced" in older.log.read_text())
    eventually(lambda: committed(settings) == len(messages), timeout_s=120)
    assert account(settings, messages) == NOTHING_WRONG


def test_a_key_that_takes_long_holds_up_no_other_and_survives_a_kill(settings: Settings, fleets: list[Fleet]) -> None:
    """What is finished above it is committed in the offset's metadata and not done again."""
    contracts = open_contracts(settings)
    slow = said(0, channel="0", content=SLEEPER)
    produce(settings, contracts, MESSAGES, slow)
    others = [said(number, channel=str(number % CHANNELS)) for number in range(1, 1000) if number % CHANNELS]
    produce(settings, contracts, MESSAGES, *others)
    fleets.append(fleet := Fleet(settings, 1, 10, 8))
    fleet.start("one")

    def done() -> int:
        return sum(1 for _ in records(settings, contracts, RESPONSES))

    eventually(lambda: done() == len(others))
    assert committed(settings) < len(others) + 1
    fleet.kill("one")
    fleet.start("one")
    eventually(lambda: done() == len(others) + 1, timeout_s=60)
    eventually(lambda: committed(settings) == len(others) + 1)
    assert account(settings, [slow, *others]) == NOTHING_WRONG


def test_workers_that_come_and_go_lose_nothing(settings: Settings, fleets: list[Fleet]) -> None:
    """R10, R11: each leaves within its grace with exit code 0 and nothing is done again."""
    seed = random.Random(5)
    fleets.append(fleet := Fleet(settings, 10, 10, 8))
    fleet.start("w0")
    messages: list[DiscordMessage] = []
    for round_number in range(8):
        messages += messages_for(settings, 300, first=len(messages))
        if len(fleet.names) > 2 or (len(fleet.names) > 1 and seed.random() < 0.5):
            assert fleet.end(seed.choice(fleet.names)) == 0
        else:
            fleet.start(f"w{round_number + 1}")
        time.sleep(1)
    eventually(lambda: committed(settings) == len(messages), timeout_s=120)
    assert {fleet.end(name) for name in fleet.names} == {0}
    assert account(settings, messages) == NOTHING_WRONG

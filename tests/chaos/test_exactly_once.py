"""Exactly once on real Kafka: workers are killed, frozen, added and removed, and each message is answered once."""

from __future__ import annotations

import random
import re
import signal
import time

import pytest
from attrs import evolve
from confluent_kafka import Consumer

from rtfm.contracts import open_contracts
from rtfm.settings import Settings
from tests.chaos.fleet import CHANNELS, NOTHING_WRONG, Fleet, account, messages_all_the_time, messages_for
from tests.chaos.transactions import OpenTransactions
from tests.chaos.worker import HANGER, SLEEPER
from tests.streams import (
    GROUP,
    MESSAGES,
    RESPONSES,
    build_message,
    committed,
    dead_letters,
    eventually,
    produce,
    produce_raws,
    records,
)


@pytest.mark.parametrize("protocol", ["classic", "consumer"])
def test_killed_inside_open_transactions_everything_is_answered_once(
    settings: Settings, fleets: list[Fleet], protocol: str
) -> None:
    """R1, R2: the worker is killed between writing its output and committing it.

    With the classic protocol, the worker is a static member, so it gets its partitions back at once when it restarts.
    """
    fleets.append(fleet := Fleet(evolve(settings, kafka_group_protocol=protocol), 5, 2000, 8))
    fleet.start("one")
    with messages_all_the_time(settings) as messages:
        transactions = OpenTransactions(settings, group=GROUP, read=MESSAGES, written=RESPONSES)
        for _ in range(3):
            transactions.kill_one(fleet)
            fleet.start("one")
        transactions.close()
    eventually(lambda: not fleet.revive() and committed(settings) == len(messages), timeout_s=120)
    assert fleet.end("one") == 0
    assert account(settings, messages) == NOTHING_WRONG


@pytest.mark.parametrize("protocol", ["classic", "consumer"])
def test_killed_at_random_with_many_unfinished_keys_everything_is_answered_once_and_in_order(
    settings: Settings, fleets: list[Fleet], protocol: str
) -> None:
    """R1, R2, R14: 60,000 messages and 20 poison records, and eight kills of a worker.

    Each message is answered once and in order. Each poison record becomes one dead letter.
    """
    seed = random.Random(11)
    dynamic = evolve(settings, kafka_group_protocol=protocol, kafka_static_membership=False)
    messages = messages_for(settings, 30_000)
    produce_raws(settings, MESSAGES, [b"poison %d" % number for number in range(20)])
    messages += messages_for(settings, 30_000, first=30_000)
    fleets.append(fleet := Fleet(dynamic, 1, 10, 16))
    for name in ("one", "two"):
        fleet.start(name)
    for _ in range(8):
        time.sleep(seed.uniform(0.5, 2.5))
        victim = seed.choice(fleet.names)
        fleet.kill(victim)
        fleet.start(victim)
    eventually(lambda: not fleet.revive() and committed(settings) == len(messages) + 20, timeout_s=200)
    assert [fleet.end(name) for name in fleet.names] == [0, 0]
    assert account(settings, messages) == NOTHING_WRONG
    letters = [letter.value for letter in dead_letters(settings, open_contracts(settings))]
    assert sorted(letters) == sorted(b"poison %d" % n for n in range(20))  # type: ignore[type-var]  # no value is None


@pytest.mark.parametrize("protocol", ["classic", "consumer"])
def test_a_worker_that_hangs_ends_itself_and_another_takes_over(
    settings: Settings, fleets: list[Fleet], protocol: str
) -> None:
    """R6: no thread of the worker can run, not even the watchdog's. The log shows where the worker hung."""
    ours = evolve(settings, kafka_group_protocol=protocol, kafka_static_membership=False)
    messages = messages_for(settings, 200)
    produce(
        settings,
        open_contracts(settings),
        MESSAGES,
        hanger := build_message(200, channel="20", content=f"{HANGER} one"),
    )
    messages += [hanger, *messages_for(settings, 200, first=201)]
    fleets.append(one := Fleet(evolve(ours, watchdog_s=3.0), 5, 10, 8))
    fleets.append(two := Fleet(ours, 5, 10, 8))
    one.start("one")
    eventually(lambda: one.has_ended("one"))
    assert "in hang" in one.log.read_text()
    two.start("two")
    eventually(lambda: not account(settings, messages).missing, timeout_s=60)
    assert two.end("two") == 0
    assert account(settings, messages) == NOTHING_WRONG


def test_a_worker_frozen_until_its_transaction_expired_adds_nothing_twice_and_goes_on(
    settings: Settings, fleets: list[Fleet]
) -> None:
    """R5: a worker is frozen until its transaction has ended. Then both workers continue, and nothing is repeated."""
    fleets.append(fleet := Fleet(settings, 5, 2000, 8))
    for name in ("one", "two"):
        fleet.start(name)
    with messages_all_the_time(settings) as messages:
        transactions = OpenTransactions(settings, group=GROUP, read=MESSAGES, written=RESPONSES)
        eventually(lambda: committed(settings) > 0 and len(transactions.owners()) == 2)
        frozen = transactions.freeze_one(fleet)
        ends = transactions.end_offsets()
        eventually(lambda: transactions.have_ended_below(ends), timeout_s=60)
        fleet.send(frozen, signal.SIGCONT)
        eventually(lambda: len(transactions.owners()) == 2)
        transactions.close()
    eventually(lambda: committed(settings) == len(messages), timeout_s=120)
    assert fleet.codes == [], "a worker ended, although a freeze does not require it"
    assert [fleet.end(name) for name in fleet.names] == [0, 0]
    assert account(settings, messages) == NOTHING_WRONG


def test_two_processes_of_one_name_do_not_both_work(settings: Settings, fleets: list[Fleet]) -> None:
    """R4: the older process is fenced and logs this. No output is visible twice."""
    messages = messages_for(settings, 2000)
    fleets.append(older := Fleet(settings, 50, 10, 2))
    fleets.append(younger := Fleet(settings, 5, 10, 8))
    older.start("same")
    eventually(lambda: committed(settings) > 0)
    younger.start("same")
    eventually(lambda: "Fenced" in older.log.read_text())
    eventually(lambda: committed(settings) == len(messages), timeout_s=120)
    assert account(settings, messages) == NOTHING_WRONG


def test_of_two_idle_processes_of_one_name_the_older_ends(settings: Settings, fleets: list[Fleet]) -> None:
    """R4: the older process ends as soon as it notices the younger one, although it has nothing to commit."""
    fleets.append(older := Fleet(settings, 5, 10, 8))
    fleets.append(younger := Fleet(settings, 5, 10, 8))
    older.start("same")
    eventually(lambda: "assigned" in older.log.read_text())
    younger.start("same")
    eventually(lambda: older.has_ended("same"))
    assert "Fenced: another process took the place" in older.log.read_text()
    messages = messages_for(settings, 100)
    eventually(lambda: committed(settings) == len(messages))
    assert younger.end("same") == 0
    assert account(settings, messages) == NOTHING_WRONG


def test_a_worker_that_the_coordinator_fenced_joins_again(settings: Settings, fleets: list[Fleet]) -> None:
    """R3: a new coordinator may fence a member by mistake. The test fences the worker with a consumer of its name."""
    fleets.append(fleet := Fleet(settings, 5, 10, 8))
    fleet.start("one")
    with messages_all_the_time(settings) as messages:
        eventually(lambda: committed(settings) > 0)
        intruder = Consumer(
            {
                "bootstrap.servers": settings.kafka_bootstrap_servers,
                "group.id": f"{settings.kafka_topic_prefix}{GROUP}",
                "group.instance.id": f"{settings.kafka_topic_prefix}{GROUP}-one",
                "enable.auto.commit": False,
                "partition.assignment.strategy": "cooperative-sticky",
            }
        )
        intruder.subscribe([f"{settings.kafka_topic_prefix}{MESSAGES}"])
        eventually(lambda: (intruder.poll(0.1), "fenced by the coordinator" in fleet.log.read_text())[1])
        intruder.close()
    eventually(lambda: committed(settings) == len(messages), timeout_s=120)
    assert fleet.codes == []
    assert fleet.end("one") == 0
    assert account(settings, messages) == NOTHING_WRONG


def test_a_slow_key_holds_up_no_other_and_survives_a_kill(settings: Settings, fleets: list[Fleet]) -> None:
    """R7: handling one record takes longer than the group's poll limit, and nothing is lost.

    Meanwhile, later records of other keys are finished. The metadata of the position lists these records, so they are
    not handled again after the kill.
    """
    contracts = open_contracts(settings)
    impatient = evolve(settings, watchdog_s=4.0)  # polls may be 19 s apart, and the slow record takes 20
    slow = build_message(0, channel="0", content=SLEEPER)
    produce(settings, contracts, MESSAGES, slow)
    others = [build_message(number, channel=str(number % CHANNELS)) for number in range(1, 400) if number % CHANNELS]
    produce(settings, contracts, MESSAGES, *others)
    fleets.append(fleet := Fleet(impatient, 1, 10, 8))
    fleet.start("one")

    def done() -> int:
        return sum(1 for _ in records(settings, contracts, RESPONSES))

    eventually(lambda: done() == len(others))
    assert committed(settings) < len(others) + 1
    fleet.kill("one")
    fleet.start("one")
    eventually(lambda: not fleet.revive() and done() == len(others) + 1, timeout_s=120)
    assert "lost" not in fleet.log.read_text()
    eventually(lambda: committed(settings) == len(others) + 1)
    assert account(settings, [slow, *others]) == NOTHING_WRONG


@pytest.mark.parametrize("rounds", [8, pytest.param(30, marks=pytest.mark.long)])
def test_workers_that_come_and_go_lose_nothing(settings: Settings, fleets: list[Fleet], rounds: int) -> None:
    """R10, R11: every two seconds a worker starts or ends. A worker that ends has exit code 0. Nothing is repeated."""
    seed = random.Random(5)
    fleets.append(fleet := Fleet(evolve(settings, kafka_static_membership=False), 10, 10, 8))
    fleet.start("w0")
    with messages_all_the_time(settings) as messages:
        for number in range(1, rounds + 1):
            if len(fleet.names) > 2 or (len(fleet.names) > 1 and seed.random() < 0.5):
                assert fleet.end(seed.choice(fleet.names)) == 0
            else:
                fleet.start(f"w{number}")
            time.sleep(2)
    eventually(lambda: committed(settings) == len(messages), timeout_s=120)
    assert {fleet.end(name) for name in fleet.names} == {0}
    # A revocation waits for the transaction in progress, but not for handlers.
    revocations = [int(ms) for ms in re.findall(r"revoked .*elapsed_ms=(\d+)", fleet.log.read_text())]
    assert revocations
    assert max(revocations) <= 5000
    assert account(settings, messages) == NOTHING_WRONG

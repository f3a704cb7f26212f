"""Dead letters of workers that are killed with kill -9, and of records that crash the process."""

from __future__ import annotations

import random
import time
from collections.abc import Sequence
from functools import partial

import pytest
from attrs import evolve

from rtfm.contracts import open_contracts
from rtfm.events import DiscordMessage
from rtfm.settings import Settings
from rtfm.streams.producer import EventProducer
from tests.chaos.fleet import NOTHING_WRONG, Feed, Fleet, account, messages_all_the_time, messages_for
from tests.chaos.transactions import OpenTransactions
from tests.chaos.worker import KILLER
from tests.streams import GROUP, MESSAGES, RESPONSES, build_message, committed, dead_letters, eventually, produce

CRASHED = 9
"""The exit code of a worker that handled KILLER."""


def has_more_dead_letters(settings: Settings, than: int) -> bool:
    """Return whether there are now more than ``than`` dead letters."""
    return len(dead_letters(settings, open_contracts(settings))) > than


def test_killed_while_dead_letters_are_written_each_poison_record_is_one_dead_letter(
    settings: Settings, fleets: list[Fleet]
) -> None:
    """R14: no record can be decoded, and the worker is killed inside open transactions and at random moments."""
    contracts = open_contracts(settings)
    unlimited = evolve(settings, dlq_max_consecutive=0, dlq_max_share=0, kafka_static_membership=True)
    fleets.append(fleet := Fleet(unlimited, 0, 10, 8))
    fleet.start("one")
    poison = list[bytes]()

    def send(producer: EventProducer, number: int) -> None:
        poison.append(b"poison %d " % number + b"x" * 4000)
        producer.send_raw(MESSAGES, b"%d" % (number % 4), poison[-1], [])

    with Feed(settings, send):
        transactions = OpenTransactions(settings, group=GROUP, read=MESSAGES, written="dead-letters")
        seed = random.Random(3)
        for _ in range(3):
            transactions.kill_one(fleet)
            fleet.start("one")
            there = len(dead_letters(settings, contracts))
            eventually(partial(has_more_dead_letters, settings, there))  # the worker is back
            time.sleep(seed.uniform(0, 0.1))
            fleet.kill("one")
            fleet.start("one")
        transactions.close()
    eventually(lambda: not fleet.revive() and len(dead_letters(settings, contracts)) >= len(poison), timeout_s=120)
    eventually(lambda: committed(settings) == len(poison))
    assert fleet.end("one") == 0
    letters = [letter.value or b"" for letter in dead_letters(settings, contracts)]
    assert sorted(letters) == sorted(poison)


def supervise(settings: Settings, fleet: Fleet, messages: Sequence[DiscordMessage], letters: int) -> None:
    """Restart workers that crash, until all messages are answered and there are ``letters`` dead letters."""

    def done() -> bool:
        # The group's positions are not used: they are unknown while the open transaction of a crashed worker lasts.
        fleet.revive()
        there = len(dead_letters(settings, open_contracts(settings)))
        return there >= letters and not account(settings, messages).missing

    eventually(done, timeout_s=150)


@pytest.mark.parametrize(("concurrency", "deadly"), [(0, 1), (8, 2)])
def test_a_record_that_kills_the_process_is_one_dead_letter_and_the_others_are_answered(
    settings: Settings, fleets: list[Fleet], concurrency: int, deadly: int
) -> None:
    """R20: a record becomes a dead letter when it has crashed the process three times while it was handled alone.

    Before that, it crashes the process at most once while other records are being handled, too. If there are two such
    records, the crashes of one record do not count for the other record.
    """
    contracts = open_contracts(settings)
    messages = messages_for(settings, 150)
    killers = [build_message(900 + number, channel=str(number), content=KILLER) for number in range(deadly)]
    produce(settings, contracts, MESSAGES, *killers)
    messages += messages_for(settings, 150, first=150)
    fleets.append(fleet := Fleet(evolve(settings, kafka_static_membership=True), 5, 10, concurrency))
    fleet.start("one")
    supervise(settings, fleet, messages, len(killers))
    assert fleet.end("one") == 0
    assert committed(settings) == len(messages) + len(killers)
    assert account(settings, messages) == NOTHING_WRONG
    letters = dead_letters(settings, contracts)
    dead = sorted(contracts.decode(MESSAGES, letter.value or b"").message_id for letter in letters)
    assert dead == [killer.message_id for killer in killers]
    assert {letter.header("__connect.errors.stage") for letter in letters} == {b"CRASH"}
    crashes = fleet.codes.count(CRASHED)
    assert 3 * len(killers) < crashes <= 4 * len(killers)


def test_a_deadly_record_is_found_by_the_next_worker_of_its_partition(settings: Settings, fleets: list[Fleet]) -> None:
    """R20: the worker that crashed is not restarted. The next worker of its partition finds the deadly record."""
    contracts = open_contracts(settings)
    messages = messages_for(settings, 100)
    produce(settings, contracts, MESSAGES, build_message(900, channel="1", content=KILLER))
    messages += messages_for(settings, 100, first=100)
    static = evolve(settings, kafka_static_membership=True)
    fleets.append(first := Fleet(static, 5, 10, 8))
    fleets.append(second := Fleet(static, 5, 10, 8))
    first.start("one")
    eventually(lambda: first.has_ended("one"))
    second.start("two")
    supervise(settings, second, messages, 1)
    assert second.end("two") == 0
    assert committed(settings) == len(messages) + 1
    assert account(settings, messages) == NOTHING_WRONG
    (letter,) = dead_letters(settings, contracts)
    assert letter.header("__connect.errors.stage") == b"CRASH"
    assert letter.header("rtfm.error_class") == b"KilledProcess"


def test_records_that_are_unfinished_at_every_crash_are_never_dead_letters(
    settings: Settings, fleets: list[Fleet]
) -> None:
    """Repeated kills of a process do not turn its unfinished records into dead letters."""
    fleets.append(fleet := Fleet(evolve(settings, kafka_static_membership=True), 20, 10, 8))
    fleet.start("one")
    transactions = OpenTransactions(settings, group=GROUP, read=MESSAGES, written=RESPONSES)
    with messages_all_the_time(settings) as messages:
        for _ in range(3):  # a fourth kill could be the third crash of a record that is handled alone
            transactions.kill_one(fleet)
            fleet.start("one")
    transactions.close()
    eventually(lambda: not account(settings, messages).missing, timeout_s=120)
    assert fleet.end("one") == 0
    assert committed(settings) == len(messages)
    assert account(settings, messages) == NOTHING_WRONG
    assert dead_letters(settings, open_contracts(settings)) == []

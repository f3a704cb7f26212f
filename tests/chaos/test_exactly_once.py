"""Exactly once on real Kafka: workers are killed, frozen, added and removed, and everything is accounted for."""

from __future__ import annotations

import random
import signal
import time

from rtfm.contracts import open_contracts
from rtfm.events import DiscordMessage
from rtfm.settings import Settings
from tests.chaos.fleet import CHANNELS, NOTHING_WRONG, Fleet, Peek, aborted, account, messages_for
from tests.chaos.worker import SLEEPER
from tests.streams import MESSAGES, RESPONSES, committed, eventually, produce, produce_raw, records, said


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
    eventually(lambda: not fleet.revive() and committed(settings) == len(messages) + 20, timeout_s=120)
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
    eventually(lambda: not fleet.revive() and committed(settings) == len(messages), timeout_s=120)
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

"""Exactly once on a cluster of three brokers: the brokers are killed one after another, or one of them is cut off."""

from __future__ import annotations

import pytest
from attrs import evolve

from rtfm.contracts import catalogue as catalogues
from rtfm.settings import Settings
from rtfm.streams.topics import TopicAdmin
from tests.chaos.cluster import BROKERS, three_brokers
from tests.chaos.fleet import NOTHING_WRONG, Fleet, account, messages_all_the_time
from tests.streams import GROUP, committed, eventually


@pytest.mark.timeout(600)
def test_brokers_that_are_killed_one_after_another_lose_nothing(settings: Settings, fleets: list[Fleet]) -> None:
    """R3: the leaders of partitions and the coordinators are killed, and the workers continue.

    Usually the workers continue by themselves. If a call of librdkafka does not return, the watchdog ends the worker,
    and the test restarts it like a supervisor.
    """
    with three_brokers(settings) as (cluster, ours):
        topics = TopicAdmin(ours, catalogues.load())
        topics.apply(topics.plan())
        fleets.append(fleet := Fleet(ours, 10, 10, 16))
        for name in ("one", "two"):
            fleet.start(name)
        with messages_all_the_time(ours) as messages:
            eventually(lambda: committed(ours) > 0)
            for number in range(1, BROKERS + 1):
                cluster.kill(number)
                cluster.wait_missed(number)
                cluster.start(number)
                cluster.wait()
        eventually(lambda: not fleet.revive() and committed(ours) == len(messages), timeout_s=180)
        assert "Fenced" not in fleet.log.read_text()
        codes = [fleet.end(name) for name in fleet.names]
        # A worker may still hang in a call: the other worker can handle all records before the watchdog ends this one.
        assert codes == [0, 0] or "a loop hangs" in fleet.log.read_text()
        assert account(ours, messages) == NOTHING_WRONG


@pytest.mark.timeout(600)
def test_a_broker_that_is_cut_off_loses_nothing(settings: Settings, fleets: list[Fleet]) -> None:
    """While a broker is cut off, it still acts as leader and coordinator. No answer is lost or repeated."""
    with three_brokers(settings) as (cluster, ours):
        topics = TopicAdmin(ours, catalogues.load())
        topics.apply(topics.plan())
        fleets.append(fleet := Fleet(ours, 10, 10, 16))
        for name in ("one", "two"):
            fleet.start(name)
        with messages_all_the_time(ours) as messages:
            eventually(lambda: committed(ours) > 0)
            number = cluster.coordinator(f"{ours.kafka_topic_prefix}{GROUP}")
            cluster.cut_off(number)
            cluster.wait_missed(number)
            past_the_cut = evolve(ours, kafka_bootstrap_servers=cluster.reachable)
            before = eventually(lambda: committed(past_the_cut), timeout_s=60)
            eventually(lambda: not fleet.revive() and committed(past_the_cut) > before + 200, timeout_s=120)
            cluster.heal()
            cluster.wait()
        eventually(lambda: not fleet.revive() and committed(ours) == len(messages), timeout_s=180)
        codes = [fleet.end(name) for name in fleet.names]
        assert codes == [0, 0] or "a loop hangs" in fleet.log.read_text()
        assert account(ours, messages) == NOTHING_WRONG

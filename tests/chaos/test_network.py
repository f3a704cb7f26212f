"""Network faults between workers and Kafka. Nothing is lost or done twice, and the workers continue by themselves."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
from attrs import evolve, frozen
from confluent_kafka import Consumer, TopicPartition

from rtfm.contracts import catalogue as catalogues
from rtfm.local.services import DEFAULT_PORTS, free_ports
from rtfm.local.stack import LocalStack
from rtfm.settings import Settings
from rtfm.streams.connection import KafkaConfig
from rtfm.streams.topics import TopicAdmin
from rtfm.streams.transactions import Transactions
from tests.chaos.fleet import NOTHING_WRONG, Fleet, account, messages_all_the_time
from tests.chaos.kafka_proxy import Api, KafkaProxy, LateRequest, api_of, client_of, proxied_listener
from tests.conftest import CACHE_DIR, stack_home
from tests.network import Conditions
from tests.streams import MESSAGES, committed, eventually


@frozen
class ProxiedBroker:
    """A broker behind a proxy. ``direct`` is the broker's own address, and ``proxied`` the address of the proxy."""

    proxy: KafkaProxy
    direct: str
    proxied: str


@pytest.fixture(scope="module")
def broker() -> Iterator[ProxiedBroker]:
    """The broker of this file. It advertises an additional listener under the proxy's port."""
    ports = free_ports([*DEFAULT_PORTS, "proxied", "proxy"])
    with stack_home() as home, KafkaProxy(ports["proxied"], port=ports["proxy"]) as proxy:
        stack = LocalStack(home, cache_dir=CACHE_DIR, broker_settings=proxied_listener(proxy, ports))
        try:
            stack.up(["kafka"], ports=ports)
            yield ProxiedBroker(proxy, f"127.0.0.1:{ports['kafka']}", f"127.0.0.1:{proxy.port}")
        finally:
            stack.down()


@pytest.fixture
def direct(settings: Settings, broker: ProxiedBroker) -> Iterator[Settings]:
    """Settings for clients that bypass the proxy. The topics are created."""
    direct = evolve(settings, kafka_bootstrap_servers=broker.direct)
    topics = TopicAdmin(direct, catalogues.load())
    topics.apply(topics.plan())
    yield direct
    broker.proxy.heal()


@contextmanager
def workers(
    direct: Settings, broker: ProxiedBroker, fleets: list[Fleet], *names: str, **changes: Any
) -> Iterator[Fleet]:
    """Run workers that reach Kafka through the proxy, and produce messages while the block runs.

    At the end of the block, all network faults are removed. Then the workers must answer all messages by themselves.
    """
    fleets.append(fleet := Fleet(evolve(direct, kafka_bootstrap_servers=broker.proxied, **changes), 10, 10, 16))
    for name in names:
        fleet.start(name)
    with messages_all_the_time(direct) as messages:
        eventually(lambda: committed(direct) > 0)
        yield fleet
        broker.proxy.heal()
        before = committed(direct)
        eventually(lambda: committed(direct) > before + 200)
    eventually(lambda: committed(direct) == len(messages), timeout_s=120)
    assert fleet.codes == [], "a worker ended, although the fault does not require it"
    assert {fleet.end(name) for name in fleet.names} == {0}
    assert account(direct, messages) == NOTHING_WRONG


def test_a_slow_network_is_only_slow(direct: Settings, broker: ProxiedBroker, fleets: list[Fleet]) -> None:
    """Nothing is lost with latency and jitter, lost packets, low bandwidth, or responses that come 3 s late."""
    with workers(direct, broker, fleets, "one", "two"):
        for way in (
            Conditions(latency_s=0.1, jitter_s=0.3),
            Conditions(loss=0.3),
            Conditions(bytes_per_s=50_000),
        ):
            broker.proxy.set_conditions(up=way, down=way)
            time.sleep(3)
        broker.proxy.set_conditions(down=Conditions(latency_s=3))
        time.sleep(6)


def test_connections_that_are_reset_or_refused_are_restored(
    direct: Settings, broker: ProxiedBroker, fleets: list[Fleet]
) -> None:
    """The workers continue after ten resets and after four seconds in which connections are refused."""
    with workers(direct, broker, fleets, "one", "two"):
        for _ in range(10):
            broker.proxy.reset()
            time.sleep(0.3)
        broker.proxy.refuse()
        time.sleep(4)


@pytest.mark.parametrize("way", ["up", "down"])
def test_requests_or_answers_that_are_held_back_longer_than_a_transaction_are_survived(
    direct: Settings, broker: ProxiedBroker, fleets: list[Fleet], way: str
) -> None:
    """The requests or responses are held back for 11 s, which is longer than a session or a transaction may last."""
    with workers(direct, broker, fleets, "one", "two"):
        broker.proxy.set_conditions(**{way: Conditions(held=True)})
        time.sleep(11)


def test_half_open_connections_are_given_up(direct: Settings, broker: ProxiedBroker, fleets: list[Fleet]) -> None:
    """The clients are not told that their connections are closed. The requests on these connections get no response."""
    with workers(direct, broker, fleets, "one", "two"):
        broker.proxy.abandon()
        # While an abandoned transaction with positions is open, the broker returns no positions.
        (before,) = eventually(lambda: (committed(direct),))
        eventually(lambda: committed(direct) > before + 200)


def test_a_member_that_missed_a_rebalance_drops_its_old_partitions(
    direct: Settings, broker: ProxiedBroker, fleets: list[Fleet]
) -> None:
    """During a rebalance, a worker is cut off for longer than its session may last.

    Meanwhile, the other worker gets all partitions. When the cut ends, librdkafka does not report to the worker that
    its old partitions are lost, and the group would accept a commit for these partitions if the worker sent one. So the
    worker itself must drop them.
    """
    requests: Counter[int] = Counter()

    def counted(request: bytes) -> bool:
        if client_of(request) == "rtfm-one":
            requests[api_of(request)] += 1
        return False

    broker.proxy.make_late(LateRequest(picks=counted, until=counted))
    with workers(direct, broker, fleets, "one") as fleet:
        # With this latency, the worker can be cut off between two requests of a commit.
        broker.proxy.set_conditions(up=Conditions(latency_s=0.2))
        synced = requests[Api.SYNC_GROUP]
        fleet.start("two")
        eventually(lambda: requests[Api.SYNC_GROUP] > synced)
        broker.proxy.cut(lambda name: name == "rtfm-one")
        time.sleep(10)


@contextmanager
def late_positions(broker: ProxiedBroker) -> Iterator[None]:
    """Hold back the next positions that a producer sends, and deliver them inside the producer's next transaction."""
    late = LateRequest(
        picks=lambda request: api_of(request) == Api.TXN_OFFSET_COMMIT,
        until=lambda request: api_of(request) == Api.END_TXN,
        overtaken=2,  # the first END_TXN ends the transaction of the positions, the second the next transaction
    )
    broker.proxy.make_late(late)
    yield
    assert late.delivered.wait(40), "the late request was never delivered"
    broker.proxy.make_late(None)


@pytest.mark.parametrize("what", ["commit", "confirmation"])
def test_positions_that_arrive_in_a_later_transaction_do_not_stay(
    direct: Settings, broker: ProxiedBroker, what: str
) -> None:
    """Positions that arrive late are soon replaced by the right positions.

    When the connection breaks, librdkafka sends the positions again on a new connection, and their transaction ends.
    Later, the first request with these positions reaches the broker during the next transaction. The broker accepts the
    request, because it checks only the producer's epoch.
    """
    group = f"late-{what}"
    outsider = Consumer({"bootstrap.servers": broker.direct, "group.id": group, "isolation.level": "read_committed"})
    member = outsider.consumer_group_metadata()
    transactions = Transactions(KafkaConfig.of(evolve(direct, kafka_bootstrap_servers=broker.proxied)), f"{group}-one")

    topic = KafkaConfig.of(direct).topic(MESSAGES)

    def commit(**offsets: int) -> None:
        """Commit like the pipeline, which first opens a new producer if it needs a new epoch."""
        if transactions.needs_open:
            transactions.open()
        positions = [TopicPartition(topic, int(number[1:]), offset) for number, offset in offsets.items()]
        transactions.commit([], positions, member)
        # If the connection was lost, the client notices this within a second.
        until_s = time.monotonic() + 1
        while time.monotonic() < until_s and not transactions.needs_open:
            time.sleep(0.05)

    def has_opened() -> bool:
        transactions.open()
        return True

    eventually(has_opened, timeout_s=60)
    commit(p0=10, p1=10)
    with late_positions(broker):
        if what == "commit":
            commit(p0=20, p1=20)
        else:
            transactions.confirm_name(TopicPartition(topic, 0, 0))
        commit(p0=30, p1=30)
        commit(p1=40)
    transactions.close()
    asked = [TopicPartition(topic, number) for number in (0, 1)]
    eventually(lambda: [part.offset for part in outsider.committed(asked, 20)] == [30, 40])
    outsider.close()


def test_workers_that_die_after_a_late_request_resume_at_their_positions(
    direct: Settings, broker: ProxiedBroker, fleets: list[Fleet]
) -> None:
    """A late request may move a position back. Within a third of a second, the worker commits the right position again.

    The test kills the worker after that time.
    """
    with workers(direct, broker, fleets, "one") as fleet:
        for _ in range(3):
            with late_positions(broker):
                pass
            # Meanwhile, the worker commits the right positions. docs/delivery.md says what a kill before that causes.
            time.sleep(1.5)
            fleet.kill("one")
            fleet.start("one")
            before = committed(direct)
            eventually(lambda: committed(direct) > before, timeout_s=60)  # noqa: B023 - called in this iteration

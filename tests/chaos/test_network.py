"""Faults of the network between workers and Kafka: nothing is lost or done twice, and the workers go on."""

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
class Behind:
    """Kafka, reached past the proxy with ``direct`` and through it with ``proxied``."""

    proxy: KafkaProxy
    direct: str
    proxied: str


@pytest.fixture(scope="module")
def broker() -> Iterator[Behind]:
    """A broker of this file's own, with a listener that is advertised under the proxy's port."""
    ports = free_ports([*DEFAULT_PORTS, "proxied", "proxy"])
    with stack_home() as home, KafkaProxy(ports["proxied"], port=ports["proxy"]) as proxy:
        stack = LocalStack(home, cache_dir=CACHE_DIR, broker_settings=proxied_listener(proxy, ports))
        try:
            stack.up(["kafka"], ports=ports)
            yield Behind(proxy, f"127.0.0.1:{ports['kafka']}", f"127.0.0.1:{proxy.port}")
        finally:
            stack.down()


@pytest.fixture
def direct(settings: Settings, broker: Behind) -> Iterator[Settings]:
    """Settings for what goes past the proxy, with the topics made."""
    direct = evolve(settings, kafka_bootstrap_servers=broker.direct)
    topics = TopicAdmin(direct, catalogues.load())
    topics.apply(topics.plan())
    yield direct
    broker.proxy.heal()


@contextmanager
def workers(direct: Settings, broker: Behind, fleets: list[Fleet], *names: str, **changes: Any) -> Iterator[Fleet]:
    """Workers that reach Kafka through the proxy, with messages all the time.

    When the block is left, the network works again, and the workers go on by themselves until nothing is left to do.
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
    assert fleet.codes == [], "nobody needs to end for that"
    assert {fleet.end(name) for name in fleet.names} == {0}
    assert account(direct, messages) == NOTHING_WRONG


def test_a_slow_network_is_only_slow(direct: Settings, broker: Behind, fleets: list[Fleet]) -> None:
    """Latency and jitter, lost packets, a narrow way, acknowledgements that come three seconds after the request."""
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


def test_connections_that_are_reset_and_refused_are_made_again(
    direct: Settings, broker: Behind, fleets: list[Fleet]
) -> None:
    """Also where librdkafka does not come back from a call within the time that it was given."""
    with workers(direct, broker, fleets, "one", "two"):
        for _ in range(10):
            broker.proxy.reset()
            time.sleep(0.3)
        broker.proxy.refuse()
        time.sleep(4)


@pytest.mark.parametrize("way", ["up", "down"])
def test_requests_or_answers_that_are_held_back_longer_than_a_transaction_are_survived(
    direct: Settings, broker: Behind, fleets: list[Fleet], way: str
) -> None:
    """They arrive all at once when the group and the transactions have gone on without this one."""
    with workers(direct, broker, fleets, "one", "two"):
        broker.proxy.set_conditions(**{way: Conditions(held=True)})
        time.sleep(11)


def test_half_open_connections_are_given_up(direct: Settings, broker: Behind, fleets: list[Fleet]) -> None:
    """Nothing tells a client that a connection is dead, and what it has sent is never answered."""
    with workers(direct, broker, fleets, "one", "two"):
        broker.proxy.abandon()
        # Positions of a transaction that its producer cannot end any more are not told before it times out.
        (before,) = eventually(lambda: (committed(direct),))
        eventually(lambda: committed(direct) > before + 200)


def test_a_member_that_was_gone_during_a_rebalance_does_not_go_on_with_what_it_had(
    direct: Settings, broker: Behind, fleets: list[Fleet]
) -> None:
    """It is cut off while it gives up a partition, for longer than its session. The other has all of them meanwhile.

    librdkafka does not say that its partitions are lost then, and the group takes commits of the member that came back.
    """
    requests: Counter[int] = Counter()

    def counted(request: bytes) -> bool:
        if client_of(request) == "rtfm-one":
            requests[api_of(request)] += 1
        return False

    broker.proxy.make_late(LateRequest(picks=counted, until=counted))
    with workers(direct, broker, fleets, "one") as fleet:
        # So slow that the moment between two requests of a commit can be met.
        broker.proxy.set_conditions(up=Conditions(latency_s=0.2))
        synced = requests[Api.SYNC_GROUP]
        fleet.start("two")
        eventually(lambda: requests[Api.SYNC_GROUP] > synced)
        broker.proxy.cut(lambda name: name == "rtfm-one")
        time.sleep(10)


@contextmanager
def late_positions(broker: Behind) -> Iterator[None]:
    """The next positions that are sent arrive inside their sender's next transaction."""
    late = LateRequest(
        picks=lambda request: api_of(request) == Api.TXN_OFFSET_COMMIT,
        until=lambda request: api_of(request) == Api.END_TXN,
        overtaken=2,  # the first end is that of their own transaction
    )
    broker.proxy.make_late(late)
    yield
    assert late.delivered.wait(40), "no broker was given the late request"
    broker.proxy.make_late(None)


@pytest.mark.parametrize("what", ["commit", "confirmation"])
def test_positions_that_arrive_in_a_later_transaction_are_not_taken(
    direct: Settings, broker: Behind, what: str
) -> None:
    """A broker checks them against the producer's epoch alone, and librdkafka sends them again by itself meanwhile."""
    group = f"late-{what}"
    outsider = Consumer({"bootstrap.servers": broker.direct, "group.id": group, "isolation.level": "read_committed"})
    member = outsider.consumer_group_metadata()
    transactions = Transactions(KafkaConfig.of(evolve(direct, kafka_bootstrap_servers=broker.proxied)), f"{group}-one")

    topic = KafkaConfig.of(direct).topic(MESSAGES)

    def commit(**offsets: int) -> None:
        """As the pipeline does: a producer in doubt is replaced first."""
        if transactions.needs_open:
            transactions.open()
        positions = [TopicPartition(topic, int(number[1:]), offset) for number, offset in offsets.items()]
        transactions.commit([], positions, member)
        # Longer than it takes until a lost connection is noticed.
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


def test_workers_that_die_after_their_positions_arrived_late_begin_where_they_were(
    direct: Settings, broker: Behind, fleets: list[Fleet]
) -> None:
    """What a late request moved back is noticed within a third of a second and committed again; then they die."""
    with workers(direct, broker, fleets, "one") as fleet:
        for _ in range(3):
            with late_positions(broker):
                pass
            time.sleep(1.5)  # until the positions are committed again; docs/delivery.md says what holds before
            fleet.kill("one")
            fleet.start("one")
            before = committed(direct)
            eventually(lambda: committed(direct) > before, timeout_s=60)  # noqa: B023 - it is called in this round
        fleet.codes.clear()  # those of the kills

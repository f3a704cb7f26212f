"""A Kafka cluster of three local brokers, each of which can be killed, restarted and cut off.

Clients and other brokers reach a broker only through its proxies, which can block the traffic.
"""

from __future__ import annotations

import re
import signal
import subprocess
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

from attrs import evolve
from confluent_kafka import KafkaException
from confluent_kafka.admin import AdminClient

from rtfm.local import services
from rtfm.settings import Settings
from tests.chaos.kafka_proxy import KafkaProxy
from tests.conftest import CACHE_DIR, stack_home
from tests.streams import eventually

BROKERS = 3
_REPLICATED = {
    "offsets.topic.replication.factor": "3",
    "transaction.state.log.replication.factor": "3",
    "transaction.state.log.min.isr": "2",
    "min.insync.replicas": "2",
    "broker.heartbeat.interval.ms": "500",
    "broker.session.timeout.ms": "3000",
}


class Cluster:
    """Three brokers with the numbers 1 to 3. Each broker is also a controller."""

    def __init__(self, home: Path, proxies: ExitStack) -> None:
        """Open the proxies. The stack ``proxies`` will close them. The brokers will keep their data below ``home``."""
        kinds = ("kafka", "kafka-controller")
        numbers = range(1, BROKERS + 1)
        ports = services.free_ports(f"{kind} {number} {end}" for kind in kinds for number in numbers for end in "io")
        self._proxies = {
            number: {
                kind: proxies.enter_context(KafkaProxy(ports[f"{kind} {number} i"], port=ports[f"{kind} {number} o"]))
                for kind in kinds
            }
            for number in numbers
        }
        self._home = home
        self._cut_off: set[int] = set()
        self._processes: dict[int, subprocess.Popen[bytes]] = {}

    @property
    def address(self) -> str:
        """The bootstrap servers: the proxies of all brokers."""
        return self._address_of(self._proxies)

    @property
    def reachable(self) -> str:
        """The bootstrap servers without the brokers that are cut off."""
        return self._address_of(self._proxies.keys() - self._cut_off)

    def _address_of(self, numbers: Iterable[int]) -> str:
        return ",".join(f"127.0.0.1:{self._proxies[number]['kafka'].port}" for number in numbers)

    def cut_off(self, number: int) -> None:
        """Block all traffic of broker ``number`` with clients and with the other brokers."""
        for other, proxies in self._proxies.items():
            for proxy in proxies.values():
                if other == number:
                    proxy.cut()
                else:
                    proxy.cut(lambda name: _is_of_broker(name, number))
        self._cut_off.add(number)

    def heal(self) -> None:
        """Let all traffic pass again."""
        for proxies in self._proxies.values():
            for proxy in proxies.values():
                proxy.heal()
        self._cut_off.clear()

    def coordinator(self, group: str) -> int:
        """Return the number of the broker that coordinates ``group``."""
        admin = AdminClient({"bootstrap.servers": self.address, "log_level": 0})
        return int(admin.describe_consumer_groups([group])[group].result(20).coordinator.id)

    def start(self, number: int) -> None:
        """Start a broker. If it ran before, it keeps its data."""
        folder = self._home / f"kafka-{number}"
        proxies = self._proxies[number]
        own = {
            "node.id": str(number),
            "controller.quorum.voters": ",".join(
                f"{other}@127.0.0.1:{behind['kafka-controller'].port}" for other, behind in self._proxies.items()
            ),
            "advertised.listeners": f"PLAINTEXT://127.0.0.1:{proxies['kafka'].port}",
            **_REPLICATED,
        }
        ports = {kind: proxy.target for kind, proxy in proxies.items()}
        launch = services.prepare("kafka", folder, CACHE_DIR, ports, own)
        # services.prepare always formats the folder for node 1.
        meta = folder / "log" / "meta.properties"
        meta.write_text(meta.read_text().replace("node.id=1", f"node.id={number}"))
        with (folder / "broker.log").open("ab") as log:
            self._processes[number] = subprocess.Popen(
                launch.command, stdout=log, stderr=log, env={**services.ENVIRONMENT, "HOME": str(folder)}, cwd=folder
            )

    def kill(self, number: int) -> None:
        """End a broker with ``kill -9``."""
        process = self._processes.pop(number)
        process.send_signal(signal.SIGKILL)
        process.wait(20)

    def wait(self) -> None:
        """Wait until all brokers are in the cluster and have in-sync replicas of all partitions."""
        eventually(lambda: self._check_state(lambda brokers, short: brokers == BROKERS and not short), timeout_s=180)

    def wait_missed(self, number: int) -> None:
        """Wait until the other brokers have removed broker ``number`` from the cluster and from in-sync replicas."""

        def missed(brokers: int, short: list[str]) -> bool:
            return (
                brokers == BROKERS - 1
                and bool(short)
                and all(str(number) not in line.rpartition("[")[2] for line in short)
            )

        eventually(lambda: self._check_state(missed), timeout_s=180)

    def _check_state(self, check: Callable[[int, list[str]], bool]) -> bool:
        """Call ``check`` with the number of brokers and the under-replicated partitions, and return its result.

        If no broker responds, return False without the call.
        """
        try:
            return check(*self._state())
        except KafkaException:  # no broker responds
            return False

    def _state(self) -> tuple[int, list[str]]:
        # A new client, because an old one could ask a broker that is cut off.
        found = AdminClient({"bootstrap.servers": self.reachable, "log_level": 0}).list_topics(timeout=5)
        parts = [(name, part) for name, topic in found.topics.items() for part in topic.partitions.values()]
        return len(found.brokers), [
            f"{name}-{part.id}: leader {part.leader}, in sync {sorted(part.isrs)}"
            for name, part in parts
            if part.leader < 0 or len(part.isrs) < BROKERS
        ]

    @property
    def state(self) -> str:
        """The number of brokers and the under-replicated partitions, as text for a failed test."""
        try:
            brokers, short = self._state()
        except KafkaException as exc:
            return f"no broker responds: {exc}"
        return "\n".join([f"{brokers} brokers; under-replicated partitions: {len(short)}", *short])

    def close(self) -> None:
        """Kill the brokers that still run."""
        for number in list(self._processes):
            self.kill(number)


def _is_of_broker(client: str, number: int) -> bool:
    """Return whether broker ``number`` uses the client id ``client``, such as ``raft-client-1`` or ``1``."""
    return re.fullmatch(rf"(broker-|raft-client-|AddPartitionsManager-client-)?{number}(-.*)?", client) is not None


@contextmanager
def three_brokers(settings: Settings) -> Iterator[tuple[Cluster, Settings]]:
    """Run a cluster. Yield it, and ``settings`` with the cluster's address and with three replicas of every topic."""
    with stack_home() as home, ExitStack() as proxies:
        cluster = Cluster(home, proxies)
        try:
            for number in range(1, BROKERS + 1):
                cluster.start(number)
            cluster.wait()
            yield cluster, evolve(settings, kafka_bootstrap_servers=cluster.address, kafka_replication_factor=BROKERS)
        except AssertionError as exc:
            exc.add_note(cluster.state)
            raise
        finally:
            cluster.close()

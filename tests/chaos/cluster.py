"""Three brokers as processes of this machine, each of which can be killed and started again."""

from __future__ import annotations

import os
import random
import signal
import subprocess
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from attrs import evolve
from confluent_kafka import KafkaException
from confluent_kafka.admin import AdminClient

from rtfm.local import services
from rtfm.settings import Settings
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
    """Brokers by number, 1 to 3; each is a controller as well."""

    def __init__(self, home: Path) -> None:
        chance = random.Random(os.getpid())
        # Ports that no outgoing connection is given: one of those might take a killed broker's port.
        free = [port for port in chance.sample(range(20_000, 32_000), 60) if services.port_is_free(port)]
        self._ports = dict(enumerate(zip(free[:BROKERS], free[BROKERS : 2 * BROKERS], strict=True), start=1))
        self._voters = ",".join(f"{number}@127.0.0.1:{voting}" for number, (_, voting) in self._ports.items())
        self._home = home
        self._processes: dict[int, subprocess.Popen[bytes]] = {}

    @property
    def address(self) -> str:
        """The bootstrap servers."""
        return ",".join(f"127.0.0.1:{port}" for port, _ in self._ports.values())

    def start(self, number: int) -> None:
        """Start a broker, or start it again with what it held."""
        folder = self._home / f"kafka-{number}"
        port, voting = self._ports[number]
        launch = services.prepare("kafka", folder, CACHE_DIR, {"kafka": port, "kafka-controller": voting})
        properties = Path(launch.command[-1])
        own = {"node.id": str(number), "controller.quorum.voters": self._voters, **_REPLICATED}
        lines = [line for line in properties.read_text().splitlines() if line.partition("=")[0] not in own]
        properties.write_text("\n".join([*lines, *(f"{key}={value}" for key, value in own.items())]) + "\n")
        # The folder was laid out for a broker of its own.
        meta = folder / "log" / "meta.properties"
        meta.write_text(meta.read_text().replace("node.id=1", f"node.id={number}"))
        with (folder / "broker.log").open("ab") as log:
            self._processes[number] = subprocess.Popen(
                launch.command, stdout=log, stderr=log, env={**services.ENVIRONMENT, "HOME": str(folder)}, cwd=folder
            )

    def kill(self, number: int) -> None:
        """``kill -9``."""
        process = self._processes.pop(number)
        process.send_signal(signal.SIGKILL)
        process.wait(20)

    def wait(self) -> None:
        """Return when all brokers are in the cluster and hold what the others hold."""
        eventually(lambda: self._counted(lambda brokers, short: brokers == BROKERS and not short), timeout_s=180)

    def wait_missed(self, number: int) -> None:
        """Return when the cluster has noticed that a broker is gone."""

        def missed(_: int, short: list[str]) -> bool:
            return bool(short) and all(str(number) not in line.rpartition("[")[2] for line in short)

        eventually(lambda: self._counted(missed), timeout_s=180)

    def _counted(self, check: Callable[[int, list[str]], bool]) -> bool:
        """What ``check`` says of the number of brokers and of the partitions that are not on all of them."""
        try:
            return check(*self._state())
        except KafkaException:  # none answers
            return False

    def _state(self) -> tuple[int, list[str]]:
        found = AdminClient({"bootstrap.servers": self.address, "log_level": 0}).list_topics(timeout=5)
        parts = [(name, part) for name, topic in found.topics.items() for part in topic.partitions.values()]
        return len(found.brokers), [
            f"{name}-{part.id}: leader {part.leader}, in step {sorted(part.isrs)}"
            for name, part in parts
            if part.leader < 0 or len(part.isrs) < BROKERS
        ]

    @property
    def state(self) -> str:
        """How many brokers there are, and which partitions are not on all of them; for people."""
        try:
            brokers, short = self._state()
        except KafkaException as exc:
            return f"no broker answers: {exc}"
        return "\n".join([f"{brokers} brokers; partitions that are not on all of them: {len(short)}", *short])

    def close(self) -> None:
        """Kill whoever is left."""
        for number in list(self._processes):
            self.kill(number)


@contextmanager
def three_brokers(settings: Settings) -> Iterator[tuple[Cluster, Settings]]:
    """A cluster, and ``settings`` for it with every topic on all three."""
    with stack_home() as home:
        cluster = Cluster(home)
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

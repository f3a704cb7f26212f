"""Kills a worker inside an open transaction, which random moments hardly ever meet.

Under a light load a transaction is open for a few milliseconds. As soon as an uncommitted record appears, all workers
are therefore frozen; the broker then says whether the transaction is still open.
"""

from __future__ import annotations

import signal
import time
from typing import Any

from confluent_kafka import Consumer, IsolationLevel, TopicPartition
from confluent_kafka.admin import AdminClient, OffsetSpec  # type: ignore[attr-defined]  # not in its __all__

from rtfm.settings import Settings
from tests.chaos.fleet import Fleet

PARTITIONS = 3


class OpenTransactions:
    """Sees what is written to topic ``written`` before it is committed, and which member of ``group`` writes it.

    Records of ``read`` and ``written`` have the same keys and so the same partitions: the owner of a partition of
    ``read`` writes to that partition of ``written``.
    """

    def __init__(self, settings: Settings, *, group: str, read: str, written: str) -> None:
        self._prefix = settings.kafka_topic_prefix
        self._group = f"{self._prefix}{group}"
        self._looks = self._unknown = 0
        self._read, self._written = f"{self._prefix}{read}", f"{self._prefix}{written}"
        servers: dict[str, Any] = {"bootstrap.servers": settings.kafka_bootstrap_servers, "log_level": 0}
        self._admin: Any = AdminClient(servers)
        self._consumer: Any = Consumer(
            {
                **servers,
                "group.id": f"{self._prefix}peek",
                "isolation.level": "read_uncommitted",
                "enable.auto.commit": False,
                "fetch.wait.max.ms": 5,
            }
        )

    def kill_one(self, fleet: Fleet, timeout_s: float = 120.0) -> str:
        """Kill a process of ``fleet`` inside an open transaction, and return its name.

        Something must be written all the time. Raises AssertionError if no open transaction was found in time.
        """
        name = self.freeze_one(fleet, timeout_s)
        fleet.kill(name)
        return name

    def owners(self) -> dict[str, set[int]]:
        """Return the partitions of ``read`` by the name of the group member that has them."""
        description = self._admin.describe_consumer_groups([self._group])[self._group].result(10)
        found = {
            member.client_id.removeprefix("rtfm-"): {
                part.partition for part in member.assignment.topic_partitions if part.topic == self._read
            }
            for member in description.members
        }
        return {name: numbers for name, numbers in found.items() if numbers}

    def end_offsets(self) -> dict[int, int]:
        """Return the end of each partition, including uncommitted records."""
        return self._ends(IsolationLevel.READ_UNCOMMITTED)

    def have_ended_below(self, ends: dict[int, int]) -> bool:
        """Return whether every transaction that was open below the offsets ``ends`` has ended, ignoring later ones."""
        stable = self._ends(IsolationLevel.READ_COMMITTED)
        return all(stable[number] >= end for number, end in ends.items())

    def freeze_one(self, fleet: Fleet, timeout_s: float = 120.0) -> str:
        """Freeze a worker inside an open transaction, and return its name, as ``kill_one`` does."""
        deadline_s = time.monotonic() + timeout_s
        self._looks = self._unknown = 0
        ends = self.end_offsets()
        self._consumer.assign([TopicPartition(self._written, number, end) for number, end in ends.items()])
        while time.monotonic() < deadline_s:
            message = self._consumer.poll(0.5)
            if message is None or message.error():
                continue
            self._looks += 1
            for name in fleet.names:
                fleet.send(name, signal.SIGSTOP)
            victim = self._victim(fleet)
            for name in fleet.names:
                if name != victim:
                    fleet.send(name, signal.SIGCONT)
            if victim is not None:
                return victim
            self._consumer.consume(10_000, 0)  # the next look sees only what is written from now on
        raise AssertionError(
            f"no open transaction was found in {timeout_s:.0f} s: {self._looks} looks, {self._unknown} of them at"
            f" one without an owner in {self._group}; {fleet.status}"
        )

    def close(self) -> None:
        """Disconnect."""
        self._consumer.close()

    def _victim(self, fleet: Fleet) -> str | None:
        time.sleep(0.02)  # lets a commit that is on its way arrive
        stable, ends = self._ends(IsolationLevel.READ_COMMITTED), self.end_offsets()
        open_in = [number for number in range(PARTITIONS) if stable[number] < ends[number]]
        if not open_in:
            return None
        for name, assigned in self.owners().items():
            if assigned & set(open_in) and name in fleet.names:
                return name
        self._unknown += 1
        return None

    def _ends(self, isolation: IsolationLevel) -> dict[int, int]:
        latest: Any = OffsetSpec
        asked = {TopicPartition(self._written, number): latest.latest() for number in range(PARTITIONS)}
        found = self._admin.list_offsets(asked, isolation_level=isolation, request_timeout=5)
        return {part.partition: future.result(10).offset for part, future in found.items()}

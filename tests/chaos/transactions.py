"""Killing inside an open transaction, which moments at random hardly ever are.

A transaction of a light load is open for some milliseconds. So whoever may have one is frozen as soon as a record is
seen that is not committed; the broker then says whether its transaction is open still.
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
    """Sees what is written to ``written`` before it is committed, and who of ``group`` writes it.

    Keys of ``read`` and ``written`` are the same, and so are their partitions: who has a partition of the one writes
    that of the other.
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
        """Kill a process of ``fleet`` inside an open transaction; its name.

        Something must be written all the while. AssertionError when none was met in time.
        """
        name = self.freeze_one(fleet, timeout_s)
        fleet.kill(name)
        return name

    def owners(self) -> dict[str, set[int]]:
        """Names of the group's members that have partitions of what is read → which."""
        description = self._admin.describe_consumer_groups([self._group])[self._group].result(10)
        found = {
            member.client_id.removeprefix("rtfm-"): {
                part.partition for part in member.assignment.topic_partitions if part.topic == self._read
            }
            for member in description.members
        }
        return {name: numbers for name, numbers in found.items() if numbers}

    def written(self) -> dict[int, int]:
        """Where each partition ends now, what is not committed included."""
        return self._ends(IsolationLevel.READ_UNCOMMITTED)

    def ended_below(self, written: dict[int, int]) -> bool:
        """Whether every transaction that was open when ``written`` was asked for has ended, whatever came since."""
        stable = self._ends(IsolationLevel.READ_COMMITTED)
        return all(stable[number] >= end for number, end in written.items())

    def freeze_one(self, fleet: Fleet, timeout_s: float = 120.0) -> str:
        """Freeze one inside an open transaction, as ``kill_one`` kills one."""
        deadline_s = time.monotonic() + timeout_s
        self._looks = self._unknown = 0
        ends = self.written()
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
            self._consumer.consume(10_000, 0)  # the next look is at what is written from now on
        raise AssertionError(
            f"no open transaction was met in {timeout_s:.0f} s: {self._looks} looks, {self._unknown} of them at"
            f" one of nobody in {self._group}; {fleet.fate}"
        )

    def close(self) -> None:
        """Disconnect."""
        self._consumer.close()

    def _victim(self, fleet: Fleet) -> str | None:
        time.sleep(0.02)  # an end that is on its way arrives
        stable, written = self._ends(IsolationLevel.READ_COMMITTED), self.written()
        open_in = [number for number in range(PARTITIONS) if stable[number] < written[number]]
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

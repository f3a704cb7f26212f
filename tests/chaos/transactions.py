"""Kills a worker while its transaction is open. A kill at a random moment hardly ever hits an open transaction.

Under a light load, a transaction is open for only a few milliseconds. Therefore all workers are frozen as soon as a
new record appears. Then the broker is asked whether the record's transaction is still open.
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
    """Finds the members of ``group`` that have an open transaction.

    The members read the topic ``read`` and write to the topic ``written``. An output has the key of its input, and
    therefore the same partition number. So an open transaction in a partition of ``written`` belongs to the member
    that owns the partition of ``read`` with the same number.
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
        """Kill a worker of ``fleet`` inside an open transaction and return its name.

        Meanwhile, the workers must have records to process. Raises AssertionError if no open transaction is found
        within ``timeout_s``.
        """
        name = self.freeze_one(fleet, timeout_s)
        fleet.kill(name)
        return name

    def owners(self) -> dict[str, set[int]]:
        """Return the partitions of ``read`` that each group member owns, by the member's name."""
        description = self._admin.describe_consumer_groups([self._group])[self._group].result(10)
        found = {
            member.client_id.removeprefix("rtfm-"): {
                part.partition for part in member.assignment.topic_partitions if part.topic == self._read
            }
            for member in description.members
        }
        return {name: numbers for name, numbers in found.items() if numbers}

    def end_offsets(self) -> dict[int, int]:
        """Return the end offset of each partition of ``written``, including uncommitted records."""
        return self._ends(IsolationLevel.READ_UNCOMMITTED)

    def have_ended_below(self, ends: dict[int, int]) -> bool:
        """Return whether all transactions below the offsets ``ends`` have ended. Later transactions are ignored."""
        stable = self._ends(IsolationLevel.READ_COMMITTED)
        return all(stable[number] >= end for number, end in ends.items())

    def freeze_one(self, fleet: Fleet, timeout_s: float = 120.0) -> str:
        """Freeze a worker inside an open transaction and return its name. Like ``kill_one``, but without the kill."""
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
            self._consumer.consume(10_000, 0)  # skips the records written so far
        raise AssertionError(
            f"no worker was found inside an open transaction in {timeout_s:.0f} s: looked {self._looks} times,"
            f" {self._unknown} times the transaction belonged to no member of {self._group}; {fleet.status}"
        )

    def close(self) -> None:
        """Disconnect."""
        self._consumer.close()

    def _victim(self, fleet: Fleet) -> str | None:
        time.sleep(0.02)  # a commit that was already sent arrives in this time
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

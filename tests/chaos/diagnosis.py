"""Collects facts about a run that does not settle: the state of its groups, and the last warnings in its logs."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from confluent_kafka import Consumer, KafkaException, TopicPartition
from confluent_kafka.admin import AdminClient

_WARNS = re.compile(r" (?:WARN|ERROR|FATAL) |\"level\": \"(?:warning|error|critical)\"|PANIC|Traceback")
_LINES = 3
_CHARACTERS = 240
_TAIL_BYTES = 2_000_000


def diagnosis(
    servers: str, groups: Mapping[str, str], partitions: int, logs: Iterable[Path], *, wait_s: float = 3.0
) -> list[str]:
    """Return lines with the state and the positions of each group, and the last warnings in each log.

    Kafka must still run. ``servers`` are Kafka's own addresses, not those of a proxy. ``groups`` maps each topic to the
    group that reads it. ``wait_s`` is the timeout of each request.
    """

    def of_group(topic: str) -> str:
        group = groups[topic]
        parts = [TopicPartition(topic, number) for number in range(partitions)]
        stable, pending = (
            _positions(servers, group, parts, level, wait_s) for level in ("read_committed", "read_uncommitted")
        )
        state = _state(servers, group, wait_s)
        return f"{group}: {state}; positions {stable}, including open transactions {pending}"

    with ThreadPoolExecutor() as pool:
        lines = list(pool.map(of_group, groups))
    for log in sorted(logs):
        lines += [f"{log.name}: {line}" for line in last_warnings(log)]
    return lines


def last_warnings(log: Path) -> list[str]:
    """Return the last warnings and errors in ``log``. Long lines are cut."""
    with log.open("rb") as file:
        file.seek(max(0, log.stat().st_size - _TAIL_BYTES))
        lines = file.read().decode(errors="replace").splitlines()
    return [line[:_CHARACTERS] for line in lines if _WARNS.search(line)][-_LINES:]


def _state(servers: str, group: str, wait_s: float) -> str:
    admin: Any = AdminClient({"bootstrap.servers": servers, "log_level": 0})
    try:
        found = admin.describe_consumer_groups([group], request_timeout=wait_s)[group].result(wait_s * 2)
    except (KafkaException, TimeoutError) as exc:
        return f"its coordinator does not answer ({exc})"
    return f"{found.state.name}, {len(found.members)} members"


def _positions(servers: str, group: str, parts: list[TopicPartition], level: str, wait_s: float) -> str:
    consumer: Any = Consumer(
        {"bootstrap.servers": servers, "group.id": group, "isolation.level": level, "log_level": 0}
    )
    try:
        return str({part.partition: part.offset for part in consumer.committed(parts, timeout=wait_s)})
    except KafkaException as exc:
        return f"unknown ({exc.args[0].str()})"
    finally:
        consumer.close()

"""Loads a kept run: its history, the decoded records of its topics, and the positions of its groups.

Loading raises NotJudged if the files are not those of one complete run, for example if a topic was deleted or created
again, offsets are missing, or a segment is unreadable.
"""

from __future__ import annotations

import base64
import io
import re
import struct
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import fastavro
from attrs import define, field, frozen

from tests.judge.finished import FinishedOffsets
from tests.judge.history import FILE, Begin, History, NotJudged
from tests.judge.history import read as read_history
from tests.judge.positions import TOPIC as OFFSETS
from tests.judge.positions import PositionCommit, Where, positions_of
from tests.judge.segments import PartitionLog, Record, Unreadable, partitions, read_partition

_FRAME = struct.Struct(">bI")  # Confluent's wire format begins with a zero byte and the schema id
_METADATA_LOG = "__cluster_metadata-0"
_TOPIC_RECORD, _REMOVE_TOPIC_RECORD = 2, 9  # from TopicRecord.json and RemoveTopicRecord.json of Kafka

_TOOL_WINDOW_MS = 30_000
"""A tool may move a group's positions back up to this many ms before or after the history's line about the tool."""


@frozen
class Event:
    """A committed record and its decoded value."""

    record: Record
    fields: dict[str, Any] = field(repr=False)

    @property
    def place(self) -> tuple[int, int]:
        """The partition and offset of the record."""
        return self.record.batch.partition, self.record.offset


@frozen(kw_only=True)
class Setback:
    """A commit by which finished offsets of a group became unfinished again."""

    before: PositionCommit
    after: PositionCommit
    first_lost: int
    end: int
    """One more than the highest offset that had been finished."""
    is_allowed: bool
    """Whether a tool moved the position on purpose."""


@define(kw_only=True)
class LoadedRun:
    """All data about a run that the rules use."""

    history: History
    logs: dict[str, dict[int, PartitionLog]]
    positions: dict[Where, list[PositionCommit]]
    queries: dict[str, list[Event]] = field(factory=dict)
    """The committed records of each question, ordered by time."""
    messages: dict[str, list[Event]] = field(factory=dict)
    """The committed changes of each message, ordered by offset."""
    responses: dict[str, list[Event]] = field(factory=dict)
    dead_letters: list[Record] = field(factory=list)
    forged: list[Record] = field(factory=list)
    """The committed records that are invalid on purpose. ``queries`` and ``messages`` do not contain these records."""
    undecodable: list[tuple[Record, str]] = field(factory=list)
    setbacks: list[Setback] = field(factory=list)
    undecodable_positions: list[tuple[PositionCommit, str]] = field(factory=list)
    """The positions whose metadata cannot be decoded, each with the reason."""
    finished: dict[Where, FinishedOffsets] = field(factory=dict)
    """For each group and partition: the offsets that are finished according to the last position."""

    @property
    def begin(self) -> Begin:
        """The first line of the history, with the facts about the run."""
        return self.history.begin

    def topic(self, role: str) -> str:
        """Return the name that the topic with this role has on the cluster."""
        return self.begin.topics[role]

    def committed(self, role: str) -> Iterator[Record]:
        """Yield the committed records of the topic with this role, partition by partition."""
        for _, log in sorted(self.logs[self.topic(role)].items()):
            yield from (record for record in log.records if record.is_visible)

    def is_forged(self, record: Record) -> bool:
        """Return whether the history says that the record is invalid on purpose."""
        return (record.batch.topic, (record.key or b"").decode(errors="replace")) in self.history.forged

    def is_finished(self, group: str, event: Event) -> bool:
        """Return whether a record is finished according to the last position of ``group``, "answer" or "ingest"."""
        batch = event.record.batch
        found = self.finished.get((self.begin.groups[group], batch.topic, batch.partition))
        return found is not None and found.is_finished(event.record.offset)


def load(folder: Path) -> LoadedRun:
    """Load the run in ``folder``. Raises NotJudged if it is not one complete run."""
    history = read_history(folder / FILE)
    begin, data = history.begin, folder / "kafka"
    if not data.is_dir():
        raise NotJudged(f"Kafka's data is missing: there is no folder {data}")
    names = {*begin.topics.values(), *(topic for _, topic, _ in history.seen)}
    try:
        for name in sorted(names):
            _refuse_deleted(data, name)
        logs = {name: _whole_topic(data, name, begin) for name in sorted(names)}
        _refuse_made_again(data, logs, begin)
        offsets = [_whole(read_partition(path)) for path in partitions(data, OFFSETS).values()]
        positions = {where: found for log in offsets for where, found in positions_of(log).items()}
    except (Unreadable, OSError) as exc:
        raise NotJudged(f"Kafka's data is unreadable: {exc}") from exc
    if not offsets:
        raise NotJudged(f"the folders of {OFFSETS} are missing")
    run = LoadedRun(history=history, logs=logs, positions=positions)
    run.logs[OFFSETS] = {log.partition: log for log in offsets}
    _decode(run)
    _follow_positions(run)
    return run


def _refuse_deleted(data: Path, topic: str) -> None:
    deleted = re.compile(re.escape(topic) + r"-\d+\.[0-9a-f]+-(delete|stray)")
    if found := next((path.name for path in data.iterdir() if deleted.fullmatch(path.name)), None):
        raise NotJudged(f"{topic} was deleted during the run: there is a folder {found}")


def _whole_topic(data: Path, topic: str, begin: Begin) -> dict[int, PartitionLog]:
    found = partitions(data, topic)
    if missing := [number for number in range(begin.partitions) if number not in found]:
        raise NotJudged(f"the folder of {topic}-{missing[0]} is missing: the topic was deleted, or never existed")
    return {number: _whole(read_partition(path)) for number, path in sorted(found.items())}


def _whole(log: PartitionLog) -> PartitionLog:
    gaps = [(0, log.start), *log.gaps] if log.start else log.gaps
    if gaps:
        (first, end), *_ = gaps
        raise NotJudged(
            f"{log.topic}-{log.partition} lacks offsets {first} to {end - 1}: they were removed by retention or"
            " compaction (run the broker with log.cleaner.enable=false)"
        )
    return log


def _refuse_made_again(data: Path, logs: dict[str, dict[int, PartitionLog]], begin: Begin) -> None:
    """Raise NotJudged if a topic was deleted or created again.

    The topic's folders, the first line of the history and Kafka's metadata log contain the id of the topic. If the
    topic was created again, these places together contain several ids. If the topic was deleted, the metadata log
    contains a record that removes its id.
    """
    known: dict[str, set[str]] = {topic: set() for topic in logs}
    for topic, parts in logs.items():
        known[topic] |= {log.topic_id for log in parts.values() if log.topic_id is not None}
        known[topic] |= {begin.topic_ids[topic]} if topic in begin.topic_ids else set()
    if (data / _METADATA_LOG).is_dir():
        removed = set()
        for api_key, name, topic_id in _topic_records(read_partition(data / _METADATA_LOG).records):
            if api_key == _REMOVE_TOPIC_RECORD:
                removed.add(topic_id)
            elif name in known:
                known[name].add(topic_id)
        if gone := [topic for topic, ids in known.items() if ids & removed]:
            raise NotJudged(f"{gone[0]} was deleted during the run")
    if several := [topic for topic, ids in known.items() if len(ids) > 1]:
        raise NotJudged(
            f"{several[0]} was deleted and created again during the run: it has the ids "
            + ", ".join(sorted(known[several[0]]))
        )


def _topic_records(records: Iterable[Record]) -> Iterator[tuple[int, str, str]]:
    """Yield the type, topic name and topic id of each record of the metadata log that creates or removes a topic.

    These records begin with a frame version, the type and its version, each in one byte (KIP-631).
    A record that removes a topic does not contain the name, so the name is yielded as an empty string.
    """
    for record in records:
        value = record.value or b""
        if value[1:2] == bytes([_TOPIC_RECORD]):
            # A varint of one or two bytes contains the length of the name plus one.
            size, at = (value[3] - 1, 4) if value[3] < 128 else ((value[3] & 127 | value[4] << 7) - 1, 5)
            yield _TOPIC_RECORD, value[at : at + size].decode(), _topic_id(value[at + size : at + size + 16])
        elif value[1:2] == bytes([_REMOVE_TOPIC_RECORD]):
            yield _REMOVE_TOPIC_RECORD, "", _topic_id(value[3:19])


def _topic_id(packed: bytes) -> str:
    """Return a topic id as Kafka displays it: URL-safe base64 without padding."""
    return base64.urlsafe_b64encode(packed).decode().rstrip("=")


def _decode(run: LoadedRun) -> None:
    """Decode the committed records of the three topics that have a schema."""
    schemas: dict[int, Any] = {}
    for number, schema in run.begin.schemas.items():
        try:
            schemas[number] = fastavro.parse_schema(schema)
        except Exception as exc:  # fastavro raises many kinds
            raise NotJudged(f"schema {number} of the history cannot be parsed: {exc}") from exc
    for role, name, found in (
        ("queries", "query_id", run.queries),
        ("messages", "message_id", run.messages),
        ("responses", "query_id", run.responses),
    ):
        for record in run.committed(role):
            if run.is_forged(record):
                run.forged.append(record)
                continue
            try:
                fields = _decode_value(record.value, schemas)
                found.setdefault(fields[name], []).append(Event(record, fields))
            except Exception as exc:  # fastavro raises many kinds
                run.undecodable.append((record, f"{type(exc).__name__}: {exc}"))
    for events in run.queries.values():
        events.sort(key=lambda event: event.record.timestamp_ms)
    run.dead_letters += run.committed("dead_letters")


def _decode_value(value: bytes | None, schemas: dict[int, Any]) -> dict[str, Any]:
    if value is None:
        raise ValueError("it has no value")
    zero, number = _FRAME.unpack_from(value)
    if zero or number not in schemas:
        raise ValueError(f"its schema id {number} is not in the history")
    packed = io.BytesIO(value[_FRAME.size :])
    fields: Any = fastavro.schemaless_reader(packed, schemas[number], None)
    if packed.read(1):
        raise ValueError("there are bytes after its value")
    return dict(fields)


def _follow_positions(run: LoadedRun) -> None:
    """Find all setbacks, and the offsets that are finished according to each group's last positions."""
    groups = set(run.begin.groups.values())
    for where, positions in run.positions.items():
        if where[0] not in groups:
            continue
        last: tuple[PositionCommit, FinishedOffsets] | None = None
        for position in positions:
            if not position.is_applied:
                continue
            finished = FinishedOffsets(((0, 0),))
            if position.offset is not None:
                try:
                    finished = FinishedOffsets.decode(position.offset, position.metadata)
                except ValueError as exc:
                    run.undecodable_positions.append((position, str(exc)))
                    finished = FinishedOffsets(((0, position.offset),))
            if last is not None and (lost := last[1].first_lost(finished)) is not None:
                run.setbacks.append(
                    Setback(
                        before=last[0],
                        after=position,
                        first_lost=lost,
                        end=last[1].end,
                        is_allowed=_was_moved_by_tool(run.history, position),
                    )
                )
            last = position, finished
        if last is not None:
            run.finished[where] = last[1]
    run.setbacks.sort(key=lambda setback: setback.after.committed_at_ms)


def _was_moved_by_tool(history: History, position: PositionCommit) -> bool:
    return any(
        tool.group == position.group and abs(tool.at_ms - position.committed_at_ms) <= _TOOL_WINDOW_MS
        for tool in history.tools
    )

"""Chaos runs made by hand for the tests of the judge: a run without violations, which a test then changes in one place.

The module writes the history and Kafka's files itself, so that a test can write bytes that Kafka would never write.
"""

from __future__ import annotations

import io
import json
import struct
from collections import defaultdict
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import fastavro
from attrs import define, field

from tests.judge.checksum import crc32c
from tests.judge.verdict import Verdict, judge

SCHEMAS = Path(__file__).parents[1] / "schemas"
QUERIES, MESSAGES, RESPONSES, LETTERS = "bot-queries", "discord-messages", "bot-responses", "dead-letters"
OFFSETS = "__consumer_offsets"
ANSWER, INGEST = "answer-group", "ingest-group"
NAMES = {1: "bot-query", 2: "discord-message", 3: "bot-response"}
VISIBLE = ["10", "11"]
PRODUCER = 7

Headers = Sequence[tuple[str, bytes]]

Break = Callable[["KeptRun"], object]
"""A change that makes a run wrong."""


def varint(number: int) -> bytes:
    """Encode a zigzag varint."""
    number = number << 1 ^ number >> 63
    out = bytearray()
    while number > 127:
        out.append(number & 127 | 128)
        number >>= 7
    return bytes([*out, number])


def sized(data: bytes | None) -> bytes:
    """Encode the length of ``data``, and then ``data``; None is a null."""
    return varint(-1) if data is None else varint(len(data)) + data


def record(key: bytes | None, value: bytes | None, headers: Headers = (), *, delta: int = 0) -> bytes:
    """Encode one record of a batch; the record's offset is ``delta`` above that of the batch."""
    body = b"\0" + varint(0) + varint(delta) + sized(key) + sized(value) + varint(len(headers))
    return sized(body + b"".join(sized(name.encode()) + sized(held) for name, held in headers))


def batch(
    base_offset: int,
    records: Sequence[bytes],
    *,
    at_ms: int = 0,
    attributes: int = 0,
    producer: int = -1,
    epoch: int = 0,
) -> bytes:
    """Encode a record batch of version 2.

    ``attributes`` are those of Kafka's format: 16 for a transaction, 48 for a marker.
    """
    count, body = len(records), b"".join(records)
    checked = struct.pack(">hiqqqhii", attributes, count - 1, at_ms, at_ms, producer, epoch, 0, count) + body
    return struct.pack(">qiibI", base_offset, len(checked) + 9, 0, 2, crc32c(memoryview(checked))) + checked


def marker(offset: int, *, commit: bool, producer: int, at_ms: int = 0) -> bytes:
    """Encode the control batch whose marker ends a transaction."""
    packed = record(struct.pack(">hh", 0, int(commit)), struct.pack(">hi", 0, 0))
    return batch(offset, [packed], at_ms=at_ms, attributes=0x30, producer=producer)


def text(value: str) -> bytes:
    """Encode the length of a string in two bytes, and then the string."""
    return struct.pack(">h", len(value.encode())) + value.encode()


@define
class Log:
    """The log of a partition under construction."""

    segment: bytes = b""
    end: int = 0
    visible: list[tuple[int, str | None]] = field(factory=list)
    """(offset, key) of each record that a reader of committed records gets."""

    def append(
        self,
        key: str | bytes | None,
        value: bytes | None,
        headers: Headers = (),
        *,
        at_ms: int,
        ends: str | None = None,
        producer: int = PRODUCER,
    ) -> int:
        """Append a record and return its offset.

        ``ends`` says what becomes of the record's own transaction: "commit", "abort" or "open". With None the record
        is in no transaction.
        """
        offset = self.end
        packed = key.encode() if isinstance(key, str) else key
        is_part = 16 if ends else 0
        body = [record(packed, value, headers)]
        self.segment += batch(offset, body, at_ms=at_ms, attributes=is_part, producer=producer if ends else -1)
        self.end += 1
        if ends in ("commit", "abort"):
            self.segment += marker(self.end, commit=ends == "commit", producer=producer, at_ms=at_ms)
            self.end += 1
        if ends in ("commit", None):
            self.visible.append((offset, packed.decode() if packed is not None else None))
        return offset


class KeptRun:
    """A run under construction.

    ``conclude`` completes the run, and ``write`` writes it to ``folder``. Between these two calls, a test changes
    ``lines``, ``logs`` or ``files``.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.lines: list[dict[str, Any]] = []
        self.logs: dict[tuple[str, int], Log] = defaultdict(Log)
        self.files: dict[str, bytes] = {}
        """Content of additional files by their path below kafka/."""
        self.schemas = {n: json.loads((SCHEMAS / f"{name}.avsc").read_text()) for n, name in NAMES.items()}
        self._parsed = {n: fastavro.parse_schema(schema) for n, schema in self.schemas.items()}
        self.now_ms = 1_700_000_000_000
        self._latest: dict[str, dict[str, Any]] = {}
        self._versions: dict[str, int] = defaultdict(int)
        for topic in (QUERIES, MESSAGES, RESPONSES, LETTERS):
            for number in range(2):
                self.logs[topic, number] = Log()
        topics = {"queries": QUERIES, "messages": MESSAGES, "responses": RESPONSES, "dead_letters": LETTERS}
        self.note(
            "begin",
            format=1,
            run="ab12",
            commit="abc",
            seed=7,
            seconds=1,
            load=0,
            topics=topics,
            groups={"answer": ANSWER, "ingest": INGEST},
            partitions=2,
            ordered_by_key=[RESPONSES],
            schemas={str(number): schema for number, schema in self.schemas.items()},
        )

    def note(self, event: str, **fields: Any) -> dict[str, Any]:
        """Add a line to the history."""
        self.now_ms += 10
        self.lines.append({"at_ms": self.now_ms, "event": event, **fields})
        return self.lines[-1]

    def value(self, schema: int, **fields: Any) -> bytes:
        """Encode a value in Confluent's wire format."""
        out = io.BytesIO()
        fastavro.schemaless_writer(out, self._parsed[schema], fields)
        return struct.pack(">bI", 0, schema) + out.getvalue()

    def query(self, query_id: str, *, key: str | None = None, partition: int = 0, ends: str | None = None) -> int:
        """Append the record of a question, and return its offset."""
        value = self.value(
            1,
            query_id=query_id,
            channel_id="10",
            asker_id="1",
            question="how?",
            asked_at=self.now_ms,
            expires_at=self.now_ms + 1,
            audience="PUBLIC",
            visible_channel_ids=VISIBLE,
            origin="CONSOLE",
        )
        return self.logs[QUERIES, partition].append(key or query_id, value, at_ms=self.now_ms, ends=ends)

    def ask(self, query_id: str, *, key: str | None = None, partition: int = 0) -> int:
        """Append the record of a question, note its acknowledgement, and return its offset."""
        self.note("asked", query_id=query_id, key=key or query_id, channel_id="10", visible_channel_ids=VISIBLE)
        offset = self.query(query_id, key=key, partition=partition)
        self.note("acknowledged", topic=QUERIES, partition=partition, offset=offset, query_id=query_id)
        return offset

    def respond(
        self,
        query_id: str,
        *,
        ends: str = "commit",
        partition: int = 0,
        producer: int = PRODUCER,
        citations: Sequence[dict[str, Any]] = (),
        retrieved: Sequence[str | None] = (),
        answer: str = "so",
        elapsed_ms: int = 1,
    ) -> int:
        """Append a response, and return its offset; ``retrieved`` are the channels of its passages."""
        value = self.value(
            3,
            query_id=query_id,
            channel_id="10",
            asker_id="1",
            asked_at=self.now_ms,
            audience="PUBLIC",
            outcome="ANSWERED",
            answer=answer,
            citations=[
                {"number": n, "kind": "MESSAGE", "excerpt": "x", "score": 1.0, **citation}
                for n, citation in enumerate(citations, start=1)
            ],
            retrieved=[
                {"passage_id": f"p{n}", "kind": "MESSAGE", "acl_channel_id": channel, "score": 1.0}
                for n, channel in enumerate(retrieved)
            ],
            answered_at=self.now_ms,
            elapsed_ms=elapsed_ms,
        )
        log = self.logs[RESPONSES, partition]
        return log.append(query_id, value, at_ms=self.now_ms + 1, ends=ends, producer=producer)

    def say(self, message_id: str, content: str, change: str = "CREATED", *, channel: str = "10") -> int:
        """Append a change of a message, note its acknowledgement, and return its offset."""
        self._versions[message_id] += 1
        version = self._versions[message_id]
        self.note("said", message_id=message_id, channel_id=channel, change=change, version=version, content=content)
        value = self.value(
            2,
            message_id=message_id,
            channel_id=channel,
            channel_kind="TEXT",
            created_at=self.now_ms,
            content=content,
            change=change,
        )
        offset = self.logs[MESSAGES, 0].append(channel, value, at_ms=self.now_ms)
        where = {"topic": MESSAGES, "partition": 0, "offset": offset}
        self.note("acknowledged", **where, message_id=message_id, version=version)
        self._latest[message_id] = {
            "message_id": message_id,
            "content": content,
            "deleted": change == "DELETED",
            "channel_id": channel,
        }
        return offset

    def position(
        self,
        group: str,
        topic: str,
        offset: int | None,
        metadata: str = "",
        *,
        partition: int = 0,
        ends: str | None = "commit",
        producer: int = PRODUCER,
        version: int = 3,
    ) -> None:
        """Append a commit of a group's position; the offset None makes a tombstone."""
        self.now_ms += 10
        key = struct.pack(">h", 1) + text(group) + text(topic) + struct.pack(">i", partition)
        value = None
        if offset is not None:
            value = struct.pack(">hq", version, offset) + (struct.pack(">i", 0) if version >= 3 else b"")
            value += bytes([len(metadata) + 1]) + metadata.encode() if version >= 4 else text(metadata)
            value += struct.pack(">q", self.now_ms) + (struct.pack(">q", 0) if version == 1 else b"")
            value += b"\0" if version >= 4 else b""
        self.logs[OFFSETS, 3].append(key, value, at_ms=self.now_ms, ends=ends, producer=producer)

    def conclude(self) -> None:
        """Complete the run.

        Commit positions at the ends of the logs of questions and messages. Note the responses that a reader gets and
        the messages in the archive. Then end the history.
        """
        for number in range(2):
            self.position(ANSWER, QUERIES, self.logs[QUERIES, number].end, partition=number)
            self.position(INGEST, MESSAGES, self.logs[MESSAGES, number].end, partition=number)
        self.note("settled", ok=True, after_s=1.0)
        for number in range(2):
            for offset, key in self.logs[RESPONSES, number].visible:
                self.note("seen", reader="plain", topic=RESPONSES, partition=number, offset=offset, key=key)
        for row in self._latest.values():
            self.note("archived", **row)
        self.note("end", ok=True)

    def line(self, event: str, matches: Callable[[dict[str, Any]], bool] = lambda _: True) -> dict[str, Any]:
        """Return the first line of ``event`` in the history for which ``matches`` is true."""
        return next(line for line in self.lines if line["event"] == event and matches(line))

    def write(self) -> Path:
        """Write the folder, and return its path."""
        text = "".join(json.dumps(line) + "\n" for line in self.lines)
        self.folder.mkdir(exist_ok=True)
        (self.folder / "history.jsonl").write_text(text, encoding="utf-8")
        for (topic, number), log in self.logs.items():
            path = self.folder / "kafka" / f"{topic}-{number}" / f"{0:020}.log"
            path.parent.mkdir(parents=True)
            path.write_bytes(log.segment)
        for name, data in self.files.items():
            path = self.folder / "kafka" / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(data)
        return self.folder


def right_run(folder: Path) -> KeptRun:
    """Build a run that has no violations as soon as a test has called ``conclude``.

    Among its transactions are an aborted one and an open one, each with a response.
    """
    run = KeptRun(folder)
    for number in range(4):
        run.ask(f"c{number}", partition=number % 2)
        run.say(f"{100 + number}", f"text {number}")
    run.say("101", "better text", "EDITED")
    run.say("102", "", "DELETED")
    run.respond("c0", ends="abort")
    public = {"channel_id": "99", "parent_channel_id": "11", "channel_kind": "PUBLIC_THREAD"}
    run.respond("c0", citations=[{"channel_id": "10", "channel_kind": "TEXT"}, public], retrieved=["10", None])
    run.respond("c1", partition=1)
    run.position(ANSWER, QUERIES, 0, "")
    run.position(ANSWER, QUERIES, 0, "1AQE")  # offset 0 is unfinished, offset 1 finished
    run.position(INGEST, MESSAGES, 2)
    run.position(INGEST, MESSAGES, 0, ends="abort")
    run.respond("c2")
    run.respond("c3", partition=1)
    run.respond("c3", partition=1, ends="open", producer=8)
    return run


def verdict(run: KeptRun) -> Verdict:
    """Write ``run``, and return the judge's verdict."""
    return judge(run.write())


def broken(found: Verdict) -> dict[str, list[str]]:
    """Return the descriptions of the violations that ``found`` shows, by rule."""
    assert found.reason is None
    return {r.rule.name: [example.what for example in r.examples] for r in found.rulings if r.broken}

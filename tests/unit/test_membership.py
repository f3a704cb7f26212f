"""The records that are polled while partitions move: a record belongs to the assignment in which it was fetched."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from types import SimpleNamespace
from typing import Any

import pytest
from attrs import define, field
from confluent_kafka import KafkaError, TopicPartition

from rtfm.errors import RtfmError
from rtfm.settings import Settings
from rtfm.streams.connection import KafkaConfig
from rtfm.streams.handling import WaitingState
from rtfm.streams.membership import Membership
from rtfm.streams.position import PartitionState

TOPIC = "bot-queries"
Callback = Callable[[Any, list[TopicPartition]], None]


@define
class Message:
    """What a consumer of confluent_kafka returns for partition 0: a raw record or an error."""

    number: int
    code: int | None = None

    def error(self) -> KafkaError | None:
        return None if self.code is None else KafkaError(self.code)

    def topic(self) -> str:
        return TOPIC

    def partition(self) -> int:
        return 0

    def offset(self) -> int:
        return self.number


@define
class ScriptedConsumer:
    """A consumer of one partition that follows a script of raw records, errors and callbacks."""

    polls: list[list[Message | Callback]]
    positions: dict[int, int]
    config: dict[str, Any] = field(factory=dict)
    fetched: list[TopicPartition] = field(factory=list)
    sought: list[tuple[int, int]] = field(factory=list)
    closed: bool = False
    member: bytes = b"one"
    on_assign: Callback = field(init=False)
    on_revoke: Callback = field(init=False)

    def subscribe(self, _: list[str], *, on_assign: Callback, on_revoke: Callback, on_lost: Callback) -> None:
        self.on_assign, self.on_revoke = on_assign, on_revoke

    def list_topics(self, name: str, timeout: float) -> Any:
        return SimpleNamespace(topics={name: SimpleNamespace(error=None, partitions={0: None})})

    def consumer_group_metadata(self) -> bytes:
        return b"CGMDv2:" + (3).to_bytes(4, "little") + b"members\0" + self.member + b"\0"

    def _next(self, limit: int) -> list[Message]:
        found: list[Message] = []
        while self.polls and self.polls[0] and len(found) < limit:
            step = self.polls[0].pop(0)
            if isinstance(step, Message):
                found.append(step)
            else:
                step(self, [TopicPartition(TOPIC, 0)])
        return found

    def poll(self, _: float) -> Message | None:
        found = self._next(1)
        return found[0] if found else None

    def consume(self, limit: int, _: float) -> list[Message]:
        found = self._next(limit)
        if self.polls:
            self.polls.pop(0)
        return found

    def get_watermark_offsets(self, _: TopicPartition, timeout: float) -> tuple[int, int]:
        return 0, 1000

    def incremental_assign(self, parts: list[TopicPartition]) -> None:
        self.fetched += parts

    def incremental_unassign(self, parts: list[TopicPartition]) -> None: ...

    def resume(self, parts: list[TopicPartition]) -> None: ...

    def seek(self, part: TopicPartition) -> None:
        self.sought.append((part.partition, part.offset))

    def close(self) -> None:
        self.closed = True


def assign(consumer: ScriptedConsumer, parts: list[TopicPartition]) -> None:
    """Assign the partition."""
    consumer.on_assign(consumer, parts)


def revoke(consumer: ScriptedConsumer, parts: list[TopicPartition]) -> None:
    """Revoke the partition."""
    consumer.on_revoke(consumer, parts)


class Listener:
    """A listener that returns the positions of its consumer."""

    def read_positions(self, consumer: Any, numbers: list[int], timeout_s: float) -> list[TopicPartition]:
        return [TopicPartition(TOPIC, number, consumer.positions[number]) for number in numbers]

    def on_assign(self, partition: PartitionState) -> None: ...
    def before_revoke(self) -> None: ...
    def on_drop(self) -> None: ...
    def on_end_of_log(self, partition: PartitionState) -> None: ...
    def confirm_name(self) -> None: ...


def membership(*consumers: ScriptedConsumer) -> Membership:
    """Return a member that uses ``consumers`` one after another."""
    left = list(consumers)

    def connect(config: dict[str, Any]) -> ScriptedConsumer:
        consumer = left.pop(0)
        consumer.config = config
        return consumer

    members = Membership(
        KafkaConfig.of(Settings()),
        topic=TOPIC,
        group="members",
        waiting=WaitingState("members"),
        listener=Listener(),
        connect=connect,  # type: ignore[arg-type]  # only the part of a consumer that a member uses
    )
    members.open()
    return members


def offsets(taken: Sequence[tuple[PartitionState, Any]]) -> list[int]:
    """Return the offsets of the polled records."""
    return [message.offset() for _, message in taken]


def test_records_from_before_an_assignment_are_dropped() -> None:
    """Records that were fetched before the current assignment are dropped.

    In the test, the partition is revoked and assigned again during one poll. Meanwhile, another process commits offset
    900. If record 500 were not dropped, it would be handled a second time, and would move the group's position back.
    """

    def moved_on(consumer: ScriptedConsumer, _: list[TopicPartition]) -> None:
        consumer.positions[0] = 900

    script: list[Message | Callback] = [assign, Message(500)]
    consumer = ScriptedConsumer([[*script, revoke, moved_on, assign, Message(900)], [Message(900)]], {0: 500})
    members = membership(consumer)
    assert members.poll(0, 10) == []
    assert consumer.sought == [(0, 900)]
    (part,) = members.partitions
    assert part.position() == (900, "")
    assert offsets(members.poll(0, 10)) == [900]


def test_an_end_of_log_from_before_an_assignment_skips_nothing() -> None:
    """An end of the log from before the current assignment is ignored.

    In the test, this end is above the start of the new assignment. If the end were not ignored, the records between
    the start and the end would count as finished.
    """

    def behind(consumer: ScriptedConsumer, _: list[TopicPartition]) -> None:
        consumer.positions[0] = 450

    end = Message(500, KafkaError._PARTITION_EOF)
    first: list[Message | Callback] = [assign, Message(400), end, revoke, behind, assign]
    members = membership(ScriptedConsumer([first, [Message(450)]], {0: 400}))
    assert members.poll(0, 10) == []
    assert offsets(members.poll(0, 10)) == [450]


def test_a_consumer_resets_no_position_by_itself() -> None:
    """If a position is outside the log, the consumer reports this, and a new one starts at the group's position."""
    broken = ScriptedConsumer([[assign, Message(-1, KafkaError._AUTO_OFFSET_RESET)]], {0: 116})
    again = ScriptedConsumer([[assign, Message(116)]], {0: 116})
    members = membership(broken, again)
    assert members.poll(0, 10) == []
    assert broken.closed
    assert broken.config["auto.offset.reset"] == "error"
    assert offsets(members.poll(0, 10)) == [116]
    assert [part.offset for part in again.fetched] == [116]


def test_a_record_below_the_start_of_an_assignment_ends_the_processor() -> None:
    """A record below the start of its assignment ends the processor, because finished records would be repeated."""
    members = membership(ScriptedConsumer([[assign, Message(0)]], {0: 116}))
    with pytest.raises(RtfmError, match="polled offset 0, but reading started at 116"):
        members.poll(0, 10)


def test_a_partition_that_is_assigned_twice_has_one_state() -> None:
    """A partition that is assigned twice has only the state of the newer assignment.

    With two states, the positions of both would be committed.
    """
    members = membership(ScriptedConsumer([[assign, assign, Message(5)]], {0: 5}))
    ((part, _),) = members.poll(0, 10)
    assert members.partitions == [part]
    assert part.is_assigned


def test_a_member_that_was_removed_and_let_in_again_joins_again() -> None:
    """If a group removes and readmits a member, the member rejoins with a new consumer.

    Meanwhile, another process may have owned the member's partitions, and librdkafka does not always report this.
    """

    def let_in_again(consumer: ScriptedConsumer, _: list[TopicPartition]) -> None:
        consumer.member = b"another"

    gone = ScriptedConsumer([[assign, Message(5)], [let_in_again, Message(6)]], {0: 5})
    back = ScriptedConsumer([[assign, Message(40)]], {0: 40}, member=b"another")
    members = membership(gone, back)
    assert offsets(members.poll(0, 10)) == [5]
    assert members.poll(0, 10) == []
    assert gone.closed
    assert offsets(members.poll(0, 10)) == [40]

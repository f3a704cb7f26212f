"""The content of each transaction, and how an unknown outcome is resolved."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import pytest
from attrs import define, field
from confluent_kafka import TopicPartition

from rtfm.errors import InvalidEvent, RtfmError, Unavailable
from rtfm.settings import Settings
from rtfm.streams.commits import Commits, PositionsChanged
from rtfm.streams.connection import KafkaConfig
from rtfm.streams.dead_letters.letters import OutgoingLetter
from rtfm.streams.dead_letters.limits import DeadLetterPolicy
from rtfm.streams.handling import HandlingResult, WaitingState
from rtfm.streams.lanes import Finished
from rtfm.streams.position import PartitionState
from rtfm.streams.transactions import NotCommitted, OutcomeUnknown, ProducerRecord, Transactions

TOPIC = "bot-queries"
GROUP = "commits"


@define
class Message:
    """The part of a confluent_kafka message that commits use."""

    number: int

    def offset(self) -> int:
        return self.number


class Broker(Transactions):
    """Fake transactions that keep what they commit, and that can lose a commit or report an unknown outcome."""

    def __init__(self) -> None:
        self._producer = None
        self.is_down = False
        self.open()
        self.positions: dict[int, tuple[int, str]] = {}
        self.produced: list[bytes | None] = []
        self.fate = "committed"
        self.max_size: int | None = None

    def open(self) -> None:
        if self.is_down:
            raise Unavailable("kafka", "no broker answers")
        self._needs_open = self._has_lost_connection = False

    def lose_connection(self) -> None:
        self._has_lost_connection = True

    def commit(
        self, records: Iterable[ProducerRecord], positions: Sequence[TopicPartition] = (), member: object = None
    ) -> None:
        records = list(records)
        for record in records:
            if self.max_size is not None and record.topic == "bot-responses" and record.size > self.max_size:
                raise NotCommitted("too large", too_large_for="bot-responses")
        values = [record.value for record in records]
        if self.fate != "lost":
            self.produced += values
            self.positions |= {part.partition: (part.offset, part.metadata or "") for part in positions}
        if self.fate != "committed":
            self._needs_open = True
            raise OutcomeUnknown("no answer")


class Handling:
    """Makes the dead letter of a record."""

    def dead_letter_output(self, raw_record: Message, error: InvalidEvent) -> HandlingResult:
        letter = OutgoingLetter(
            raw_record.offset(), type(error).__name__, ProducerRecord("dead-letters", b"key", b"dead letter", [])
        )
        return HandlingResult([], [letter])


@define
class Member:
    """A group member that reads the positions of ``broker``."""

    broker: Broker
    asked: list[int] = field(factory=list)

    def consumer_group_metadata(self) -> bytes:
        return b"CGMDv2:" + (3).to_bytes(4, "little") + b"rest"

    def committed(self, parts: Sequence[TopicPartition], _: float) -> list[TopicPartition]:
        self.asked += [part.partition for part in parts]
        found = [(part, *self.broker.positions.get(part.partition, (-1001, ""))) for part in parts]
        return [TopicPartition(part.topic, part.partition, offset, metadata) for part, offset, metadata in found]


def member_of(broker: Broker) -> Any:
    """Return the part of a consumer that commits use; it reads the positions of ``broker``."""
    return Member(broker)


@pytest.fixture
def broker() -> Broker:
    """A broker without positions."""
    return Broker()


def new_commits(broker: Broker, waiting: WaitingState) -> Commits:
    """Return commits whose clock makes every commit due."""
    now_s = iter(range(1000, 1_000_000, 1000))
    handling: Any = Handling()
    return Commits(
        KafkaConfig.of(Settings()),
        topic=TOPIC,
        group=GROUP,
        policy=DeadLetterPolicy(),
        waiting=waiting,
        handling=handling,
        transactions=broker,
        clock=lambda: float(next(now_s)),
    )


@pytest.fixture
def commits(broker: Broker) -> Commits:
    """Commits of a pipeline that waits for nothing."""
    return new_commits(broker, WaitingState(GROUP))


def assigned_partition(broker: Broker, number: int = 0) -> PartitionState:
    """Return an assigned partition whose position is 10."""
    broker.positions[number] = (10, "")
    return PartitionState.from_position(number, 10, "")


def finished_record(part: PartitionState, offset: int) -> Finished:
    """Return the finished record at ``offset``, with its answer."""
    assert part.admit(offset)
    message: Any = Message(offset)
    return Finished(
        part, [message], HandlingResult([ProducerRecord("bot-responses", b"key", b"answer %d" % offset, [])])
    )


@pytest.mark.parametrize("fate", ["committed unheard", "lost"])
def test_positions_resolve_an_unknown_outcome(commits: Commits, broker: Broker, fate: str) -> None:
    """If a commit's outcome is unknown, the outputs are produced once, whether request or response was lost."""
    part, member = assigned_partition(broker), member_of(broker)
    broker.fate = fate
    commits.add_finished([finished_record(part, 10)])
    commits.commit(member)
    broker.fate = "committed"
    commits.add_finished([finished_record(part, 11)])
    commits.commit(member)
    assert broker.produced == [b"answer 10", b"answer 11"]
    assert broker.positions == {0: (12, "")}
    assert len(commits) == 0


def test_positions_of_another_process_are_no_reason_to_produce_again(commits: Commits, broker: Broker) -> None:
    """If a commit took effect without a response, and another process continued from it, nothing is produced again."""
    part, member = assigned_partition(broker), member_of(broker)
    broker.fate = "committed unheard"
    commits.add_finished([finished_record(part, 10)])
    commits.commit(member)
    broker.fate = "committed"
    broker.positions[0] = (40, "")
    with pytest.raises(PositionsChanged):
        commits.commit(member)
    part.is_assigned = False  # as the pipeline does when it joins again
    commits.drop_unassigned()
    commits.commit(member)
    assert broker.produced == [b"answer 10"]
    assert broker.positions == {0: (40, "")}


def test_a_missing_position_does_not_count_as_a_failed_commit(commits: Commits, broker: Broker) -> None:
    """If the coordinator returns no position, PositionsChanged is raised, so that the partition is assigned again.

    The coordinator may have lost the position, or may have responded too early. In the new assignment, the position is
    read again.
    """
    part, member = assigned_partition(broker), member_of(broker)
    broker.fate = "committed unheard"
    commits.add_finished([finished_record(part, 10)])
    commits.commit(member)
    del broker.positions[0]
    with pytest.raises(PositionsChanged):
        commits.commit(member)


def test_an_assigned_partition_decides_for_the_whole_transaction(commits: Commits, broker: Broker) -> None:
    """The position of a partition that is still assigned decides the outcome of the whole transaction.

    The second partition of the transaction was revoked, and its new owner continues from the committed position.
    """
    stays, gone = assigned_partition(broker, 0), assigned_partition(broker, 1)
    member = member_of(broker)
    broker.fate = "committed unheard"
    commits.add_finished([finished_record(stays, 10), finished_record(gone, 10)])
    commits.commit(member)
    broker.fate = "committed"
    broker.positions[1] = (90, "")
    gone.is_assigned = False
    commits.drop_unassigned()
    commits.add_finished([finished_record(stays, 11)])
    commits.commit(member)
    assert member.asked == [0]
    assert broker.produced == [b"answer 10", b"answer 10", b"answer 11"]


def test_a_position_is_never_moved_back(commits: Commits, broker: Broker) -> None:
    """If a commit would move a position back, an error is raised, because records would be repeated."""
    part, member = assigned_partition(broker), member_of(broker)
    commits.add_finished([finished_record(part, 10)])
    part.committed = 50
    with pytest.raises(RtfmError, match="refusing to commit offset 11, because 50"):
        commits.commit(member)
    assert broker.produced == []


def test_a_position_that_a_late_request_moved_back_is_committed_again(commits: Commits, broker: Broker) -> None:
    """If a late request moved a position back, the position is committed again, even if no record is left to commit.

    Otherwise the next owner of the partition would read records again.
    """
    part, member = assigned_partition(broker), member_of(broker)
    commits.add_finished([finished_record(part, 10)])
    commits.commit(member)
    assert commits.due_in_s() is None
    broker.positions[0] = (10, "")
    broker.lose_connection()
    assert commits.due_in_s() == 0
    commits.commit(member)
    assert broker.positions == {0: (11, "")}
    assert broker.produced == [b"answer 10"]
    assert commits.due_in_s() is None


def test_a_rebalance_after_a_lost_connection_does_not_hide_a_position_that_moved_back(
    commits: Commits, broker: Broker
) -> None:
    """After a lost connection, reading a new partition's position does not skip the check of the other positions."""
    part, member = assigned_partition(broker), member_of(broker)
    commits.add_finished([finished_record(part, 10)])
    commits.commit(member)
    broker.positions[0] = (10, "")
    broker.lose_connection()
    commits.read_positions(member, [1], 1.0)
    assert commits.due_in_s() == 0
    commits.commit(member)
    assert broker.positions == {0: (11, "")}
    assert commits.due_in_s() is None


def test_an_unknown_outcome_does_not_hide_another_position_that_moved_back(commits: Commits, broker: Broker) -> None:
    """An unknown outcome is resolved, and another partition's position that moved back is committed again."""
    first, second = assigned_partition(broker, 0), assigned_partition(broker, 1)
    member = member_of(broker)
    commits.add_finished([finished_record(first, 10)])
    commits.commit(member)
    broker.fate = "lost"
    commits.add_finished([finished_record(second, 10)])
    commits.commit(member)
    broker.fate = "committed"
    broker.positions[0] = (10, "")
    commits.commit(member)
    assert broker.positions == {0: (11, ""), 1: (11, "")}


def test_an_idle_pipeline_is_ready_again_after_an_outage(broker: Broker) -> None:
    """After a lost connection, a pipeline waits for Kafka only as long as no producer can be opened."""
    waiting = WaitingState(GROUP)
    commits = new_commits(broker, waiting)
    part, member = assigned_partition(broker), member_of(broker)
    commits.add_finished([finished_record(part, 10)])
    commits.commit(member)
    broker.lose_connection()
    broker.is_down = True
    commits.commit(member)
    assert waiting.dependency == "kafka"
    broker.is_down = False
    commits.commit(member)
    assert waiting.dependency is None
    assert commits.due_in_s() is None


def test_a_pipeline_whose_records_went_elsewhere_no_longer_waits(broker: Broker) -> None:
    """If the uncommitted records belong to another processor now, the pipeline no longer waits for Kafka."""
    waiting = WaitingState(GROUP)
    commits = new_commits(broker, waiting)
    part, member = assigned_partition(broker), member_of(broker)
    broker.fate = "lost"
    commits.add_finished([finished_record(part, 10)])
    commits.commit(member)
    assert waiting.dependency == "kafka"
    part.is_assigned = False
    commits.drop_unassigned()
    assert waiting.dependency is None


def test_after_a_lost_connection_right_positions_stay_as_they_are(commits: Commits, broker: Broker) -> None:
    """After a lost connection, positions that have not changed are not committed again."""
    part, member = assigned_partition(broker), member_of(broker)
    commits.add_finished([finished_record(part, 10)])
    commits.commit(member)
    broker.lose_connection()
    commits.commit(member)
    assert len(commits) == 0
    assert broker.positions == {0: (11, "")}


def test_after_a_lost_connection_positions_of_another_process_are_left_alone(commits: Commits, broker: Broker) -> None:
    """If positions of another process are found after a lost connection, PositionsChanged is raised.

    The position is ahead of the last commit of this process, because the partition has another owner.
    """
    part, member = assigned_partition(broker), member_of(broker)
    commits.add_finished([finished_record(part, 10)])
    commits.commit(member)
    broker.positions[0] = (40, "")
    broker.lose_connection()
    with pytest.raises(PositionsChanged):
        commits.commit(member)
    assert broker.positions == {0: (40, "")}


def commit_all(commits: Commits, member: Any) -> None:
    """Commit until no record is uncommitted; each commit deals with at most one refused output."""
    for _ in range(1000):
        if not len(commits):
            return
        commits.commit(member)
    raise AssertionError(f"{len(commits)} records are still not committed")


def test_outputs_that_brokers_refuse_count_towards_the_limit(commits: Commits, broker: Broker) -> None:
    """If brokers refuse the output of a record, the record counts towards the limit, although it was handled."""
    part, member = assigned_partition(broker), member_of(broker)
    broker.max_size = 1
    for offset in range(10, 109):
        commits.add_finished([finished_record(part, offset)])
        commit_all(commits, member)
    assert (commits.limit_error, part.tally.consecutive) == (None, 99)
    commits.add_finished([finished_record(part, 109)])
    commit_all(commits, member)
    assert "the last 100 records were all dead letters" in str(commits.limit_error)


def test_no_refused_output_becomes_a_dead_letter_beyond_the_limit(commits: Commits, broker: Broker) -> None:
    """Beyond the limit, a record whose output is refused stays unfinished, and the other records are committed."""
    part, member = assigned_partition(broker), member_of(broker)
    broker.max_size = 1
    commits.add_finished([finished_record(part, offset) for offset in range(10, 130)])
    commit_all(commits, member)
    assert broker.produced == [b"dead letter"] * 100
    assert part.tally.consecutive == 100
    assert len(part.unfinished) == 20
    offset, metadata = broker.positions[0]
    restored = PartitionState.from_position(0, offset, metadata)
    assert sorted(restored.unfinished) == sorted(part.unfinished)
    broker.max_size = None
    commits.add_finished([finished_record(part, 130)])
    commit_all(commits, member)
    assert broker.produced[-1] == b"answer 130"

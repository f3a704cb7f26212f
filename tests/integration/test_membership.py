"""A processor's membership of its group on a real broker."""

from __future__ import annotations

import threading
from collections.abc import Iterator

import pytest
from confluent_kafka import Consumer, TopicPartition

from rtfm.contracts import Contracts
from rtfm.errors import Unavailable
from rtfm.settings import Settings
from rtfm.streams.commits import BUSY_RECORDS, COMMIT_INTERVAL_S, Commits
from rtfm.streams.connection import KafkaConfig
from rtfm.streams.dead_letters.limits import DeadLetterPolicy
from rtfm.streams.handling import Handling, WaitingState
from rtfm.streams.membership import Membership
from rtfm.streams.position import PartitionState
from rtfm.streams.quarantine import Quarantine
from rtfm.streams.transactions import Fenced, Transactions
from tests.streams import GROUP, MESSAGES, eventually


@pytest.fixture
def commits(settings: Settings, contracts: Contracts) -> Iterator[Commits]:
    """A Commits object whose clock stands still, so that every commit is due unless it was postponed."""
    stop, waiting = threading.Event(), WaitingState(GROUP)
    handling = Handling(
        contracts,
        topic=MESSAGES,
        group=GROUP,
        waiting=waiting,
        secrets=(),
        quarantine=Quarantine(),
        stop=stop,
    )
    transactions = Transactions(KafkaConfig.of(settings), f"{GROUP}-{settings.instance_id}")
    made = Commits(
        KafkaConfig.of(settings),
        topic=MESSAGES,
        group=GROUP,
        policy=DeadLetterPolicy(),
        waiting=waiting,
        handling=handling,
        transactions=transactions,
        clock=lambda: 100.0,
    )
    made.open()
    yield made
    made.close()


def test_a_processor_outside_the_group_delays_its_commit(settings: Settings, commits: Commits) -> None:
    """If a processor is not a member of the group, it postpones its commit.

    The commit would fail until the processor is a member again, and a retry at once would be a busy loop.
    """
    outsider = Consumer(
        {"bootstrap.servers": settings.kafka_bootstrap_servers, "group.id": KafkaConfig.of(settings).group(GROUP)}
    )
    partition = PartitionState(0)
    for _ in range(BUSY_RECORDS):
        commits.add_position(partition)
    assert commits.due_in_s() == 0
    commits.commit(outsider)
    outsider.close()
    assert commits.due_in_s() == pytest.approx(COMMIT_INTERVAL_S)
    assert len(commits) == BUSY_RECORDS


def test_a_processor_that_rejoins_ends_if_its_name_was_taken(settings: Settings) -> None:
    """If another process uses the name of a processor that rejoins the group, the processor ends.

    Before the processor leaves the group, it commits, and the refusal of this commit shows that another process uses
    the name. If the processor continued, the two processes would fence each other forever.
    """

    class Listener:
        def read_positions(self, *_: object) -> list[TopicPartition]:
            raise Unavailable("kafka", "the offsets are not known")

        def before_revoke(self) -> None:
            raise Fenced("another process took the place")

        def on_assign(self, partition: PartitionState) -> None: ...
        def on_drop(self) -> None: ...
        def on_end_of_log(self, partition: PartitionState) -> None: ...
        def confirm_name(self) -> None: ...

    members = Membership(
        KafkaConfig.of(settings),
        topic=MESSAGES,
        group=GROUP,
        waiting=WaitingState(GROUP),
        listener=Listener(),
    )
    members.open()
    try:
        with pytest.raises(Fenced):
            eventually(lambda: members.poll(0.1, 1))
    finally:
        members.leave()

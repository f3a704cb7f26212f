"""The outbox in front of the producer, with senders that fail when a test says so."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator

import pytest
from attrs import define, field, frozen
from prometheus_client import REGISTRY

from rtfm.bot.asking import OpenQuestionSender
from rtfm.bot.messages import to_deletion_event
from rtfm.bot.outbox import Acknowledgement, Outbox
from rtfm.errors import PermanentError, Unavailable
from rtfm.events import BotQuery, DiscordMessage, TimestampMillis
from rtfm.knowledge.archive import SqlArchive
from tests.streams import build_query


@frozen
class Ack:
    """The acknowledgement of a record."""

    error: str | None = None


def event(number: int) -> DiscordMessage:
    return to_deletion_event(number, 1, 1, None)


@define
class FlakySender:
    """A sender that acknowledges each event at once, unless a test makes it fail."""

    raises: list[Exception] = field(factory=list)
    refuses: list[str] = field(factory=list)
    open_gate: threading.Event = field(factory=threading.Event)
    taken: list[str] = field(factory=list)
    sent: list[str] = field(factory=list)

    def send(
        self, topic: str, event: DiscordMessage | BotQuery, *, on_delivery: Callable[[Acknowledgement], None]
    ) -> None:
        assert self.open_gate.wait(30)
        assert isinstance(event, DiscordMessage)
        self.taken.append(event.message_id)
        if self.raises:
            raise self.raises.pop(0)
        if event.message_id in self.refuses:
            self.refuses.remove(event.message_id)
            on_delivery(Ack("no broker took it"))
        else:
            self.sent.append(event.message_id)
            on_delivery(Ack())


@pytest.fixture
def sender() -> FlakySender:
    sender = FlakySender()
    sender.open_gate.set()
    return sender


@pytest.fixture
def outbox(sender: FlakySender) -> Iterator[Outbox]:
    box = Outbox(sender, limit=5, retry_s=0.01)
    box.start()
    yield box
    sender.open_gate.set()
    box.close(0)


def test_a_full_outbox_drops_events_and_reports_it(outbox: Outbox, sender: FlakySender) -> None:
    """A full outbox drops new events without blocking the event loop, and makes the bot not ready."""
    sender.open_gate.clear()
    taken = [outbox.offer("discord-messages", event(number)) for number in range(7)]
    assert taken == [True] * 5 + [False] * 2
    assert "full" in str(outbox.not_ready_reason())
    sender.open_gate.set()
    assert outbox.close(30) == 0
    assert sender.sent == ["0", "1", "2", "3", "4"]


def test_an_event_that_no_broker_took_is_sent_again(outbox: Outbox, sender: FlakySender) -> None:
    """If the delivery report of an event has an error, the event is sent again."""
    sender.refuses = ["0", "0", "2"]
    for number in range(4):
        outbox.offer("discord-messages", event(number))
    assert outbox.close(30) == 0
    assert sorted(sender.sent) == ["0", "1", "2", "3"]
    assert outbox.not_ready_reason() is None


def test_a_producer_that_is_down_is_waited_for_in_order(outbox: Outbox, sender: FlakySender) -> None:
    """While the producer fails, no later event overtakes the event that failed."""
    sender.raises = [Unavailable("Kafka", "down"), Unavailable("Kafka", "down")]
    for number in range(3):
        outbox.offer("discord-messages", event(number))
    assert outbox.close(30) == 0
    assert sender.sent == ["0", "1", "2"]


def test_an_event_that_fits_no_contract_blocks_no_other(outbox: Outbox, sender: FlakySender) -> None:
    """An event that fits no contract can never be sent. It is dropped, and later events are sent."""
    sender.raises = [PermanentError("does not fit")]
    for number in range(2):
        outbox.offer("discord-messages", event(number))
    assert outbox.close(30) == 0
    assert sender.sent == ["1"]


def test_closing_reports_unsent_events(outbox: Outbox, sender: FlakySender) -> None:
    """Closing the outbox returns the number of events that were not sent and are lost."""
    sender.open_gate.clear()
    outbox.offer("discord-messages", event(0))
    outbox.offer("discord-messages", event(1))
    assert outbox.close(0.01) == 2


def test_the_gauge_counts_the_events_of_all_outboxes(outbox: Outbox, sender: FlakySender) -> None:
    """The gauge shows how many events all outboxes of the bot contain together."""
    sender.open_gate.clear()
    before = REGISTRY.get_sample_value("rtfm_outbox_events") or 0.0
    other = Outbox(sender, limit=5)
    for number in range(2):
        outbox.offer("discord-messages", event(number))
        other.offer("discord-messages", event(number))
    assert REGISTRY.get_sample_value("rtfm_outbox_events") == before + 4
    other.start()
    sender.open_gate.set()
    assert (outbox.close(30), other.close(30)) == (0, 0)
    assert REGISTRY.get_sample_value("rtfm_outbox_events") == before


def test_a_question_that_cannot_be_stored_is_not_asked(sender: FlakySender) -> None:
    """If the archive cannot store a question, the question is not sent, because its answer could not be posted."""
    nowhere = SqlArchive("postgresql://127.0.0.1:9/rtfm")
    asking = OpenQuestionSender(sender, nowhere, clock_ms=lambda: TimestampMillis(0))
    with pytest.raises(Unavailable):
        asking.send("bot-queries", build_query(1), on_delivery=lambda _: None)
    assert sender.taken == []

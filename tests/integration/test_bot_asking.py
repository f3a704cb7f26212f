"""Questions on their way from the bot to Kafka, with the real archive."""

from __future__ import annotations

from collections.abc import Callable

from attrs import define, field, frozen

from rtfm.bot.asking import OpenQuestionSender
from rtfm.bot.outbox import Acknowledgement, Outbox
from rtfm.events import BotQuery, DiscordMessage, TimestampMillis
from rtfm.knowledge.archive import SqlArchive
from tests.streams import build_query


@frozen
class Ack:
    """Kafka's delivery report for a record."""

    error: str | None = None


@define
class Kafka:
    """A producer that notes for each event whether the event is a query whose question is already open."""

    archive: SqlArchive
    open: list[bool] = field(factory=list)

    def send(
        self, topic: str, event: DiscordMessage | BotQuery, *, on_delivery: Callable[[Acknowledgement], None]
    ) -> None:
        self.open.append(isinstance(event, BotQuery) and self.archive.questions.find(event.query_id) is not None)
        on_delivery(Ack())


def test_a_question_is_open_before_its_query_is_in_kafka(archive: SqlArchive) -> None:
    """A question is stored as open before its query is sent.

    Otherwise a response that arrives at once would not find its open question.
    """
    kafka = Kafka(archive)
    box = Outbox(OpenQuestionSender(kafka, archive, clock_ms=lambda: TimestampMillis(0)))
    box.start()
    box.offer("bot-queries", build_query(1))
    assert box.close(30) == 0
    assert kafka.open == [True]

"""Sends questions to ``bot-queries``: first the row in the archive, then the record.

Promises that every query of the bot in Kafka has a row, with which its response is compared.
"""

from __future__ import annotations

from collections.abc import Callable

from rtfm.bot.outbox import Acknowledgement, Sender
from rtfm.events import BotQuery, DiscordMessage, TimestampMillis
from rtfm.knowledge.archive import SqlArchive


class OpenQuestionSender:
    """A sender that opens a question in the archive before it sends the query."""

    def __init__(self, sender: Sender, archive: SqlArchive, *, clock_ms: Callable[[], TimestampMillis]) -> None:
        self._sender = sender
        self._archive = archive
        self._clock_ms = clock_ms

    def send(
        self, topic: str, event: DiscordMessage | BotQuery, *, on_delivery: Callable[[Acknowledgement], None]
    ) -> None:
        """Send one event; may wait for the archive, and raises Unavailable if the archive does not answer."""
        if isinstance(event, BotQuery):
            self._archive.questions.open(event, now=self._clock_ms())
        self._sender.send(topic, event, on_delivery=on_delivery)

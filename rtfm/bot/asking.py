"""Sends questions to ``bot-queries`` after storing them in the archive as open questions.

Therefore every query in Kafka that the bot sent has a row in the archive. The bot compares responses with that row, and
posts only those that match.
"""

from __future__ import annotations

from collections.abc import Callable

from rtfm.bot.outbox import Acknowledgement, Sender
from rtfm.events import BotQuery, DiscordMessage, TimestampMillis
from rtfm.knowledge.archive import SqlArchive


class OpenQuestionSender:
    """A sender that stores a query as an open question in the archive before sending it."""

    def __init__(self, sender: Sender, archive: SqlArchive, *, clock_ms: Callable[[], TimestampMillis]) -> None:
        self._sender = sender
        self._archive = archive
        self._clock_ms = clock_ms

    def send(
        self, topic: str, event: DiscordMessage | BotQuery, *, on_delivery: Callable[[Acknowledgement], None]
    ) -> None:
        """Store ``event`` if it is a query, then send it. Raises Unavailable if the archive does not answer.

        Can block while the archive is written, or until the sender has room for the event.
        """
        if isinstance(event, BotQuery):
            self._archive.questions.open(event, now=self._clock_ms())
        self._sender.send(topic, event, on_delivery=on_delivery)

"""Sends questions to ``bot-queries`` after storing them in the archive as open questions.

Therefore the archive has a row for every query that the bot sent to Kafka. The bot compares each response with the row
of its query, and posts only responses that match.
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

        Can block while the query is written to the archive, or until the sender has room for the event.
        """
        if isinstance(event, BotQuery):
            self._archive.questions.open(event, now=self._clock_ms())
        self._sender.send(topic, event, on_delivery=on_delivery)

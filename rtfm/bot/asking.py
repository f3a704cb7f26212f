"""From a question to ``bot-queries``: its row in the archive first, then its record.

Promises that no query of the bot is in Kafka without a row that its response can be compared with.
"""

from __future__ import annotations

from collections.abc import Callable

from rtfm.bot.outbox import Acknowledgement, Sender
from rtfm.events import BotQuery, DiscordMessage, TimestampMillis
from rtfm.knowledge.archive import SqlArchive


class OpenQuestionSender:
    """A sender for an outbox of questions."""

    def __init__(self, sender: Sender, archive: SqlArchive, *, clock_ms: Callable[[], TimestampMillis]) -> None:
        self._sender = sender
        self._archive = archive
        self._clock_ms = clock_ms

    def send(
        self, topic: str, event: DiscordMessage | BotQuery, *, on_delivery: Callable[[Acknowledgement], None]
    ) -> None:
        """Hand over one event; may wait for the archive, and raises Unavailable when that does not answer."""
        if isinstance(event, BotQuery):
            self._archive.questions.open(event, now=self._clock_ms())
        self._sender.send(topic, event, on_delivery=on_delivery)

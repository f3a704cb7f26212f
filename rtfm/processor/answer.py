"""The handler of ``bot-queries``: one answer to a question, kept before it is produced.

Promises that a question that comes again gets the answer that it had, and that no model is asked twice for it. Does not
read Kafka.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

from attrs import frozen

from rtfm.answering.answerer import Answerer
from rtfm.errors import InvalidEvent
from rtfm.events import BotQuery, BotResponse
from rtfm.knowledge.archive import SqlArchive
from rtfm.knowledge.retrieval import MAX_VISIBLE_CHANNELS
from rtfm.streams.pipeline import Output, Record
from rtfm.telemetry import get_logger

TOPIC = "bot-queries"
RESPONSES = "bot-responses"

# Snowflakes, and the ids that the bot and the console make of them and of UUIDs.
_ID = re.compile(r"[A-Za-z0-9_-]{1,100}")

_log = get_logger(__name__)


@frozen(kw_only=True)
class Answering:
    """Answers each question once. Raises Unavailable when the archive or Chroma does not answer."""

    answerer: Answerer
    archive: SqlArchive

    def __call__(self, records: Sequence[Record]) -> list[Output]:
        """One response a question. Raises InvalidEvent for a question that breaks a rule."""
        return [Output(topic=RESPONSES, event=self._respond(_valid(record.event))) for record in records]

    def _respond(self, query: BotQuery) -> BotResponse:
        before = self.archive.answer(query.query_id)
        if before is not None:
            _log.info("answered before", query_id=query.query_id)
            return before
        # Kept before it is produced: whatever dies in between finds it here.
        response = self.archive.save_answer(self.answerer.answer(query))
        _log.info(
            "answered",
            query_id=query.query_id,
            outcome=response.outcome.value,
            citations=len(response.citations),
            elapsed_ms=response.elapsed_ms,
        )
        return response


def _valid(event: object) -> BotQuery:
    if not isinstance(event, BotQuery):
        raise InvalidEvent(f"{type(event).__name__} is not a BotQuery")
    ids = {"query_id": event.query_id, "channel_id": event.channel_id, "asker_id": event.asker_id}
    optional = {"guild_id": event.guild_id, "message_id": event.message_id}
    ids |= {name: value for name, value in optional.items() if value is not None}
    for name, value in ids.items():
        if not _ID.fullmatch(value):
            raise InvalidEvent(f"{name} is no id")
    # More than that are refused without being read.
    if len(event.visible_channel_ids) <= MAX_VISIBLE_CHANNELS and not all(
        map(_ID.fullmatch, event.visible_channel_ids)
    ):
        raise InvalidEvent("visible_channel_ids holds something that is no id")
    return event

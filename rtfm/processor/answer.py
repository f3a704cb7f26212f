"""The handler of ``bot-queries``: one answer to a question, kept before it is produced.

Promises that a record that comes again gets the answer that it had, and asks no model for it; that a second record of
the same question produces nothing. Does not read Kafka.
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
from rtfm.telemetry import IGNORED_EVENTS, get_logger

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
        """At most one response a record. Raises InvalidEvent for a question that breaks a rule."""
        responses = [self._respond(record, _valid(record.event)) for record in records]
        return [Output(topic=RESPONSES, event=response) for response in responses if response is not None]

    def _respond(self, record: Record, query: BotQuery) -> BotResponse | None:
        """The answer to ``query``, or None if another record of the same question has it.

        A record that comes again, after a crash or when its partition moved, gets its answer again: only the pipeline
        knows whether that was ever produced, and commits it once.
        """
        made_by = f"{record.topic}-{record.partition}-{record.offset}"
        kept = self.archive.answers.find(query.query_id)
        if kept is None:
            # Kept before it is produced: whatever dies in between finds it here. Where two workers answer the same
            # question at once, the first row stays.
            kept = self.archive.answers.keep(self.answerer.answer(query), made_by=made_by)
            _log.info(
                "answered",
                query_id=query.query_id,
                outcome=kept.response.outcome.value,
                reason=kept.response.reason.value if kept.response.reason else None,
                citations=len(kept.response.citations),
                elapsed_ms=kept.response.elapsed_ms,
            )
        # An older version's rows do not say who made them; a second response is the lesser evil.
        if kept.made_by not in (made_by, ""):
            _log.info("answered by another record", query_id=query.query_id, record=made_by, made_by=kept.made_by)
            IGNORED_EVENTS.labels(topic=TOPIC, reason="answered by another record").inc()
            return None
        return kept.response


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

"""The handler of ``bot-queries``: one answer to a question, kept before it is produced.

Promises that a record that comes again gets the answer that it had, and asks no model for it; that a second record of
the same question produces nothing; that a question which breaks a rule is answered with the reason, so that its sender
learns it and others are not held up; that what was asked by somebody who is erased is not asked again. Does not read
Kafka.
"""

from __future__ import annotations

from collections.abc import Sequence

from attrs import frozen

from rtfm.answering.answerer import Answerer
from rtfm.clock import now_ms
from rtfm.errors import InvalidEvent
from rtfm.events import BotQuery, BotResponse, BrokenRule, TimestampMillis, find_broken_rules
from rtfm.knowledge.archive import SqlArchive
from rtfm.names import QUERIES, RESPONSES
from rtfm.streams.pipeline import Output, Record
from rtfm.telemetry import IGNORED_EVENTS, get_logger

_log = get_logger(__name__)


@frozen(kw_only=True)
class Answering:
    """Answers each question once. Raises Unavailable when the archive or Chroma does not answer."""

    answerer: Answerer
    archive: SqlArchive

    def __call__(self, records: Sequence[Record]) -> list[Output]:
        """At most one response a record. Raises InvalidEvent for a record whose ``query_id`` nobody could wait for."""
        responses = [self._respond(record) for record in records]
        return [Output(topic=RESPONSES, event=response) for response in responses if response is not None]

    def _respond(self, record: Record) -> BotResponse | None:
        """The answer to the question of ``record``, or None if another record of the same question has it.

        A record that comes again, after a crash or when its partition moved, gets its answer again: only the pipeline
        knows whether that was ever produced, and commits it once.
        """
        query = record.event
        if not isinstance(query, BotQuery):
            raise InvalidEvent(f"{type(query).__name__} is not a BotQuery")
        broken = list(find_broken_rules(query, now=now_ms()))
        unusable = next((one for one in broken if one.field == "query_id"), None)
        if unusable is not None:
            raise InvalidEvent(f"BotQuery.{unusable}")
        made_by = f"{record.topic}-{record.partition}-{record.offset}"
        kept = self.archive.answers.find(query.query_id)
        if kept is None:
            # Kept before it is produced: whatever dies in between finds it here. Where two workers answer the same
            # question at once, the first row stays.
            kept = self.archive.answers.keep(self._answer(record, query, broken), made_by=made_by)
            _log.info(
                "answered",
                query_id=query.query_id,
                outcome=kept.response.outcome.value,
                reason=kept.response.reason.value if kept.response.reason else None,
                citations=len(kept.response.citations),
                elapsed_ms=kept.response.elapsed_ms,
            )
        if kept.made_by != made_by:
            _log.info("answered by another record", query_id=query.query_id, record=made_by, made_by=kept.made_by)
            IGNORED_EVENTS.labels(topic=QUERIES, reason="answered by another record").inc()
            return None
        return kept.response

    def _answer(self, record: Record, query: BotQuery, broken: Sequence[BrokenRule]) -> BotResponse:
        if not broken:
            if self._is_erased(query):
                return self.answerer.withdraw(query)
            try:
                return self.answerer.answer(query)
            except InvalidEvent as exc:
                _log.warning("a store refused a question", query_id=query.query_id, error=str(exc))
                broken = [BrokenRule(field="question", rule="must be text that can be searched for")]
        return self.answerer.refuse(query, broken, record_at=TimestampMillis(record.timestamp_ms))

    def _is_erased(self, query: BotQuery) -> bool:
        return self.archive.removals.is_asker_erased(
            guild_id=query.guild_id, channel_id=query.channel_id, asker_id=query.asker_id, asked_at=query.asked_at
        )

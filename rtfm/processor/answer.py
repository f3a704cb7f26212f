"""The handler of ``bot-queries``. It answers each query once, and stores each answer before it returns it.

- If Kafka delivers a record again, the handler returns the stored answer and does not call the model.
- If a second record contains the same query, the handler returns no response to the second record.
- If a query breaks a rule, its outcome is REFUSED, and the response names the rule. If the ``query_id`` breaks a rule,
  the handler raises InvalidEvent instead.
- If an erasure covers a query, its outcome is NOT_FOUND.

The pipeline reads the records and produces the responses.
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
    """The handler of ``bot-queries``. Raises Unavailable when the archive or Chroma does not respond."""

    answerer: Answerer
    archive: SqlArchive

    def __call__(self, records: Sequence[Record]) -> list[Output]:
        """Return at most one response for each record. Raises InvalidEvent if a ``query_id`` breaks a rule."""
        responses = [self._respond(record) for record in records]
        return [Output(topic=RESPONSES, event=response) for response in responses if response is not None]

    def _respond(self, record: Record) -> BotResponse | None:
        """Return the response to the query of ``record``, or None if another record with this query was answered.

        After a crash or a rebalance, Kafka may deliver a record again. This method then returns the same response
        again, because it cannot know whether the response was produced. The pipeline's transactions commit the response
        only once.
        """
        query = record.event
        if not isinstance(query, BotQuery):
            raise InvalidEvent(f"{type(query).__name__} is not a BotQuery")
        broken = list(find_broken_rules(query, now=now_ms()))
        broken_id = next((rule for rule in broken if rule.field == "query_id"), None)
        if broken_id is not None:
            raise InvalidEvent(f"BotQuery.{broken_id}")
        made_by = f"{record.topic}-{record.partition}-{record.offset}"
        stored = self.archive.answers.find(query.query_id)
        if stored is None:
            # The answer is stored before the pipeline produces it. If Kafka delivers the record again after a crash,
            # ``find`` above returns the stored answer. If two processors answer the same query at the same time, the
            # answer that is stored first is kept.
            stored = self.archive.answers.store(self._answer(record, query, broken), made_by=made_by)
            _log.info(
                "answered",
                query_id=query.query_id,
                outcome=stored.response.outcome.value,
                reason=stored.response.reason.value if stored.response.reason else None,
                citations=len(stored.response.citations),
                elapsed_ms=stored.response.elapsed_ms,
            )
        if stored.made_by != made_by:
            _log.info("answered by another record", query_id=query.query_id, record=made_by, made_by=stored.made_by)
            IGNORED_EVENTS.labels(topic=QUERIES, reason="answered by another record").inc()
            return None
        return stored.response

    def _answer(self, record: Record, query: BotQuery, broken: Sequence[BrokenRule]) -> BotResponse:
        if not broken:
            if self._is_erased(query):
                return self.answerer.withdraw(query)
            try:
                return self.answerer.answer(query)
            except InvalidEvent as exc:
                _log.warning("the archive or Chroma rejected the question", query_id=query.query_id, error=str(exc))
                broken = [BrokenRule(field="question", rule="must be text that can be searched for")]
        return self.answerer.refuse(query, broken, record_at=TimestampMillis(record.timestamp_ms))

    def _is_erased(self, query: BotQuery) -> bool:
        return self.archive.removals.is_asker_erased(
            guild_id=query.guild_id, channel_id=query.channel_id, asker_id=query.asker_id, asked_at=query.asked_at
        )

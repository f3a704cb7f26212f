"""Queues events between Discord's event loop and Kafka.

``offer`` does not wait for Kafka. One thread sends the events in order. The outbox keeps each event until a broker has
acknowledged the event. An event that cannot be sent at all is dropped. When no sent event awaits its acknowledgement,
the events that failed are sent again in their order. While Kafka or the registry is down, the outbox fills. When the
outbox is full, new events are dropped and counted, and the bot is not ready.
"""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable
from functools import partial
from typing import Protocol

from attrs import frozen

from rtfm.errors import PermanentError, RtfmError
from rtfm.events import BotQuery, DiscordMessage
from rtfm.telemetry import IGNORED_EVENTS, OUTBOX_EVENTS, get_logger

LIMIT = 10_000  # events; about 20 MB
_RETRY_S = 1.0

log = get_logger(__name__)


class Acknowledgement(Protocol):
    """The producer's report about a record that was sent."""

    @property
    def error(self) -> str | None:
        """Return why no broker acknowledged the record, in one line, or None if a broker did."""


class Sender(Protocol):
    """The part of the event producer that the outbox uses."""

    def send(
        self, topic: str, event: DiscordMessage | BotQuery, *, on_delivery: Callable[[Acknowledgement], None]
    ) -> None:
        """Send one event. Can block until the producer has room for it."""


@frozen
class _QueuedEvent:
    number: int
    topic: str
    event: DiscordMessage | BotQuery


class Outbox:
    """A bounded queue in front of the producer. Thread-safe."""

    def __init__(self, sender: Sender, *, limit: int = LIMIT, retry_s: float = _RETRY_S) -> None:
        self._sender = sender
        self._limit = limit
        self._retry_s = retry_s
        self._changed = threading.Condition()
        self._waiting: deque[_QueuedEvent] = deque()
        self._in_flight: dict[int, _QueuedEvent] = {}
        self._failed: list[_QueuedEvent] = []
        self._last_number = 0
        self._gauge_value = 0
        self._dropping = False
        self._problem: str | None = None
        self._closed = False
        self._thread = threading.Thread(target=self._run, name="outbox", daemon=True)

    def start(self) -> None:
        """Start the thread that sends."""
        self._thread.start()

    def offer(self, topic: str, event: DiscordMessage | BotQuery) -> bool:
        """Queue ``event`` without waiting for Kafka. Return False if the outbox is full and ``event`` was dropped."""
        with self._changed:
            if self._size() >= self._limit:
                IGNORED_EVENTS.labels(topic, "outbox_full").inc()
                if not self._dropping:
                    log.error("the outbox is full, dropping events", events=self._size(), error=self._problem)
                self._dropping = True
                return False
            self._dropping = False
            self._last_number += 1
            self._waiting.append(_QueuedEvent(self._last_number, topic, event))
            self._notify_change()
            return True

    def not_ready_reason(self) -> str | None:
        """Return why events cannot be sent, or None if they can."""
        with self._changed:
            if self._dropping:
                return f"the outbox is full ({self._size()} events): {self._problem or 'Kafka is too slow'}"
            return self._problem

    def close(self, timeout_s: float) -> int:
        """Wait up to ``timeout_s`` for all acknowledgements, then stop. Return the number of events without one."""
        deadline = time.monotonic() + timeout_s
        with self._changed:
            self._changed.wait_for(lambda: not self._size(), timeout=max(0.0, deadline - time.monotonic()))
            self._closed = True
            self._changed.notify_all()
            return self._size()

    def _size(self) -> int:
        return len(self._waiting) + len(self._in_flight) + len(self._failed)

    def _notify_change(self) -> None:
        # The gauge counts the events of all outboxes of the process, so this outbox adds only its own change.
        OUTBOX_EVENTS.inc(self._size() - self._gauge_value)
        self._gauge_value = self._size()
        self._changed.notify_all()

    def _run(self) -> None:
        while (queued := self._take_next()) is not None:
            try:
                self._sender.send(queued.topic, queued.event, on_delivery=partial(self._on_delivery, queued))
            except PermanentError as exc:
                # Another attempt would fail in the same way, so the event is dropped.
                log.error(  # noqa: TRY400 - a traceback would add nothing to the error's text
                    "event cannot be sent, dropped", topic=queued.topic, error=str(exc)
                )
                IGNORED_EVENTS.labels(queued.topic, "unsendable").inc()
                with self._changed:
                    self._in_flight.pop(queued.number, None)
                    self._notify_change()
            except RtfmError as exc:
                self._keep_for_retry(queued, str(exc))

    def _take_next(self) -> _QueuedEvent | None:
        with self._changed:
            while not self._closed:
                if self._failed and not self._in_flight:
                    # Failed events go back to the front of the queue, and are sent again after a pause.
                    self._waiting.extendleft(sorted(self._failed, key=lambda queued: queued.number, reverse=True))
                    self._failed.clear()
                    self._changed.wait_for(lambda: self._closed, timeout=self._retry_s)
                elif self._waiting and not self._failed:
                    queued = self._waiting.popleft()
                    self._in_flight[queued.number] = queued
                    return queued
                else:
                    self._changed.wait()
        return None

    def _on_delivery(self, queued: _QueuedEvent, acknowledgement: Acknowledgement) -> None:
        if acknowledgement.error is not None:
            self._keep_for_retry(queued, acknowledgement.error)
            return
        with self._changed:
            self._in_flight.pop(queued.number, None)
            if self._problem is not None:
                log.info("sending events works again")
                self._problem = None
            self._notify_change()

    def _keep_for_retry(self, queued: _QueuedEvent, error: str) -> None:
        with self._changed:
            if self._in_flight.pop(queued.number, None) is None:
                return
            if self._problem is None:
                log.warning("sending events fails, they are kept and retried", error=error)
            self._problem = error
            self._failed.append(queued)
            self._notify_change()

"""Produces an event and waits for an event in return, such as the response to a question."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

from rtfm.contracts import open_contracts
from rtfm.settings import Settings
from rtfm.streams.consumer import EventReader
from rtfm.streams.producer import EventProducer


def round_trip(
    settings: Settings,
    sent_to: str,
    event: Any,
    topic: str,
    is_wanted: Callable[[Any], bool],
    timeout_s: float,
) -> tuple[Any, int] | None:
    """Produce ``event`` to ``sent_to`` and wait for the first event of ``topic`` that ``is_wanted`` accepts.

    Returns the accepted event and the milliseconds until it came, or None if no such event comes within ``timeout_s``.
    """
    contracts = open_contracts(settings)
    # The reader goes to the end of the topic before the event is sent, so that the reader misses no later event.
    with EventReader(settings, contracts, topic, from_end=True) as reader:
        began = time.monotonic()
        with EventProducer(settings, contracts) as producer:
            producer.send(sent_to, event)
            producer.flush(min(timeout_s, settings.kafka_delivery_timeout_s))
        while (left := began + timeout_s - time.monotonic()) > 0:
            record = reader.poll(min(left, 0.5))
            if record is not None and record.event is not None and is_wanted(record.event):
                return record.event, round((time.monotonic() - began) * 1000)
    return None

"""The machine's clock, in the unit that events use."""

from __future__ import annotations

import time

from rtfm.events import TimestampMillis


def now_ms() -> TimestampMillis:
    """Return the milliseconds since the Unix epoch, UTC."""
    return TimestampMillis(time.time_ns() // 1_000_000)

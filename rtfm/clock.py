"""The clock of this machine, as events tell time."""

from __future__ import annotations

import time

from rtfm.events import TimestampMillis


def now_ms() -> TimestampMillis:
    """Milliseconds since the Unix epoch, UTC."""
    return TimestampMillis(time.time_ns() // 1_000_000)

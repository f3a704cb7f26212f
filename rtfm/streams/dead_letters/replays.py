"""Replays: the rules that decide whether a dead letter may be replayed.

A letter is refused if it was replayed before, failed too often, or is known to fail again. ``store`` replays.
"""

from __future__ import annotations

from collections.abc import Callable

from attrs import frozen

from rtfm.contracts import EVENT_OF_TOPIC, Contracts
from rtfm.errors import PermanentError
from rtfm.events import TimestampMillis, to_datetime
from rtfm.streams.dead_letters.letters import OPEN, REPLAYED
from rtfm.streams.dead_letters.store import FiledLetter

MAX_REPLAYS = 3
"""Replays of one record. After one failure more than that, only ``force`` replays it again."""

_ERASED = "it was erased since (`rtfm-cli forget`)"


@frozen(kw_only=True)
class ReplayRules:
    """Returns the reason against replaying a letter, or None. ``force`` leaves only what is impossible or erased.

    ``is_erased`` tells whether an event was erased: a replay would bring it back for as long as Kafka keeps it.
    """

    contracts: Contracts
    force: bool = False
    is_erased: Callable[[object], bool] = lambda _: False

    def __call__(self, found: FiledLetter) -> str | None:
        """Return the reason against replaying, or None. Raises Unavailable if the registry is needed and is down."""
        letter = found.letter
        if letter.headers is None:
            return "another program wrote it, so its original headers are not known"
        if letter.topic not in EVENT_OF_TOPIC:
            return f"there is no topic {letter.topic!r} to replay it to"
        if self.force:
            return _ERASED if self._find_refusal(found) == _ERASED else None
        if found.state != OPEN:
            return f"{describe_mark(found)}; --force replays it again"
        if letter.attempt > MAX_REPLAYS:
            return f"it failed {letter.attempt} times; --force tries once more"
        if letter.stage == "CRASH":
            return "it ended the processor repeatedly; --force replays it once that is fixed"
        return self._find_refusal(found)

    def _find_refusal(self, found: FiledLetter) -> str | None:
        letter = found.letter
        try:
            if letter.value is None:
                return "it has no value, and no version of the contract allows that"
            event = self.contracts.decode(letter.topic, letter.value)
        except PermanentError as exc:
            return f"its cause still holds: {exc}"
        return _ERASED if self.is_erased(event) else None


def describe_mark(found: FiledLetter) -> str:
    """Return whether a letter was replayed or discarded, and when, as text."""
    at = to_datetime(TimestampMillis(found.marked_ms or 0)).strftime("%Y-%m-%d %H:%M:%S UTC")
    return f"{'replayed' if found.state == REPLAYED else 'discarded'} at {at}"

"""Whether a dead letter may be replayed: not twice, not for ever, and not while its cause is known to hold.

Owns the reasons against. Does not replay: the store does.
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
"""Replays of one record; after as many, with one failure more than that, only a person's word starts another."""

_ERASED = "it was erased since (`rtfm-cli forget`)"


@frozen(kw_only=True)
class ReplayRules:
    """The reason against replaying a letter, or None. ``force`` leaves only what cannot be done at all.

    ``is_erased`` says of an event whether it was erased: it would come back for as long as Kafka keeps it.
    """

    contracts: Contracts
    force: bool = False
    is_erased: Callable[[object], bool] = lambda _: False

    def __call__(self, found: FiledLetter) -> str | None:
        """Raises Unavailable when the registry must be asked and does not answer."""
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
            return "it ended the processor again and again; --force once that is mended"
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
    """What became of a letter, and when."""
    at = to_datetime(TimestampMillis(found.marked_ms or 0)).strftime("%Y-%m-%d %H:%M:%S UTC")
    return f"{'replayed' if found.state == REPLAYED else 'discarded'} at {at}"

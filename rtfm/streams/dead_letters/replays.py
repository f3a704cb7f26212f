"""Replays: the rules that decide whether a dead letter may be replayed.

A replay is refused if the dead letter was replayed or discarded before, if its record failed too often or crashed the
process, if the replay is known to fail again, or if the event was erased. This module only decides; ``store`` replays.
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
"""One record may be replayed this many times without ``force``."""

_ERASED = "it was erased since (`rtfm-cli forget`)"


@frozen(kw_only=True)
class ReplayRules:
    """The rules for replays, as a function that returns the reason why a dead letter must not be replayed, or None.

    With ``force``, a replay is refused only if it is impossible, or if the event was erased. ``is_erased`` returns
    whether an event was erased. The replay of an erased event would put the event back into Kafka until retention
    removes it.
    """

    contracts: Contracts
    force: bool = False
    is_erased: Callable[[object], bool] = lambda _: False

    def __call__(self, found: FiledLetter) -> str | None:
        """Return the reason why ``found`` must not be replayed, or None. Raises Unavailable if the registry is down."""
        letter = found.letter
        if letter.headers is None:
            return "another program wrote it, so its original headers cannot be told apart"
        if letter.topic not in EVENT_OF_TOPIC:
            return f"the catalogue has no topic {letter.topic!r}, to which it would be replayed"
        if self.force:
            return _ERASED if self._find_refusal(found) == _ERASED else None
        if found.state != OPEN:
            return f"{describe_mark(found)}; --force replays it again"
        if letter.attempt > MAX_REPLAYS:
            return f"it has failed {letter.attempt} times; --force replays it once more"
        if letter.stage == "CRASH":
            return "it crashed the processor repeatedly; fix the cause, then replay it with --force"
        return self._find_refusal(found)

    def _find_refusal(self, found: FiledLetter) -> str | None:
        letter = found.letter
        try:
            if letter.value is None:
                return "it has no value, and the contract does not allow that"
            event = self.contracts.decode(letter.topic, letter.value)
        except PermanentError as exc:
            return f"it would fail again: {exc}"
        return _ERASED if self.is_erased(event) else None


def describe_mark(found: FiledLetter) -> str:
    """Return a text that says whether a dead letter was replayed or discarded, and when."""
    at = to_datetime(TimestampMillis(found.marked_ms or 0)).strftime("%Y-%m-%d %H:%M:%S UTC")
    return f"{'replayed' if found.state == REPLAYED else 'discarded'} at {at}"

"""How many dead letters are too many: a bad deploy must not drain a topic into dead-letters.

Owns the tally of a partition and the limit on it. The tally is committed with the partition's position, in the same
transaction as the dead letters that it counts, so it holds over restarts and goes with the partition to another
process: at the limit not one record more becomes a dead letter, however often a supervisor starts the service again. A
record that is handled lets it go on. Pure.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from attrs import define, field, frozen

from rtfm.errors import ConfigError, RtfmError

if TYPE_CHECKING:
    from rtfm.settings import Settings

TALLY_RECORDS = 1000
"""Records that the share is taken of."""

MIN_SHARE_RECORDS = 200
"""Seen at least, before a share says anything."""

_MASK = (1 << TALLY_RECORDS) - 1


class TooManyDeadLetters(RtfmError):
    """A partition has come to the limit; somebody must look before more of it is given up."""


@define
class TallyState:
    """What became of the last records of a partition, in the order in which they were finished."""

    consecutive: int = 0
    seen: int = 0
    bits: int = 0
    """The last TALLY_RECORDS records, the newest lowest; 1 is a dead letter."""

    def count_handled(self, count: int = 1) -> None:
        """Count records that were handled."""
        self.seen = min(self.seen + count, TALLY_RECORDS)
        self.consecutive = 0
        if self.bits:
            self.bits = (self.bits << count) & _MASK

    def count_dead_letter(self) -> None:
        """Count a dead letter."""
        self.seen = min(self.seen + 1, TALLY_RECORDS)
        self.consecutive += 1
        self.bits = (self.bits << 1 | 1) & _MASK

    def encode(self) -> str:
        """As text of at most 270 characters; empty when no dead letter is among the last records."""
        return f"{self.consecutive},{self.seen},{self.bits:x}" if self.bits else ""

    @classmethod
    def decode(cls, text: str) -> TallyState:
        """The tally that ``encode`` gave. Raises ConfigError for other text."""
        if not text:
            return cls()
        try:
            consecutive, seen, bits = text.split(",")
            return cls(int(consecutive), min(int(seen), TALLY_RECORDS), int(bits, 16) & _MASK)
        except ValueError as exc:
            raise ConfigError(f"the tally of dead letters is of another program or version: {text[:20]!r}") from exc


@frozen(kw_only=True)
class DeadLetterPolicy:
    """What a pipeline does with dead letters: how many of a partition it takes, and what they must not tell.

    At most ``max_consecutive`` in a row, and ``max_share`` of the last TALLY_RECORDS records; 0 is no limit. ``secrets`` are
    taken out of messages and stacks.
    """

    max_consecutive: int = 100
    max_share: float = 0.5
    secrets: tuple[str, ...] = field(default=(), repr=False)

    @classmethod
    def of(cls, settings: Settings) -> DeadLetterPolicy:
        """The policy that ``settings`` describe."""
        return cls(
            max_consecutive=settings.dlq_max_consecutive, max_share=settings.dlq_max_share, secrets=settings.secrets()
        )

    def limit_reason(self, tally: TallyState) -> str | None:
        """What there is too much of, or None."""
        if 0 < self.max_consecutive <= tally.consecutive:
            return f"the last {tally.consecutive} records were all dead letters"
        dead = tally.bits.bit_count()
        if self.max_share and tally.seen >= MIN_SHARE_RECORDS and dead / tally.seen > self.max_share:
            return f"{dead} of the last {tally.seen} records were dead letters"
        return None


def too_many_error(topic: str, partition: int, limit: str, reason: str) -> TooManyDeadLetters:
    """The error for a ``partition`` at its limit; ``reason`` is the class of the last failure."""
    return TooManyDeadLetters(
        f"{topic}, partition {partition}: {limit}, the last one for {reason}; stopped before more follow",
        hint="`rtfm-cli dlq stats` says why. Nothing is lost: it goes on where it stopped as soon as the next record"
        " can be handled. DLQ_MAX_CONSECUTIVE=0 and DLQ_MAX_SHARE=0 let all of them through.",
    )

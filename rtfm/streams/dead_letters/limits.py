"""Limits: how many dead letters are too many, so that a broken release does not turn a whole topic into dead letters.

This module owns the tally of a partition and the limit on dead letters. The tally is committed with the partition's
position, in the transaction that commits the counted dead letters. The tally therefore survives restarts, and moves
with the partition to another processor. At the limit no further record becomes a dead letter, however often the service
is started again. If the next record can be handled, the pipeline continues, and handled records lower the share of dead
letters in the tally. This module does no input or output.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from attrs import define, field, frozen

from rtfm.errors import ConfigError, RtfmError

if TYPE_CHECKING:
    from rtfm.settings import Settings

TALLY_RECORDS = 1000
"""The tally covers this many of the latest records of a partition."""

MIN_SHARE_RECORDS = 200
"""The limit on the share applies only if the tally has counted at least this many records."""

_MASK = (1 << TALLY_RECORDS) - 1


class TooManyDeadLetters(RtfmError):
    """A partition has reached the limit on dead letters. An operator must find the cause before work continues."""


@define
class TallyState:
    """The tally of a partition: the results of its last TALLY_RECORDS records, in the order in which they finished.

    ``consecutive`` is the number of dead letters since the last handled record. ``seen`` is the number of counted
    records, at most TALLY_RECORDS.
    """

    consecutive: int = 0
    seen: int = 0
    bits: int = 0
    """One bit for each record. The newest record has the lowest bit. 1 means a dead letter."""

    def count_handled(self, count: int = 1) -> None:
        """Count ``count`` handled records."""
        self.seen = min(self.seen + count, TALLY_RECORDS)
        self.consecutive = 0
        if self.bits:
            self.bits = (self.bits << count) & _MASK

    def count_dead_letter(self) -> None:
        """Count a dead letter."""
        self.seen = min(self.seen + 1, TALLY_RECORDS)
        self.consecutive += 1
        self.bits = (self.bits << 1 | 1) & _MASK

    def undo_handled(self) -> None:
        """Take back the count of one handled record, because a broker refused its outputs.

        The bit of the newest handled record is removed. The refused record may be an older one, but the number of dead
        letters in the tally is the same in both cases.
        """
        newer = _count_trailing_ones(self.bits)
        self.bits = self.bits >> newer + 1 << newer | self.bits & (1 << newer) - 1
        self.seen = max(0, self.seen - 1)
        self.consecutive = _count_trailing_ones(self.bits)

    def encode(self) -> str:
        """Return the tally as text of at most 270 characters. The text is empty if there is no dead letter."""
        return f"{self.consecutive},{self.seen},{self.bits:x}" if self.bits else ""

    @classmethod
    def decode(cls, text: str) -> TallyState:
        """Return the tally that ``encode`` wrote. Raises ConfigError for other text."""
        if not text:
            return cls()
        try:
            consecutive, seen, bits = text.split(",")
            return cls(int(consecutive), min(int(seen), TALLY_RECORDS), int(bits, 16) & _MASK)
        except ValueError as exc:
            raise ConfigError(
                f"the group's tally of dead letters was written by another program or version: {text[:20]!r}",
                hint="stop the group and reset its offsets with Kafka's own tools, or run the version that wrote them",
            ) from exc


@frozen(kw_only=True)
class DeadLetterPolicy:
    """The limit on the dead letters of a partition, and the secrets that must not be in them.

    A pipeline stops at ``max_consecutive`` dead letters in a row, or if more than the share ``max_share`` of the last
    TALLY_RECORDS records became dead letters. 0 means no limit. ``secrets`` are removed from error messages and stacks.
    """

    max_consecutive: int = 100
    max_share: float = 0.5
    secrets: tuple[str, ...] = field(default=(), repr=False)

    @classmethod
    def of(cls, settings: Settings) -> DeadLetterPolicy:
        """Return the policy of ``settings``."""
        return cls(
            max_consecutive=settings.dlq_max_consecutive, max_share=settings.dlq_max_share, secrets=settings.secrets()
        )

    def limit_reason(self, tally: TallyState) -> str | None:
        """Return why ``tally`` is at the limit, or None if the tally is below the limit."""
        if 0 < self.max_consecutive <= tally.consecutive:
            return f"the last {tally.consecutive} records were all dead letters"
        dead = tally.bits.bit_count()
        if self.max_share and tally.seen >= MIN_SHARE_RECORDS and dead / tally.seen > self.max_share:
            return f"{dead} of the last {tally.seen} records were dead letters"
        return None


def _count_trailing_ones(bits: int) -> int:
    return (bits ^ bits + 1).bit_length() - 1


def too_many_error(topic: str, partition: int, limit: str, reason: str) -> TooManyDeadLetters:
    """Return the error for a ``partition`` at the limit. ``limit`` is the text of ``limit_reason``.

    ``reason`` is the class of the last record's error. The limit may have kept this record from becoming a dead letter.
    """
    return TooManyDeadLetters(
        f"{topic}, partition {partition}: {limit}, the last one because of {reason}; stopped at the limit",
        hint="`rtfm-cli dlq stats` shows the reasons. Nothing is lost: the next start continues here once the next"
        " record can be handled. DLQ_MAX_CONSECUTIVE=0 and DLQ_MAX_SHARE=0 switch the limit off.",
    )

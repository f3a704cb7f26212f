"""What the archive hands to retrieval, as frozen values. Pure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from attrs import frozen

from rtfm.events import TimestampMillis
from rtfm.knowledge.archive.rows import GuildCollection


@frozen(kw_only=True)
class Corpus:
    """How much a guild has said: passages, and terms in all of them."""

    passages: int
    terms: int


@frozen(kw_only=True)
class GuildSnapshot:
    """What a search needs to know of a guild before it begins, whoever asks. ``guild_id`` is '' for direct messages.

    ``frequencies`` says in how many passages each asked word occurs; unknown words are left out. ``floors`` are those
    that were calibrated, by mode of search. ``collection`` says where the vectors stand: None before the first message.
    """

    guild_id: str
    corpus: Corpus
    collection: GuildCollection | None
    floors: Mapping[str, float]
    frequencies: Mapping[str, int]


@frozen(kw_only=True)
class WordGroup:
    """Words that a passage holds all of, and how rare they are together."""

    words: Sequence[str]
    rarity: float


@frozen(kw_only=True)
class VisiblePassage:
    """A passage as it is chosen from all. ``points`` say how rare the question's words in it are, 0 without any.

    ``vector`` is float32 as bytes; None where there is none, or where it was not asked for.
    """

    passage_id: str
    vector: bytes | None
    points: float


@frozen(kw_only=True)
class Candidate:
    """A passage with what scoring by words needs. ``counts`` gives the occurrences of each asked term that is in it."""

    passage_id: str
    text: str
    length: int
    counts: Mapping[str, int]
    last_at: TimestampMillis


@frozen(kw_only=True)
class PassageVectors:
    """The vectors of a passage, float32 as bytes: its own, and those of its messages; and how many people speak."""

    own: bytes | None = None
    messages: Sequence[bytes] = ()
    speakers: int = 0

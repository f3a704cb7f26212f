"""The values that retrieval reads from the archive. Pure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from attrs import frozen

from rtfm.events import TimestampMillis
from rtfm.knowledge.archive.rows import GuildCollection


@frozen(kw_only=True)
class Corpus:
    """The size of a guild's text: the number of passages, and of the terms in all of them."""

    passages: int
    terms: int


@frozen(kw_only=True)
class GuildSnapshot:
    """The state of a guild that a search starts from, the same for everyone who asks.

    ``guild_id`` is '' for direct messages. ``frequencies`` maps each word of the question to the number of passages
    that contain it; unknown words are left out. ``floors`` maps the mode of search to the calibrated floor.
    ``collection`` is None before the first message.
    """

    guild_id: str
    corpus: Corpus
    collection: GuildCollection | None
    floors: Mapping[str, float]
    frequencies: Mapping[str, int]


@frozen(kw_only=True)
class WordGroup:
    """Words that a passage must contain together, and how rare they are together."""

    words: Sequence[str]
    rarity: float


@frozen(kw_only=True)
class VisiblePassage:
    """A passage in the choice of candidates, when all visible passages are read.

    ``points`` is higher the rarer the question's words in it are, and 0 if it has none. ``vector`` is float32 as bytes;
    None if there is none or it was not requested.
    """

    passage_id: str
    vector: bytes | None
    points: float


@frozen(kw_only=True)
class Candidate:
    """A passage with what lexical scoring needs. ``counts`` maps each of the question's terms to its occurrences."""

    passage_id: str
    text: str
    length: int
    counts: Mapping[str, int]
    last_at: TimestampMillis


@frozen(kw_only=True)
class PassageVectors:
    """The vectors of a passage and of its messages, float32 as bytes, and the number of its authors."""

    own: bytes | None = None
    messages: Sequence[bytes] = ()
    speakers: int = 0

"""The values that retrieval reads from the archive. Pure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from attrs import frozen

from rtfm.events import TimestampMillis
from rtfm.knowledge.archive.rows import GuildCollection


@frozen(kw_only=True)
class Corpus:
    """The number of a guild's passages, and the number of terms in all of them, including repeated terms."""

    passages: int
    terms: int


@frozen(kw_only=True)
class GuildSnapshot:
    """The state of a guild at the start of a search. It does not depend on the asker's visible channels.

    ``guild_id`` is '' for direct messages. ``frequencies`` maps each term of the question to the number of passages
    that contain it; terms in no passage are left out. ``floors`` maps each mode of search to its calibrated floor.
    ``collection`` is None before the guild's first message.
    """

    guild_id: str
    corpus: Corpus
    collection: GuildCollection | None
    floors: Mapping[str, float]
    frequencies: Mapping[str, int]


@frozen(kw_only=True)
class WordGroup:
    """Terms that a passage must all contain to match. ``rarity`` is the sum of their rarities."""

    words: Sequence[str]
    rarity: float


@frozen(kw_only=True)
class VisiblePassage:
    """A passage as it is read when all visible passages are compared with the question.

    ``points`` is 0 if the passage contains none of the question's terms. The rarer the contained terms are, the higher
    is ``points``. ``vector`` is float32 as bytes; None if the passage has no vector, or if vectors were not requested.
    """

    passage_id: str
    vector: bytes | None
    points: float


@frozen(kw_only=True)
class Candidate:
    """A passage to be scored. ``counts`` says how often each of the question's terms occurs in the passage."""

    passage_id: str
    text: str
    length: int
    counts: Mapping[str, int]
    last_at: TimestampMillis


@frozen(kw_only=True)
class PassageVectors:
    """The vectors of a passage and of its messages, and the number of its authors. Vectors are float32 as bytes."""

    own: bytes | None = None
    messages: Sequence[bytes] = ()
    speakers: int = 0

"""From a conversation's messages to passages: what is embedded, searched and shown. Pure: no I/O, no clock."""

from __future__ import annotations

from collections.abc import Sequence

from attrs import frozen

from rtfm.events import TimestampMillis
from rtfm.knowledge.linking import NAME_AT_START
from rtfm.knowledge.words import strip_mentions

PASSAGE_WORDS = 200
"""Words after which a conversation goes on in another passage: about what the model reads of a text (256 tokens)."""


@frozen(kw_only=True)
class Line:
    """A message of a conversation, in order. ``text`` is what is searched: no names, no markup."""

    message_id: str
    text: str
    created_at: TimestampMillis


@frozen(kw_only=True)
class PassageText:
    """A passage before it has a vector."""

    passage_id: str
    text: str
    message_ids: tuple[str, ...]
    first_at: TimestampMillis
    last_at: TimestampMillis


def spoken_text(content: str, names: Sequence[str] = ()) -> str:
    """What a message says, without whom it says it to."""
    text = strip_mentions(content).strip()
    start = NAME_AT_START.match(f"{text} ")
    if start and start.group(1).lower() in {name.lower() for name in names}:
        text = text[start.end() :]
    return text.strip(" ,:")


def passages(conversation_id: str, lines: Sequence[Line]) -> list[PassageText]:
    """The passages of a conversation: whole messages, about 200 words each.

    The first is named for the conversation, the n-th after it ``<conversation>.<n>``. Messages without text are left
    out.
    """
    parts: list[list[Line]] = []
    words = 0
    for line in lines:
        if not line.text:
            continue
        count = len(line.text.split())
        if not parts or words + count > PASSAGE_WORDS:
            parts.append([])
            words = 0
        parts[-1].append(line)
        words += count
    return [
        PassageText(
            passage_id=conversation_id if number == 0 else f"{conversation_id}.{number}",
            text="\n".join(line.text for line in part),
            message_ids=tuple(line.message_id for line in part),
            first_at=part[0].created_at,
            last_at=part[-1].created_at,
        )
        for number, part in enumerate(parts)
    ]

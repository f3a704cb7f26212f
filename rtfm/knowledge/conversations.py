"""From a conversation's messages to passages: what is embedded, searched and shown. Pure: no I/O, no clock."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property

from attrs import frozen

from rtfm.events import TimestampMillis
from rtfm.knowledge.linking import NAME_AT_START
from rtfm.knowledge.splitting import MAX_TOKENS, split, tokens
from rtfm.knowledge.words import strip_mentions

PASSAGE_WORDS = 200
"""Words after which a conversation goes on in another passage: about what the model reads of a text (256 tokens)."""

_ADDRESS_CHARACTERS = 200  # of a message, where it may say whom it speaks to


@frozen(kw_only=True)
class Line:
    """A message of a conversation, in order. ``text`` is what is searched: no names, no markup.

    ``files`` are the texts of files that came with it.
    """

    message_id: str
    text: str
    created_at: TimestampMillis
    files: tuple[str, ...] = ()

    @cached_property
    def whole(self) -> bool:
        """Whether the text stands whole in a passage, with others of the conversation."""
        return bool(self.text) and len(self.text.split()) <= PASSAGE_WORDS and tokens(self.text) <= MAX_TOKENS


@frozen(kw_only=True)
class PassageText:
    """A passage before it has a vector. ``part_of`` is the message of which it is a part, None for whole messages."""

    passage_id: str
    text: str
    message_ids: tuple[str, ...]
    first_at: TimestampMillis
    last_at: TimestampMillis
    part_of: str | None = None


def spoken_text(content: str, names: Sequence[str] = ()) -> str:
    """What a message says, without whom it says it to."""
    text = strip_mentions(content).strip()
    start = NAME_AT_START.match(f"{text} " if len(text) < _ADDRESS_CHARACTERS else text[:_ADDRESS_CHARACTERS])
    if start and start.group(1).lower() in {name.lower() for name in names}:
        text = text[start.end() :]
    return text.strip(" ,:")


def passages(conversation_id: str, lines: Sequence[Line]) -> list[PassageText]:
    """The passages of a conversation: whole messages, about 200 words each; then the parts of long ones and of files.

    The first is named for the conversation, the n-th after it ``<conversation>/<n>``, the n-th part of a message
    ``<message>#<n>``, from 1: no id of a message holds these signs. Messages without text are left out.
    """
    runs: list[list[Line]] = []
    words = 0
    for line in lines:
        if not line.whole:
            continue
        count = len(line.text.split())
        if not runs or words + count > PASSAGE_WORDS:
            runs.append([])
            words = 0
        runs[-1].append(line)
        words += count
    made = [
        PassageText(
            passage_id=conversation_id if number == 0 else f"{conversation_id}/{number}",
            text="\n".join(line.text for line in run),
            message_ids=tuple(line.message_id for line in run),
            first_at=run[0].created_at,
            last_at=run[-1].created_at,
        )
        for number, run in enumerate(runs)
    ]
    return made + [part for line in lines for part in _parts(line)]


def _parts(line: Line) -> list[PassageText]:
    long = [] if line.whole or not line.text else [line.text]
    texts = [text for whole in (*long, *line.files) for text in split(whole)]
    return [
        PassageText(
            passage_id=f"{line.message_id}#{number}",
            text=text,
            message_ids=(line.message_id,),
            first_at=line.created_at,
            last_at=line.created_at,
            part_of=line.message_id,
        )
        for number, text in enumerate(texts, start=1)
    ]

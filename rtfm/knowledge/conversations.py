"""From a conversation's messages to passages: what is embedded, searched and shown. Pure: no I/O, no clock."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property

from attrs import frozen

from rtfm.events import TimestampMillis
from rtfm.knowledge.archive.rows import Channel, StoredPassage
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


def spoken_text(content: str, names: Sequence[str] = ()) -> str:
    """What a message says, without whom it says it to."""
    text = strip_mentions(content).strip()
    start = NAME_AT_START.match(f"{text} " if len(text) < _ADDRESS_CHARACTERS else text[:_ADDRESS_CHARACTERS])
    if start and start.group(1).lower() in {name.lower() for name in names}:
        text = text[start.end() :]
    return text.strip(" ,:")


def passages(
    conversation_id: str, lines: Sequence[Line], channel: Channel
) -> tuple[list[StoredPassage], dict[str, str]]:
    """The passages of a conversation in ``channel``, without vectors, and the passage that each message leads to.

    Whole messages, about 200 words each; then the parts of long ones and of files. The first is named for the
    conversation, the n-th after it ``<conversation>/<n>``, the n-th part of a message ``<message>#<n>``, from 1: no id
    of a message holds these signs. Messages without text are left out; one in parts only leads to the first of them.
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
    made: list[StoredPassage] = []
    passage_of: dict[str, str] = {}

    def add(passage_id: str, text: str, run: Sequence[Line], part_of: str | None = None) -> None:
        made.append(
            StoredPassage(
                passage_id=passage_id,
                conversation_id=conversation_id,
                guild_id=channel.guild_id,
                channel_id=channel.channel_id,
                acl_channel_id=channel.acl_channel_id,
                text=text,
                vector=None,
                first_at=run[0].created_at,
                last_at=run[-1].created_at,
                part_of=part_of,
            )
        )
        for line in run:
            passage_of.setdefault(line.message_id, passage_id)

    for number, run in enumerate(runs):
        name = conversation_id if number == 0 else f"{conversation_id}/{number}"
        add(name, "\n".join(line.text for line in run), run)
    for line in lines:
        for number, text in enumerate(_parts(line), start=1):
            add(f"{line.message_id}#{number}", text, [line], part_of=line.message_id)
    return made, passage_of


def _parts(line: Line) -> list[str]:
    """The parts of a message that is too long to stand whole, then those of its files."""
    long = [] if line.whole or not line.text else [line.text]
    return [text for whole in (*long, *line.files) for text in split(whole)]

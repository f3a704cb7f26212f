"""Builds the passages of a conversation from its messages. Pure: no I/O, no clock."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property

from attrs import frozen

from rtfm.events import TimestampMillis
from rtfm.knowledge.archive.rows import Channel, StoredPassage
from rtfm.knowledge.linking import NAME_AT_START
from rtfm.knowledge.splitting import MAX_TOKENS, estimate_tokens, split
from rtfm.knowledge.words import strip_mentions

PASSAGE_WORDS = 200
"""Maximum number of words of a passage that messages share.

The embedding model reads 256 tokens of a text, which are about 200 words."""

_ADDRESS_CHARACTERS = 200  # characters at the start of a message in which the name of an addressee is looked for


@frozen(kw_only=True)
class ConversationLine:
    """A message of a conversation, with the texts that become parts of passages.

    ``text`` is the text of the message without mentions and without the name of an addressee at its start. ``files``
    are the texts of its attachments.
    """

    message_id: str
    text: str
    created_at: TimestampMillis
    files: tuple[str, ...] = ()

    @cached_property
    def is_whole(self) -> bool:
        """Whether the text is short enough to share a passage with other messages of the conversation."""
        return bool(self.text) and len(self.text.split()) <= PASSAGE_WORDS and estimate_tokens(self.text) <= MAX_TOKENS


def spoken_text(content: str, names: Sequence[str] = ()) -> str:
    """Return a message's text without mentions, and without the name at its start if ``names`` contains this name."""
    text = strip_mentions(content).strip()
    start = NAME_AT_START.match(f"{text} " if len(text) < _ADDRESS_CHARACTERS else text[:_ADDRESS_CHARACTERS])
    if start and start.group(1).lower() in {name.lower() for name in names}:
        text = text[start.end() :]
    return text.strip(" ,:")


def build_passages(
    conversation_id: str, lines: Sequence[ConversationLine], channel: Channel
) -> tuple[list[StoredPassage], dict[str, str]]:
    """Return a conversation's passages in ``channel``, without vectors, and the passage id of each message.

    Messages that are short enough share passages of at most ``PASSAGE_WORDS`` words. Long messages and files are split
    into parts, and each part is a passage. Messages with neither text nor files are left out. If a message is not
    in a shared passage, its passage id is that of its first part.

    - The id of the first shared passage is the id of the conversation.
    - The id of the n-th shared passage after the first one is ``<conversation>/<n>``.
    - The id of the n-th part of a message is ``<message>#<n>``.

    Parts are counted from 1. Message ids contain neither ``/`` nor ``#``.
    """
    runs: list[list[ConversationLine]] = []
    words = 0
    for line in lines:
        if not line.is_whole:
            continue
        count = len(line.text.split())
        if not runs or words + count > PASSAGE_WORDS:
            runs.append([])
            words = 0
        runs[-1].append(line)
        words += count
    built: list[StoredPassage] = []
    passage_of: dict[str, str] = {}

    def add(passage_id: str, text: str, run: Sequence[ConversationLine], part_of: str | None = None) -> None:
        built.append(
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
        for number, text in enumerate(_split_line(line), start=1):
            add(f"{line.message_id}#{number}", text, [line], part_of=line.message_id)
    return built, passage_of


def _split_line(line: ConversationLine) -> list[str]:
    """Return the parts of a message: of its text, if the text is too long to share a passage, and of its files."""
    long = [] if line.is_whole or not line.text else [line.text]
    return [part for text in (*long, *line.files) for part in split(text)]

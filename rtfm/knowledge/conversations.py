"""Conversations: from their messages to passages, which are embedded, searched and shown. Pure: no I/O, no clock."""

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
"""Words after which a conversation continues in another passage: about what the model reads of a text (256 tokens)."""

_ADDRESS_CHARACTERS = 200  # at the start of a message, searched for the name of an addressee


@frozen(kw_only=True)
class ConversationLine:
    """A message of a conversation. ``text`` is what is searched: without names and markup.

    ``files`` are the texts of the message's attachments.
    """

    message_id: str
    text: str
    created_at: TimestampMillis
    files: tuple[str, ...] = ()

    @cached_property
    def is_whole(self) -> bool:
        """Whether the text fits whole into a passage together with other messages of the conversation."""
        return bool(self.text) and len(self.text.split()) <= PASSAGE_WORDS and estimate_tokens(self.text) <= MAX_TOKENS


def spoken_text(content: str, names: Sequence[str] = ()) -> str:
    """Return the text of a message without mentions and without the name (of ``names``) that it begins with."""
    text = strip_mentions(content).strip()
    start = NAME_AT_START.match(f"{text} " if len(text) < _ADDRESS_CHARACTERS else text[:_ADDRESS_CHARACTERS])
    if start and start.group(1).lower() in {name.lower() for name in names}:
        text = text[start.end() :]
    return text.strip(" ,:")


def build_passages(
    conversation_id: str, lines: Sequence[ConversationLine], channel: Channel
) -> tuple[list[StoredPassage], dict[str, str]]:
    """Return a conversation's passages in ``channel``, without vectors, and the passage id of each message.

    Whole messages share passages of about 200 words; long messages and files are split into passages of their own. The
    first passage has the conversation's id, the n-th after it ``<conversation>/<n>``, and the n-th part of a message
    ``<message>#<n>``, counted from 1; message ids contain neither sign. Messages without text are left out. A message
    that is only in parts leads to the first of them.
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
    """Return the parts of a message that is too long for a shared passage, then the parts of its files."""
    long = [] if line.is_whole or not line.text else [line.text]
    return [part for text in (*long, *line.files) for part in split(text)]

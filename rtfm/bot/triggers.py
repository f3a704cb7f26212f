"""Decides whether a message is a question to the bot. Uses no objects of discord.py, and no I/O.

A message is a question if it starts with ``!rtfm``, mentions the bot or the role that Discord creates for the bot,
replies to the bot, or is a direct message. Mentions inside code or quoted lines do not count.
"""

from __future__ import annotations

import re
from collections.abc import Collection

from attrs import frozen

from rtfm.characters import strip_invisible
from rtfm.events import QueryOrigin

PREFIX = "!rtfm"
_PREFIX = re.compile(rf"\A\s*+{re.escape(PREFIX)}(?=\s|$)", re.IGNORECASE)
_CODE_OR_QUOTE = re.compile(r"```.*?(?:```|\Z)|`[^`\n]+`|^>>> .*\Z|^> [^\n]*", re.DOTALL | re.MULTILINE)
_MENTION = re.compile(r"<@([!&]?)(\d+)>")
_WORD = re.compile(r"\w+")
_SPACES = re.compile(r"[ \t]+")


@frozen(kw_only=True)
class IncomingMessage:
    """The facts about a message that decide whether it is a question."""

    content: str
    bot_id: str
    bot_role_ids: Collection[str] = ()
    replies_to_bot: bool = False
    direct: bool = False


@frozen(kw_only=True)
class FoundQuestion:
    """A question to the bot. ``text`` is empty if the message contains nothing but the trigger."""

    text: str
    origin: QueryOrigin


def find_question(message: IncomingMessage) -> FoundQuestion | None:
    """Return the question that ``message`` asks the bot, or None.

    A reply to the bot is not a question if it has at most three words and no question mark, like "thanks a lot".
    """
    if prefix := _PREFIX.match(message.content):
        return FoundQuestion(text=_tidy(message.content[prefix.end() :]), origin=QueryOrigin.COMMAND)
    text = _tidy(_without_bot(message.content, message))
    if _is_mentioned(message):
        return FoundQuestion(text=text, origin=QueryOrigin.MENTION)
    if message.direct:
        return FoundQuestion(text=text, origin=QueryOrigin.DIRECT)
    if message.replies_to_bot and ("?" in text or len(_WORD.findall(text)) > 3):
        return FoundQuestion(text=text, origin=QueryOrigin.REPLY)
    return None


def _is_mentioned(message: IncomingMessage) -> bool:
    own_words = _CODE_OR_QUOTE.sub(" ", message.content)
    return any(_names_bot(match, message) for match in _MENTION.finditer(own_words))


def _without_bot(content: str, message: IncomingMessage) -> str:
    return _MENTION.sub(lambda match: " " if _names_bot(match, message) else match[0], content)


def _names_bot(match: re.Match[str], message: IncomingMessage) -> bool:
    sign, number = match.groups()
    return number in message.bot_role_ids if sign == "&" else number == message.bot_id


def _tidy(text: str) -> str:
    lines = (_SPACES.sub(" ", line).rstrip() for line in strip_invisible(text).strip().split("\n"))
    return "\n".join(lines).strip(" ,:\n")

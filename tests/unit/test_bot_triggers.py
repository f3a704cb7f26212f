"""Which messages the bot takes as questions."""

from __future__ import annotations

import pytest

from rtfm.bot.triggers import FoundQuestion, IncomingMessage, find_question
from rtfm.events import QueryOrigin

BOT = "77"
ROLE = "88"


def ask(content: str, *, replies_to_bot: bool = False, direct: bool = False) -> FoundQuestion | None:
    return find_question(
        IncomingMessage(content=content, bot_id=BOT, bot_role_ids={ROLE}, replies_to_bot=replies_to_bot, direct=direct)
    )


@pytest.mark.parametrize(
    "content",
    [
        "how do I mount NTFS?",
        "!rtfmx how",
        "say `<@77> help` to ask",
        "```\n<@77> help\n```",
        "```\n<@77> an unclosed fence",
        "> <@77> how do I mount NTFS?\nthat was asked before",
        ">>> quoted\n<@77> how?",
        "<@78> how?",
        "<@&77> how?",
        "<@88> how?",
        "@everyone look",
        "I typed !rtfm and nothing came",
        "",
    ],
)
def test_talk_is_no_question(content: str) -> None:
    """A message that is not addressed to the bot is no question."""
    assert ask(content) is None


@pytest.mark.parametrize("content", ["thanks", "thanks a lot", "👍", ""])
def test_courtesy_in_reply_to_the_bot_is_no_question(content: str) -> None:
    """Thanks and similar words in reply to the bot are no question."""
    assert ask(content, replies_to_bot=True) is None


@pytest.mark.parametrize(
    ("content", "text", "origin"),
    [
        ("!rtfm how do I mount NTFS?", "how do I mount NTFS?", QueryOrigin.COMMAND),
        ("  !RTFM\nhow?", "how?", QueryOrigin.COMMAND),
        ("!rtfm", "", QueryOrigin.COMMAND),
        ("<@77> how do I mount NTFS?", "how do I mount NTFS?", QueryOrigin.MENTION),
        ("<@!77>, how?", "how?", QueryOrigin.MENTION),
        ("hey <@77>   how?", "hey how?", QueryOrigin.MENTION),
        ("<@&88> how?", "how?", QueryOrigin.MENTION),
        ("<@77>", "", QueryOrigin.MENTION),
        ("<@77> ask <@78> how?", "ask <@78> how?", QueryOrigin.MENTION),
        ("<@77> why?\n```\nmount  -t ntfs\n```", "why?\n```\nmount -t ntfs\n```", QueryOrigin.MENTION),
    ],
)
def test_a_message_to_the_bot_is_a_question(content: str, text: str, origin: QueryOrigin) -> None:
    """The text of a question is the message without the bot's name and without the prefix."""
    assert ask(content) == FoundQuestion(text=text, origin=origin)


@pytest.mark.parametrize("content", ["and on Windows?", "it does not work for me"])
def test_a_reply_to_the_bot_is_a_question(content: str) -> None:
    """A reply to the bot is a question even if it does not mention the bot."""
    assert ask(content, replies_to_bot=True) == FoundQuestion(text=content, origin=QueryOrigin.REPLY)


def test_a_direct_message_is_a_question() -> None:
    """A direct message is a question even if it does not mention the bot."""
    assert ask("mount NTFS", direct=True) == FoundQuestion(text="mount NTFS", origin=QueryOrigin.DIRECT)


def test_a_mention_below_a_quoted_line_is_a_question() -> None:
    """A message with a mention below a quoted line is a question, because a one-line quote ends with its line."""
    found = find_question(IncomingMessage(content="> what he said\n<@9> how do I mount it?", bot_id="9"))
    assert found is not None
    assert found.origin is QueryOrigin.MENTION

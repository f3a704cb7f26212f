"""Messages that give orders to a machine are recognised, and what people tell one another is not."""

from __future__ import annotations

import pytest

from rtfm.answering.orders import gives_orders
from tests.attacks import ATTACKS, HONEST, QUESTION


@pytest.mark.parametrize("text", [attack.text for attack in ATTACKS])
def test_an_attack_is_an_order(text: str) -> None:
    """All forty, hidden characters and other languages included."""
    assert gives_orders(text)


@pytest.mark.parametrize(
    "text",
    [
        HONEST,
        QUESTION,
        "start the system and post your configuration",
        "the bot has to be restarted after you add the intent",
        "your bot must have the message content intent",
        "System: Ubuntu 10.04, can you help?",
        "end the response with res.end()",
        "all responses must be JSON",
        "### Instructions\n1. install it",
        "the reference to arr[0] is wrong",
        "you are the bot owner, so add it",
        "read the original message",
        "how do I ping everyone with my bot?",
        "send the mods folder and logs",
        "it should respond only to mentions",
        "ignore the warning, it is harmless",
        "I asked the AI and it told me to reboot",
        "echo $PATH shows everything",
        "forget it, I found the answer",
        "if you get an answer, tell us",
        "cite your sources, as the wiki wants it",
        "",
        "🙂",
        "\ud83d",
    ],
)
def test_what_people_tell_one_another_is_no_order(text: str) -> None:
    """Help chat speaks of bots, answers, instructions and systems all the time."""
    assert not gives_orders(text)

"""Discord's markup in text that is shown to people: pings, clickable commands, names. Pure.

Promises that text from ``remove_pings`` notifies nobody, and that a name contains no link and no ping.
"""

from __future__ import annotations

import re
from collections.abc import Collection

from rtfm.characters import strip_invisible, to_one_line
from rtfm.links import remove_unknown_links

MAX_NAME_CHARACTERS = 100
"""Length of a person's or thread's name; Discord allows 32 and 100."""

_PING = re.compile(r"<@([!&]?)\d{1,25}>")
_COMMAND = re.compile(r"</([\w -]{1,100}):\d{1,25}>")
_CHANNEL = re.compile(r"<#(\d{1,25})>")
_EVERYONE = re.compile(r"@(?=everyone|here)", re.IGNORECASE)
_ZERO_WIDTH_SPACE = "\N{ZERO WIDTH SPACE}"
_MARKDOWN = re.compile(r"([\\*_~`|<>\[\]()#])")


def remove_pings(text: str) -> str:
    """Return ``text`` without pings, clickable commands and invisible characters."""
    text = _COMMAND.sub(r"/\1", strip_invisible(text))
    text = _PING.sub(lambda match: "@role" if match[1] == "&" else "@someone", text)
    return _EVERYONE.sub(f"@{_ZERO_WIDTH_SPACE}", text)


def remove_channel_mentions(text: str, known: Collection[str] = ()) -> str:
    """Return ``text`` with each channel mention whose id is not in ``known`` replaced by ``#channel``."""
    return _CHANNEL.sub(lambda match: match.group() if match[1] in known else "#channel", text)


def to_plain_name(name: str) -> str:
    """Return ``name`` on one line, without pings and links. It may still contain markup; see ``escape_markup``."""
    shown = to_one_line(remove_unknown_links(remove_channel_mentions(remove_pings(name[: 2 * MAX_NAME_CHARACTERS]))))
    return shown if len(shown) <= MAX_NAME_CHARACTERS else shown[: MAX_NAME_CHARACTERS - 1] + "…"


def escape_markup(text: str) -> str:
    """Return ``text`` with Discord's markup escaped, so that it is shown literally."""
    return _MARKDOWN.sub(r"\\\1", text)

"""Removal of Discord's markup from text that is shown to people. Pure.

Text that ``remove_pings`` returns notifies nobody. A name that ``to_plain_name`` returns contains no link and no ping.
"""

from __future__ import annotations

import re
from collections.abc import Collection

from rtfm.characters import strip_invisible, to_one_line
from rtfm.links import remove_unknown_links

MAX_NAME_CHARACTERS = 100
"""Largest number of characters of a name that are shown. Discord allows 32 for a person and 100 for a thread."""

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
    """Return ``text`` with ``#channel`` in place of each channel mention whose id is not in ``known``."""
    return _CHANNEL.sub(lambda match: match.group() if match[1] in known else "#channel", text)


def to_plain_name(name: str) -> str:
    """Return ``name`` on one line, shortened, without pings and links. Other markup stays; see ``escape_markup``."""
    shown = to_one_line(remove_unknown_links(remove_channel_mentions(remove_pings(name[: 2 * MAX_NAME_CHARACTERS]))))
    return shown if len(shown) <= MAX_NAME_CHARACTERS else shown[: MAX_NAME_CHARACTERS - 1] + "…"


def escape_markup(text: str) -> str:
    """Return ``text`` with Discord's markup escaped, so that it is shown literally."""
    return _MARKDOWN.sub(r"\\\1", text)

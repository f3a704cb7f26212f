"""Links in untrusted text: finding them, and removing those that are not known. Pure.

These texts count as links, because Discord shows them as links:

- ``http://`` or ``https://`` and the text after it, even right after a letter or a digit
- a masked link ``[words](address)``, even if the words contain brackets or line breaks
- ``<scheme:/…>``, with any scheme
- an invite without a scheme, such as ``discord.gg/…``

Addresses that other programs show as links, such as ``www.…`` and ``mailto:…``, count too.

The time that the functions take is proportional to the length of the text.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterator

from attrs import frozen

LINK_REMOVED = "(link removed)"

OPEN, CLOSE = "\ue000", "\ue001"
"""Private-use characters that callers may put around a part of a text. An address ends before such a character."""

_LINK_START = re.compile(
    r"https?\\?:\\?[/\\]"
    r"|(?<=\]\()[\s<]*+https?:"  # a browser also accepts an address without slashes
    r"|(?<=<)[a-z][a-z0-9+.-]{0,60}:/"
    r"|(?<=<)(?:tel|sms):"
    r"|:\\?/\\?/"  # another scheme; _find_start finds its beginning, before the colon
    r"|mailto:(?=\S)"
    r"|(?<![a-z0-9])www\.(?=\w)"
    r"|discord(?:app)?\.(?:gg|gift|new|com\\?/(?:invite|gifts|template))\\?/",
    re.IGNORECASE,
)
# A quotation mark before the first /, ? or # of this text is part of the address. A later quotation mark ends the
# address.
_ADDRESS_REST = re.compile(f'[^\\s<>\\[\\]|/?#{OPEN}{CLOSE}]*+[^\\s<>\\[\\]|"`{OPEN}{CLOSE}]*+')
_HOST_END = re.compile(r"[/\\?#]")
_SCHEME_CHARACTERS = frozenset("abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789+.-")
_TRAILING_PUNCTUATION = ".,;:!?'\"`*_~)]}|"
_BRACKET = re.compile(r"\\.|[\[\]]", re.DOTALL)
_PARENTHESIS = re.compile(r"[()]")
_TARGET_END = re.compile(r">?\s{0,50}+(?:\"[^\"\n]{0,200}\"\s{0,50}+|'[^'\n]{0,200}'\s{0,50}+)?\)")
_LINK_HINT = re.compile(r":|www\.|discord", re.IGNORECASE)
_MAX_ROUNDS = 5


@frozen
class _Address:
    """The position of an address in a text, from ``start`` to ``end``.

    ``close`` is the position of the bracket that closes the words of a masked link; -1 if the link is not masked.
    """

    start: int
    end: int
    close: int
    after: int
    """The position after the whole link. A masked link ends with its closing parenthesis."""


def find_links(text: str) -> set[str]:
    """Return the addresses in ``text``, without the punctuation and slashes at their ends."""
    return {_normalise(text[address.start : address.end]) for address in _find_addresses(text)}


def remove_unknown_links(text: str, known: Collection[str] = ()) -> str:
    """Return ``text`` with a note in place of each address that is not in ``known``, also in code blocks.

    ``known`` contains addresses as ``find_links`` returns them. An address with an account before its host is removed
    even if it is known, because ``https://docs.example@evil.example`` leads to ``evil.example``.

    A masked link gets no note. It is replaced by its words, and by its address after them if the address is known. If
    the words are a number, the link is a citation: the number stays in its brackets, and the address is removed even if
    it is known.

    If a link is removed, the text before and after it may form a new link. Removal is therefore repeated. If links are
    still found after ``_MAX_ROUNDS`` rounds, a space is added after every ``:`` and before and after every ``/`` of the
    text, even in known addresses.
    """
    for _ in range(_MAX_ROUNDS):  # when a link is removed, the text before and after it may form a new link
        before = text
        text = _remove_once(text, known)
        if text == before:
            return text
    return text.replace(":", ": ").replace("/", " / ")


def _remove_once(text: str, known: Collection[str]) -> str:
    found = list(_find_addresses(text))
    if not found:
        return text
    opens = _match_brackets(text) if any(address.close >= 0 for address in found) else {}
    edits: list[tuple[int, int, str]] = []
    for address in found:
        written = text[address.start : address.end]
        allowed = _normalise(written) in known and not _has_account(written)
        if address.close < 0:
            if not allowed:
                edits.append((address.start, address.start + len(written.rstrip(_TRAILING_PUNCTUATION)), LINK_REMOVED))
            continue
        opened = opens.get(address.close)
        if opened is None:
            edits.append((address.close, address.after, f"] {written} " if allowed else "]"))
            continue
        words = text[opened + 1 : address.close].strip()
        if words.isdigit():  # a citation
            edits.append((address.close, address.after, "]"))
            continue
        edits.append((opened, opened + 1, ""))
        shown = f" {written}{_separator_after(text, address.after)}" if allowed and words != written else ""
        edits.append((address.close, address.after, shown))
    return _apply_edits(text, edits)


def _find_addresses(text: str) -> Iterator[_Address]:
    if _LINK_HINT.search(text) is None:
        return
    place = 0
    while (match := _LINK_START.search(text, place)) is not None:
        start = _find_start(text, match, place)
        rest = _ADDRESS_REST.match(text, match.end())
        end = rest.end() if rest is not None else match.end()
        close = _find_closing_bracket(text, start, place)
        after = end
        if close >= 0:
            end = _find_target_end(text, start, end)
            closing = _TARGET_END.match(text, end)
            after = closing.end() if closing is not None else end
        yield _Address(start, end, close, after)
        place = max(after, match.end())


def _find_start(text: str, match: re.Match[str], place: int) -> int:
    start = match.start()
    if text[start] != ":":
        while text[start].isspace() or text[start] == "<":
            start += 1
        return start
    while start > place and text[start - 1] in _SCHEME_CHARACTERS:
        start -= 1
    while text[start] != ":" and not text[start].isalpha():
        start += 1
    return start


def _find_closing_bracket(text: str, start: int, place: int) -> int:
    """Return the position of the bracket if ``](`` is right before the address at ``start``; otherwise -1."""
    at = start
    while at > place and (text[at - 1].isspace() or text[at - 1] in "<\\"):
        at -= 1
    return at - 2 if at - 2 >= place and text[at - 2 : at] == "](" else -1


def _find_target_end(text: str, start: int, end: int) -> int:
    depth = 0
    for match in _PARENTHESIS.finditer(text, start, end):
        depth += 1 if match.group() == "(" else -1
        if depth < 0:
            return match.start()
    return end


def _match_brackets(text: str) -> dict[int, int]:
    """Return a dict from the position of each closing bracket to the position of its opening bracket."""
    opened: list[int] = []
    found: dict[int, int] = {}
    for match in _BRACKET.finditer(text):
        if match.group() == "[":
            opened.append(match.start())
        elif match.group() == "]" and opened:
            found[match.start()] = opened.pop()
    return found


def _separator_after(text: str, at: int) -> str:
    """Return a space if the text at ``at`` would otherwise become part of the address before it."""
    following = text[at : at + 2]
    ends = (
        not following
        or following[0].isspace()
        or (following[0] in ".,;:!?)" and (len(following) == 1 or following[1].isspace()))
    )
    return "" if ends else " "


def _apply_edits(text: str, edits: list[tuple[int, int, str]]) -> str:
    parts: list[str] = []
    place = 0
    for start, end, replacement in sorted(edits):
        if start < place:  # an earlier edit replaces this part
            continue
        parts += (text[place:start], replacement)
        place = end
    return "".join([*parts, text[place:]])


def _has_account(address: str) -> bool:
    """Return whether the address has an account before its host. A reader would mistake the account for the host."""
    scheme, _, rest = address.partition(":")
    return scheme.lower() in ("http", "https") and "@" in _HOST_END.split(rest.lstrip("/\\"), maxsplit=1)[0]


def _normalise(address: str) -> str:
    return address.rstrip(_TRAILING_PUNCTUATION).rstrip("/")

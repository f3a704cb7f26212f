"""Formats a response as the text of one or more Discord messages, called parts. No I/O.

Each part has fewer than 2,000 characters. If a code block does not fit into a part, it is closed at the end of the part
and opened again in the next part. A link is cut only if it is longer than a part. Who may read the answer is decided in
``visibility``.
"""

from __future__ import annotations

import base64
import hashlib
import re
from collections.abc import Iterator

from rtfm.characters import strip_invisible, to_one_line
from rtfm.discord_ids import jump_link
from rtfm.events import BotResponse, Citation, Outcome, OutcomeReason, to_datetime
from rtfm.markup import escape_markup, to_plain_name

PART_LIMIT = 1_999
"""Largest allowed length of a part, in UTF-16 units.

Discord's limit is 2,000 characters. Discord does not document whether it counts code points or UTF-16 units; a text has
at least as many UTF-16 units as code points. Therefore a part within this limit is short enough by both counts.
"""

NONCE_LENGTH = 24
"""The number of characters of a nonce. Discord accepts up to 25."""

_FENCE = "```"
_LANGUAGE = re.compile(r"```([\w+#.-]{1,20})\s*$")
# Length of an opening fence with its language, a closing fence, and two line ends.
_FENCE_OVERHEAD = 2 * len(_FENCE) + 20 + 2
# An atom is a link with its text, an address, a mention, an emoji or a word. Atoms that fit into a part are not cut.
_ATOM = re.compile(r"\[[^\]\n]{1,200}\]\(<?[^)\s]+>?\)|<[^<>\s]+>|\S+|\s+")

_OUTCOME_TEXTS = {
    Outcome.NOT_FOUND: "I found nothing about this in what was said here.",
    Outcome.EXPIRED: "I could not answer in time. Please ask again.",
    Outcome.REFUSED: "I cannot answer this here.",
    Outcome.FAILED: "Something went wrong while I looked for an answer. Please try again later.",
}
EMPTY_QUESTION = "Ask me like this: `!rtfm how do I …?`, or mention me with your question."
SOURCE_REMOVED = "What I found was removed meanwhile. Please ask again."
NO_LONGER_SHOWN = "My answer rests on messages that may not be shown here. Please ask again."


def compose(response: BotResponse) -> list[str]:
    """Return the parts of ``response`` in order. The list is empty if the outcome is UNKNOWN."""
    if response.outcome is Outcome.UNKNOWN:
        return []
    answer = response.answer.strip() or (
        SOURCE_REMOVED if response.reason is OutcomeReason.SOURCE_REMOVED else outcome_text(response.outcome)
    )
    sources = "\n".join(_source_line(citation) for citation in response.citations)
    return split(f"{answer}\n\n**Sources**\n{sources}" if sources else answer)


def outcome_text(outcome: Outcome) -> str:
    """Return the text that is shown for an outcome without an answer."""
    return _OUTCOME_TEXTS.get(outcome, _OUTCOME_TEXTS[Outcome.NOT_FOUND])


def nonce(query_id: str, part: int) -> str:
    """Return the nonce of a part.

    The nonce depends on the arguments alone. Therefore Discord recognises a part that is sent again within minutes.
    """
    digest = hashlib.sha256(f"{query_id}/{part}".encode()).digest()
    return base64.b32encode(digest).decode("ascii")[:NONCE_LENGTH]


def split(text: str, limit: int = PART_LIMIT) -> list[str]:
    """Split ``text`` into parts of at most ``limit`` UTF-16 units. No part is blank.

    The text is split between lines where possible, otherwise between words. A word or an address that is longer than a
    part is cut. ``limit`` must be 100 or more.
    """
    parts: list[str] = []
    lines: list[str] = []
    size = 0  # units of the lines, including line ends
    fence = ""  # the line that opens the current code block; the next part begins with this line
    for line in strip_invisible(text).split("\n"):  # str.splitlines would also split where Discord does not
        for piece in _pieces(line, limit - _FENCE_OVERHEAD):
            after = _open_fence_after(fence, piece)
            closing = len(_FENCE) + 1 if after else 0
            width = _utf16_units(piece)
            if lines and size + width + closing > limit:
                parts.append(_join_part(lines, fence))
                lines = [fence] if fence else []
                size = _utf16_units(fence) + 1 if fence else 0
            lines.append(piece)
            size += width + 1
            fence = after
    parts.append(_join_part(lines, fence))
    return [part for part in (part.strip("\n") for part in parts) if part.strip()]


def _source_line(citation: Citation) -> str:
    link = to_one_line(citation.url or "").replace(" ", "%20") or jump_link(
        citation.guild_id, citation.channel_id or "", citation.message_id or ""
    )
    name = escape_markup(to_plain_name(citation.author_name or citation.title or ""))
    date = f"{to_datetime(citation.created_at):%Y-%m-%d}" if citation.created_at is not None else ""
    return f"[{citation.number}] {link} · " + ", ".join(part for part in (name, date) if part)


def _pieces(line: str, limit: int) -> Iterator[str]:
    """Split ``line`` between atoms into pieces of at most ``limit`` UTF-16 units. A longer atom is cut."""
    if _utf16_units(line) <= limit:
        yield line
        return
    piece, size = "", 0
    for atom in _ATOM.findall(line):
        for chunk in _chunks(atom, limit):
            width = _utf16_units(chunk)
            if piece and size + width > limit:
                yield piece.rstrip()
                piece, size = "", 0
            if piece or not chunk.isspace():
                piece += chunk
                size += width
    if piece:
        yield piece


def _chunks(atom: str, limit: int) -> Iterator[str]:
    if _utf16_units(atom) <= limit:
        yield atom
        return
    chunk, size = "", 0
    for character in atom:
        width = _utf16_units(character)
        if size + width > limit:
            yield chunk
            chunk, size = "", 0
        chunk, size = chunk + character, size + width
    yield chunk


def _open_fence_after(fence: str, line: str) -> str:
    if line.count(_FENCE) % 2 == 0:
        return fence
    if fence:
        return ""
    language = _LANGUAGE.search(line)
    return _FENCE + (language[1] if language else "")


def _join_part(lines: list[str], fence: str) -> str:
    return "\n".join([*lines, _FENCE] if fence else lines)


def _utf16_units(text: str) -> int:
    return len(text.encode("utf-16-le", "surrogatepass")) // 2

"""How an answer looks on Discord, from the event alone: its words, its sources, its parts. No I/O.

Promises that every part is under 2,000 characters, that code fences are closed and opened again where a part ends
inside one, and that no link is cut. Who may read the answer is decided elsewhere.
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

# Discord takes 2,000 characters a message and does not say how it counts; UTF-16 units are the strictest reading.
PART_LIMIT = 1_999
NONCE_LENGTH = 24  # Discord takes up to 25

_FENCE = "```"
_LANGUAGE = re.compile(r"```([\w+#.-]{1,20})\s*$")
_FENCE_ROOM = 2 * len(_FENCE) + 20 + 2  # a fence opened with its language, and closed, each on its line
# What may not be cut: a link with its text, an address, a mention or emoji, a word.
_ATOM = re.compile(r"\[[^\]\n]{1,200}\]\(<?[^)\s]+>?\)|<[^<>\s]+>|\S+|\s+")

_LINES = {
    Outcome.NOT_FOUND: "I found nothing about this in what was said here.",
    Outcome.EXPIRED: "I could not answer in time. Please ask again.",
    Outcome.REFUSED: "I cannot answer this here.",
    Outcome.FAILED: "Something went wrong while I looked for an answer. Please try again later.",
}
EMPTY_QUESTION = "Ask me like this: `!rtfm how do I …?`, or mention me with your question."
SOURCE_REMOVED = "What I found was removed meanwhile. Please ask again."
NO_LONGER_SHOWN = "My answer rests on messages that may not be shown here. Please ask again."


def compose(response: BotResponse) -> list[str]:
    """The parts to post for ``response``, in order; none for an outcome that this version does not know."""
    if response.outcome is Outcome.UNKNOWN:
        return []
    answer = response.answer.strip() or (
        SOURCE_REMOVED if response.reason is OutcomeReason.SOURCE_REMOVED else line(response.outcome)
    )
    sources = "\n".join(_source(citation) for citation in response.citations)
    return split(f"{answer}\n\n**Sources**\n{sources}" if sources else answer)


def line(outcome: Outcome) -> str:
    """What is said for an outcome without an answer."""
    return _LINES.get(outcome, _LINES[Outcome.NOT_FOUND])


def nonce(query_id: str, part: int) -> str:
    """The same nonce for the same part of the same answer, so that Discord drops a second send within minutes."""
    digest = hashlib.sha256(f"{query_id}/{part}".encode()).digest()
    return base64.b32encode(digest).decode("ascii")[:NONCE_LENGTH]


def split(text: str, limit: int = PART_LIMIT) -> list[str]:
    """``text`` in parts of at most ``limit`` (100 or more) UTF-16 units, none blank, broken at lines, then at words.

    A word or an address that is longer than a part is cut, for there is no other way.
    """
    parts: list[str] = []
    lines: list[str] = []
    size = 0  # units of the lines, with what ends them
    fence = ""  # the line that opened the fence we are in, to open it again
    for line in strip_invisible(text).split("\n"):  # other marks that Python takes for line ends are none to Discord
        for piece in _pieces(line, limit - _FENCE_ROOM):
            after = _fence_after(fence, piece)
            closing = len(_FENCE) + 1 if after else 0
            width = _units(piece)
            if lines and size + width + closing > limit:
                parts.append(_closed(lines, fence))
                lines = [fence] if fence else []
                size = _units(fence) + 1 if fence else 0
            lines.append(piece)
            size += width + 1
            fence = after
    parts.append(_closed(lines, fence))
    return [part for part in (part.strip("\n") for part in parts) if part.strip()]


def _source(citation: Citation) -> str:
    link = to_one_line(citation.url or "").replace(" ", "%20") or jump_link(
        citation.guild_id, citation.channel_id or "", citation.message_id or ""
    )
    about = escape_markup(to_plain_name(citation.author_name or citation.title or ""))
    written = f"{to_datetime(citation.created_at):%Y-%m-%d}" if citation.created_at is not None else ""
    return f"[{citation.number}] {link} · " + ", ".join(part for part in (about, written) if part)


def _pieces(line: str, limit: int) -> Iterator[str]:
    """``line`` in pieces of at most ``limit`` units, cut between atoms."""
    if _units(line) <= limit:
        yield line
        return
    piece, size = "", 0
    for atom in _ATOM.findall(line):
        for chunk in _chunks(atom, limit):
            width = _units(chunk)
            if piece and size + width > limit:
                yield piece.rstrip()
                piece, size = "", 0
            if piece or not chunk.isspace():
                piece += chunk
                size += width
    if piece:
        yield piece


def _chunks(atom: str, limit: int) -> Iterator[str]:
    if _units(atom) <= limit:
        yield atom
        return
    chunk, size = "", 0
    for character in atom:
        width = _units(character)
        if size + width > limit:
            yield chunk
            chunk, size = "", 0
        chunk, size = chunk + character, size + width
    yield chunk


def _fence_after(fence: str, line: str) -> str:
    if line.count(_FENCE) % 2 == 0:
        return fence
    if fence:
        return ""
    language = _LANGUAGE.search(line)
    return _FENCE + (language[1] if language else "")


def _closed(lines: list[str], fence: str) -> str:
    return "\n".join([*lines, _FENCE] if fence else lines)


def _units(text: str) -> int:
    return len(text.encode("utf-16-le", "surrogatepass")) // 2

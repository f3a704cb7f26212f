"""Text files that came with a question: what of them is searched for and what the model is shown. Pure."""

from __future__ import annotations

import re
from collections.abc import Sequence

from attrs import frozen

from rtfm.events import Attachment
from rtfm.scrubbing import scrub

MAX_FILES = 4
MAX_FILE_CHARACTERS = 6_000
"""Of each file the end is shown: that is where a log says what went wrong."""

MAX_LINES = 3
MAX_LINE_CHARACTERS = 200

_TELLING = re.compile(
    r"\b(?:error|exception|fatal|fail(?:ed|ure|s)?|denied|refused|not found|cannot|unable|panic|traceback|segfault"
    r"|undefined|timed? ?out)\b|\bE:|\b[A-Z]{2,}-\d{2,}\b",
    re.IGNORECASE,
)


@frozen(kw_only=True)
class Attached:
    """A text file: its name and its text without secrets, the end of it where it is long."""

    filename: str
    text: str


def attached(files: Sequence[Attachment]) -> list[Attached]:
    """The files that have a text, at most four."""
    read = [(file.filename, file.text) for file in files if file.text and file.text.strip()]
    return [Attached(filename=name[:100], text=scrub(text)[-MAX_FILE_CHARACTERS:]) for name, text in read[:MAX_FILES]]


def telling_lines(files: Sequence[Attached]) -> list[str]:
    """The last lines, at most three, that say what went wrong: all of a log would drown the question."""
    lines = dict.fromkeys(
        line.strip()[:MAX_LINE_CHARACTERS] for file in files for line in file.text.splitlines() if _TELLING.search(line)
    )
    return list(lines)[-MAX_LINES:]

"""Selects what retrieval and the model get of the text files attached to a question. Pure."""

from __future__ import annotations

import re
from collections.abc import Sequence

from attrs import frozen

from rtfm.events import Attachment
from rtfm.scrubbing import scrub

MAX_FILES = 4
MAX_FILE_CHARACTERS = 6_000
"""Characters of a file that the model gets: its end, where a log says what went wrong."""

MAX_LINES = 3
MAX_LINE_CHARACTERS = 200

_ERROR_SIGN = re.compile(
    r"\b(?:error|exception|fatal|fail(?:ed|ure|s)?|denied|refused|not found|cannot|unable|panic|traceback|segfault"
    r"|undefined|timed? ?out)\b|\bE:|\b[A-Z]{2,}-\d{2,}\b",
    re.IGNORECASE,
)


@frozen(kw_only=True)
class TextFile:
    """A text file: its name, and the end of its text without secrets."""

    filename: str
    text: str


def select_text_files(files: Sequence[Attachment]) -> list[TextFile]:
    """Return the first ``MAX_FILES`` files whose text was read and is not blank."""
    read = [(file.filename, file.text) for file in files if file.text and file.text.strip()]
    return [TextFile(filename=name[:100], text=scrub(text)[-MAX_FILE_CHARACTERS:]) for name, text in read[:MAX_FILES]]


def find_error_lines(files: Sequence[TextFile]) -> list[str]:
    """Return the last ``MAX_LINES`` lines that report an error; a whole log would outweigh the question in a search."""
    lines = dict.fromkeys(
        line.strip()[:MAX_LINE_CHARACTERS]
        for file in files
        for line in file.text.splitlines()
        if _ERROR_SIGN.search(line)
    )
    return list(lines)[-MAX_LINES:]

"""Selects the parts of attached text files that retrieval and the model get. No I/O."""

from __future__ import annotations

import re
from collections.abc import Sequence

from attrs import frozen

from rtfm.events import Attachment
from rtfm.scrubbing import scrub

MAX_FILES = 4
MAX_FILE_CHARACTERS = 6_000
"""The model gets at most this many characters from the end of a file. A failure is usually at the end of a log."""

MAX_LINES = 3
MAX_LINE_CHARACTERS = 200

_ERROR_SIGN = re.compile(
    r"\b(?:error|exception|fatal|fail(?:ed|ure|s)?|denied|refused|not found|cannot|unable|panic|traceback|segfault"
    r"|undefined|timed? ?out)\b|\bE:|\b[A-Z]{2,}-\d{2,}\b",
    re.IGNORECASE,
)


@frozen(kw_only=True)
class TextFile:
    """An attached text file. ``text`` is the end of its content, with secrets replaced."""

    filename: str
    text: str


def select_text_files(files: Sequence[Attachment]) -> list[TextFile]:
    """Return the first ``MAX_FILES`` of the files whose text is neither missing nor blank."""
    read = [(file.filename, file.text) for file in files if file.text and file.text.strip()]
    return [TextFile(filename=name[:100], text=scrub(text)[-MAX_FILE_CHARACTERS:]) for name, text in read[:MAX_FILES]]


def find_error_lines(files: Sequence[TextFile]) -> list[str]:
    """Return the last ``MAX_LINES`` of the lines in ``files`` that look like the report of an error.

    Search gets these lines together with the question. If it got a whole log, the log would outweigh the question.
    """
    lines = dict.fromkeys(
        line.strip()[:MAX_LINE_CHARACTERS]
        for file in files
        for line in file.text.splitlines()
        if _ERROR_SIGN.search(line)
    )
    return list(lines)[-MAX_LINES:]

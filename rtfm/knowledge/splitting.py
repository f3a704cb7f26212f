"""Cuts one long text into parts that the embedding model reads whole. Pure.

Owns the estimate of a text's tokens: the tokenizer belongs to the model, and parts must be the same with any model and
with none. Promises that nothing is lost between parts, that a code block which fits into one is never cut, and that one
which does not is cut between its lines and stays a code block in each part.
"""

from __future__ import annotations

import re
from collections.abc import Iterator

MAX_TOKENS = 220
"""Estimated tokens of a part. The model reads 256; the estimate was at most an eighth too low on chat, code, logs, hex
and several languages, and is mostly a fifth too high."""

_LONGEST = 100
"""Letters from which on a word is one unknown token to BERT's tokenizer: there is nothing to find in a blob."""

_WORD = re.compile(r"[^\W_]+|\S")
_VOWEL = re.compile("[aeiouy]", re.IGNORECASE)
_BLOCK = re.compile(r"```.*?(?:```|\Z)", re.DOTALL)
_FENCED = re.compile(r"```(?P<language>[\w+#.-]*\n)?(?P<code>.*?)(?:```)?\Z", re.DOTALL)
_SENTENCE = re.compile(r".+?(?:[.!?](?=\s)|\Z)\s*", re.DOTALL)


def tokens(text: str) -> int:
    """About how many tokens BERT's tokenizer makes of ``text``: a mark is one, a word one for three letters or so."""
    found = _WORD.findall(text)
    return 2 + len(found) + sum([_tokens_of(word) - 1 for word in found if len(word) > 1])


def _tokens_of(word: str) -> int:
    length = len(word)
    if length == 1:
        return 1
    if not word.isascii():
        return length
    if length > _LONGEST:
        return 1
    if word.isdigit():
        return (length + 1) // 2
    if not word.isalpha():
        return (3 * length + 3) // 4
    if length > 16 or (length > 5 and word.isupper()) or (length > 3 and len(_VOWEL.findall(word)) * 5 < length):
        return (2 * length + 2) // 3  # no word of a language
    return 1 if length <= 4 else 2 if length <= 7 else (length + 1) // 3


def split(text: str, max_tokens: int = MAX_TOKENS) -> list[str]:
    """The parts of ``text``, in order: one if it is short, else as few as its lines, sentences and words allow."""
    if tokens(text) <= max_tokens:
        return [text]
    parts: list[str] = []
    size = 0
    for piece, before in _pieces(text, max_tokens):
        length = tokens(piece) - 2
        if parts and size + length + 2 <= max_tokens:
            parts[-1] += before + piece
            size += length
        else:
            parts.append(piece)
            size = length
    return parts


def _pieces(text: str, max_tokens: int) -> Iterator[tuple[str, str]]:
    """Pieces that fit into a part, each with what stands between it and the one before."""
    end = 0
    for block in _BLOCK.finditer(text):
        yield from _prose(text[end : block.start()], max_tokens)
        if tokens(block.group()) <= max_tokens:
            yield block.group(), "\n"
        else:
            yield from _code(block.group(), max_tokens)
        end = block.end()
    yield from _prose(text[end:], max_tokens)


def _prose(text: str, max_tokens: int) -> Iterator[tuple[str, str]]:
    for line in text.split("\n"):
        if not line.strip():
            continue
        if tokens(line) <= max_tokens:
            yield line, "\n"
            continue
        before = "\n"
        for sentence in _SENTENCE.findall(line):
            for piece in [sentence] if tokens(sentence) <= max_tokens else _words(sentence, max_tokens):
                yield piece.strip(), before
                before = " "


def _code(block: str, max_tokens: int) -> Iterator[tuple[str, str]]:
    """The lines of a code block, as code blocks that fill a part each."""
    fenced = _FENCED.match(block)
    language, code = (fenced["language"] or "\n", fenced["code"]) if fenced else ("\n", block)
    if tokens(language) > max_tokens // 4:  # no name of a language: it would leave no room in any part
        language, code = "\n", language + code
    frame = tokens(f"```{language}```")
    lines: list[str] = []
    size = frame
    for line in code.strip("\n").split("\n"):
        for piece in [line] if tokens(line) + frame <= max_tokens else _words(line, max_tokens - frame):
            length = tokens(piece) - 2
            if lines and size + length > max_tokens:
                yield f"```{language}" + "\n".join(lines) + "\n```", "\n"
                lines, size = [], frame
            lines.append(piece)
            size += length
    if lines:
        yield f"```{language}" + "\n".join(lines) + "\n```", "\n"


def _words(text: str, max_tokens: int) -> Iterator[str]:
    """Runs of words that fit, and pieces of words that do not."""
    found: list[str] = []
    size = 2
    for word in text.split():
        for piece in [word] if tokens(word) <= max_tokens else _cut(word, max_tokens):
            length = tokens(piece) - 2
            if found and size + length > max_tokens:
                yield " ".join(found)
                found, size = [], 2
            found.append(piece)
            size += length
    if found:
        yield " ".join(found)


def _cut(word: str, max_tokens: int) -> Iterator[str]:
    # No character is more than one token.
    width = max_tokens - 2
    return (word[start : start + width] for start in range(0, len(word), width))

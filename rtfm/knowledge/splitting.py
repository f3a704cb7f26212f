"""Splits one long text into parts, so that the embedding model reads each part completely. Pure.

The number of a part's tokens is estimated, not computed with the model's tokenizer, because the parts must be the same
with any model and without a model. Between parts, only white space is lost. If a code block fits into a part, it is not
split. A longer code block is split between its lines, or within a line that does not fit. Each part of the code becomes
a code block of its own.
"""

from __future__ import annotations

import re
from collections.abc import Iterator

MAX_TOKENS = 220
"""Maximum number of tokens of a part, by estimate. The embedding model reads 256.

On chat, code, logs, hex and several languages, the estimate was at most an eighth too low. Mostly it was a fifth too
high."""

_MAX_WORD_LETTERS = 100
"""BERT's tokenizer splits a word of at most this many letters into tokens. A longer word is one unknown token."""

_WORD = re.compile(r"[^\W_]+|\S")
_VOWEL = re.compile("[aeiouy]", re.IGNORECASE)
_BLOCK = re.compile(r"```.*?(?:```|\Z)", re.DOTALL)
_FENCED = re.compile(r"```(?P<language>[\w+#.-]*\n)?(?P<code>.*?)(?:```)?\Z", re.DOTALL)
_SENTENCE = re.compile(r".+?(?:[.!?](?=\s)|\Z)\s*", re.DOTALL)


def estimate_tokens(text: str) -> int:
    """Estimate how many tokens BERT's tokenizer makes of ``text``: one per symbol, about one per three letters."""
    words = _WORD.findall(text)
    return 2 + len(words) + sum([_estimate_word_tokens(word) - 1 for word in words if len(word) > 1])


def _estimate_word_tokens(word: str) -> int:
    length = len(word)
    if length == 1:
        return 1
    if not word.isascii():
        return length
    if length > _MAX_WORD_LETTERS:
        return 1
    if word.isdigit():
        return (length + 1) // 2
    if not word.isalpha():
        return (3 * length + 3) // 4
    if length > 16 or (length > 5 and word.isupper()) or (length > 3 and len(_VOWEL.findall(word)) * 5 < length):
        return (2 * length + 2) // 3  # probably not a word of a language
    return 1 if length <= 4 else 2 if length <= 7 else (length + 1) // 3


def split(text: str, max_tokens: int = MAX_TOKENS) -> list[str]:
    """Split ``text`` into parts, in order, between lines, sentences or words. A short text is one part."""
    if estimate_tokens(text) <= max_tokens:
        return [text]
    parts: list[str] = []
    size = 0
    for piece, before in _iter_pieces(text, max_tokens):
        length = estimate_tokens(piece) - 2
        if parts and size + length + 2 <= max_tokens:
            parts[-1] += before + piece
            size += length
        else:
            parts.append(piece)
            size = length
    return parts


def _iter_pieces(text: str, max_tokens: int) -> Iterator[tuple[str, str]]:
    """Yield pieces that fit into a part, each with the separator that joins it to the previous piece."""
    end = 0
    for block in _BLOCK.finditer(text):
        yield from _split_prose(text[end : block.start()], max_tokens)
        if estimate_tokens(block.group()) <= max_tokens:
            yield block.group(), "\n"
        else:
            yield from _split_code(block.group(), max_tokens)
        end = block.end()
    yield from _split_prose(text[end:], max_tokens)


def _split_prose(text: str, max_tokens: int) -> Iterator[tuple[str, str]]:
    for line in text.split("\n"):
        if not line.strip():
            continue
        if estimate_tokens(line) <= max_tokens:
            yield line, "\n"
            continue
        before = "\n"
        for sentence in _SENTENCE.findall(line):
            for piece in [sentence] if estimate_tokens(sentence) <= max_tokens else _split_words(sentence, max_tokens):
                yield piece.strip(), before
                before = " "


def _split_code(block: str, max_tokens: int) -> Iterator[tuple[str, str]]:
    """Yield code blocks that each fit into a part and together contain the lines of ``block``."""
    fenced = _FENCED.match(block)
    language, code = (fenced["language"] or "\n", fenced["code"]) if fenced else ("\n", block)
    # A first line that is this long is not the name of a language, and every part would repeat it.
    if estimate_tokens(language) > max_tokens // 4:
        language, code = "\n", language + code
    frame = estimate_tokens(f"```{language}```")
    lines: list[str] = []
    size = frame
    for line in code.strip("\n").split("\n"):
        for piece in [line] if estimate_tokens(line) + frame <= max_tokens else _split_words(line, max_tokens - frame):
            length = estimate_tokens(piece) - 2
            if lines and size + length > max_tokens:
                yield f"```{language}" + "\n".join(lines) + "\n```", "\n"
                lines, size = [], frame
            lines.append(piece)
            size += length
    if lines:
        yield f"```{language}" + "\n".join(lines) + "\n```", "\n"


def _split_words(text: str, max_tokens: int) -> Iterator[str]:
    """Yield runs of words that fit into a part. A word that does not fit is cut."""
    words: list[str] = []
    size = 2
    for word in text.split():
        for piece in [word] if estimate_tokens(word) <= max_tokens else _cut_word(word, max_tokens):
            length = estimate_tokens(piece) - 2
            if words and size + length > max_tokens:
                yield " ".join(words)
                words, size = [], 2
            words.append(piece)
            size += length
    if words:
        yield " ".join(words)


def _cut_word(word: str, max_tokens: int) -> Iterator[str]:
    # A character makes at most one token, so this many characters always fit.
    width = max_tokens - 2
    return (word[start : start + width] for start in range(0, len(word), width))

"""Avro's numbers for the generated codecs: tables for the short ones, functions for the rest.

Encoders build text of the code points 0 to 255 and encode it to bytes once, at the end; here ``str`` means such text.
Avro's int and long are zigzag varints of at most 32 and 64 bits
(https://avro.apache.org/docs/1.12.0/specification/#binary-encoding).
"""

from __future__ import annotations

import struct
from collections.abc import Callable
from typing import Any

from rtfm.events import MAX_TIMESTAMP, MIN_TIMESTAMP

LIMIT = 8192
"""Lengths and counts below this come from a table."""


class Misfit(ValueError):
    """A value does not fit its type, or bytes are not a value of it."""


def reason(exc: Exception) -> str:
    """Return what is wrong with the bytes whose decoding raised ``exc``."""
    match exc:
        case IndexError() | struct.error():
            return "the record is cut short"
        case UnicodeDecodeError():
            return "not UTF-8"
        case KeyError():
            return "no such symbol"
        case RecursionError():
            return "nested too deeply"
        case _:
            return str(exc)


# By 14 bits: two bytes with the continuation bit, and the one or two bytes that end a number.
PAIR = tuple(chr(number & 127 | 128) + chr(number >> 7 | 128) for number in range(1 << 14))
TAIL = tuple(chr(number) if number < 128 else PAIR[number][0] + chr(number >> 7) for number in range(1 << 14))
# By length: the encoded length; and that after the index of a union's branch.
LENGTH = tuple(TAIL[length << 1] for length in range(LIMIT))
SOME_LENGTH = {index: tuple(chr(index << 1) + text for text in LENGTH) for index in (0, 1)}

# By length: the encoded length of an id, up to 19 characters if it is numeric (then it satisfies the rule for ids), up
# to 128 for any id. An empty id is invalid: None cannot be joined.
ID_LENGTH: tuple[Any, ...] = (None, *LENGTH[1:20])
ANY_ID_LENGTH: tuple[Any, ...] = (None, *LENGTH[1:129])
SOME_ID_LENGTH: dict[int, tuple[Any, ...]] = {i: (None, *lengths[1:20]) for i, lengths in SOME_LENGTH.items()}

# Times in milliseconds from July 1970 to 2039 take six bytes: the first holds six bits, the others seven.
FIRST_BYTE = tuple(chr(number << 1 | 128) for number in range(1 << 6))
MIDDLE_BYTE = tuple(chr(number | 128) for number in range(1 << 7))
TIME_MIN, TIME_MAX = 1 << 34, 1 << 41


def encode_long(number: int) -> str:
    """Encode a number of 64 bits; raises Misfit for anything else."""
    if type(number) is not int or not -0x8000000000000000 <= number <= 0x7FFFFFFFFFFFFFFF:
        raise Misfit(number)
    number = number << 1 if number >= 0 else ~(number << 1)
    out = ""
    while number > 0x3FFF:
        out += PAIR[number & 0x3FFF]
        number >>= 14
    return out + TAIL[number]


def encode_time(number: int) -> str:
    """Encode a time in milliseconds; raises Misfit for anything else, or outside the years 1 to 9999."""
    if type(number) is not int or not MIN_TIMESTAMP <= number <= MAX_TIMESTAMP:
        raise Misfit(number)
    return encode_long(number)


def encode_int(number: int) -> str:
    """Encode a number of 32 bits; raises Misfit for anything else."""
    if type(number) is not int or not -0x80000000 <= number <= 0x7FFFFFFF:
        raise Misfit(number)
    return encode_long(number)


def encode_texts(texts: list[str]) -> str:
    """Encode a list of texts as one block."""
    if type(texts) is not list:
        raise Misfit(texts)
    if not texts:
        return "\x00"
    parts = [encode_long(len(texts))]
    for text in texts:
        content = text.encode().decode("latin-1")
        parts += encode_long(len(content)), content
    return "".join(parts) + "\x00"


def encode_ids(ids: list[str]) -> tuple[str, bool]:
    """Return (a list of ids encoded as one block, whether all are known to satisfy the rules for ids)."""
    if type(ids) is not list or not ids:
        return encode_texts(ids), True
    count, lengths = len(ids), ID_LENGTH
    try:
        digits = "".join(ids)
        # bytes.isdigit is several times as fast as str.isdigit.
        if digits.encode().isdigit():
            size, items = len(ids[0]), ""
            length = lengths[size]
            if count == 1:
                return f"\x02{length}{digits}\x00", True
            if len(digits) == size * count:
                # An encoded length is not a digit: if one is at each place for ids of equal length, all have it.
                items = length + length.join(ids)
                if items[:: size + 1] != length * count:
                    items = ""
            if not items:
                parts = ids * 2
                parts[::2] = [lengths[len(text)] for text in ids]
                parts[1::2] = ids
                items = "".join(parts)
            return f"{LENGTH[count]}{items}\x00", True
    except (IndexError, TypeError, AttributeError):
        pass  # an id is empty or long, or there are too many
    return encode_texts(ids), False


def encode_bytes(content: bytes) -> str:
    """Encode the length and the content."""
    if type(content) is not bytes:
        raise Misfit(content)
    return encode_long(len(content)) + content.decode("latin-1")


def float_codec(code: str) -> tuple[Callable[[float], str], Callable[[bytes, int], tuple[float]]]:
    """Return the encoder and the decoder of ``f`` (4 bytes) or ``d`` (8 bytes)."""
    layout = struct.Struct("<" + code)
    pack = layout.pack

    def encode(number: float) -> str:
        if type(number) is not float and type(number) is not int:
            raise Misfit(number)
        return pack(number).decode("latin-1")

    return encode, layout.unpack_from


# By first byte: the length that it encodes; -1 if more bytes follow or the length is negative.
SHORT_LENGTH = tuple(-1 if byte & 1 or byte > 127 else byte >> 1 for byte in range(256))

# By two little-endian bytes: their part of a time. KeyError if it is not in the tables, as for negative times.
read_three_pairs = struct.Struct("<HHH").unpack_from
TIME_LOW = {low | 128 | (high | 128) << 8: (low >> 1) + (high << 6) for low in range(0, 128, 2) for high in range(128)}
TIME_MIDDLE = {low | 128 | (high | 128) << 8: (low + (high << 7)) << 13 for low in range(128) for high in range(128)}
TIME_HIGH = {low | 128 | high << 8: (low + (high << 7)) << 27 for low in range(128) for high in range(128)}


def decode_long(data: bytes, position: int) -> tuple[int, int]:
    """Return (number, position after it); raises Misfit above 64 bits, IndexError at the end of the data."""
    byte = data[position]
    position += 1
    number = byte & 127
    shift = 7
    while byte > 127:
        byte = data[position]
        position += 1
        number |= (byte & 127) << shift
        shift += 7
        if shift > 70:
            raise Misfit("a number of more than 64 bits")
    if number > 0xFFFFFFFFFFFFFFFF:
        raise Misfit("a number of more than 64 bits")
    return (number >> 1) ^ -(number & 1), position


def decode_int(data: bytes, position: int) -> tuple[int, int]:
    """Return (number, position after it); raises Misfit above 32 bits."""
    number, position = decode_long(data, position)
    if not -0x80000000 <= number <= 0x7FFFFFFF:
        raise Misfit("a number of more than 32 bits")
    return number, position


def decode_length(data: bytes, position: int) -> tuple[int, int]:
    """Return (length, position after it); raises Misfit if it is negative or longer than the data."""
    length, position = decode_long(data, position)
    if length < 0 or length > len(data) - position:
        raise Misfit("a length beyond the end of the record")
    return length, position


def decode_count(data: bytes, position: int) -> tuple[int, int, int]:
    """Return (items of a block, its size in bytes or -1, position after both); raises Misfit for too many items."""
    count, position = decode_long(data, position)
    size = -1
    if count < 0:
        count = -count
        size, position = decode_length(data, position)
    if not 0 < count <= len(data) - position:
        raise Misfit("a count of more items than there are bytes")
    return count, size, position


# The bytes of lengths 17 to 19, which are the only non-digits in a block of ids, and the table that decodes them.
_ID_LENGTHS = bytes(length << 1 for length in (17, 18, 19))
_DIGITS = b"0123456789"
_HALF = bytes(byte >> 1 for byte in range(256))


def decode_texts(data: bytes, text: str, position: int) -> tuple[list[str], int]:
    """Return (the texts of an array, position after it); ``text`` is ``data`` as Latin-1.

    Ids of one length, or of 17 to 19 digits like Discord's, are split at once. This is tried only for the first block
    of an array, which usually is the last, so that a failed attempt costs less than reading the array.
    """
    count, start = SHORT_LENGTH[data[position]], position + 1
    if not count:
        return [], start
    if count < 0:
        count, _, start = decode_count(data, position)
    first = data[start]
    step = SHORT_LENGTH[first] + 1  # 0 for a longer length: then ``end`` is this byte, which is not 0
    end = start + step * count
    if end < len(data) and not data[end]:
        items = text[start:end]
        prefix = items[0]
        if items[::step] == prefix * count and items.isascii():
            texts = items[1:].split(prefix)
            if len(texts) == count:
                return texts, end + 1
    elif first in _ID_LENGTHS:
        end = text.find("\x00", start)
        texts = text[start + 1 : end].replace("$", "&").replace('"', "&").split("&")
        lengths = data[start:end].translate(_HALF, _DIGITS)
        if end > 0 and len(texts) == count and [*map(len, texts)] == [*lengths]:
            return texts, end + 1
    return _decode_any_texts(data, position)


def _decode_any_texts(data: bytes, position: int) -> tuple[list[str], int]:
    texts: list[str] = []
    while data[position]:
        count, _, position = decode_count(data, position)
        for _ in range(count):
            length, position = decode_length(data, position)
            texts.append(data[position : position + length].decode())
            position += length
    return texts, position + 1

"""Numbers, texts and lists in Avro's encoding, for the generated codecs.

Short numbers are looked up in tables, and functions encode and decode longer ones. Avro's int and long are zigzag
varints of at most 32 and 64 bits (https://avro.apache.org/docs/1.12.0/specification/#binary-encoding).

The functions and tables for encoding return text in which each character stands for one byte and has a code point of 0
to 255. A generated encoder joins these texts and converts the result to bytes once.
"""

from __future__ import annotations

import struct
from collections.abc import Callable
from typing import Any

from rtfm.events import MAX_TIMESTAMP, MIN_TIMESTAMP

LIMIT = 8192
"""Lengths and counts below this number are looked up in a table."""


class Misfit(ValueError):
    """A value does not fit its type and cannot be encoded, or bytes are not a value of a type and cannot be decoded."""


def describe_error(exc: Exception) -> str:
    """Return what is wrong with the bytes whose decoding raised ``exc``."""
    match exc:
        case IndexError() | struct.error():
            return "the record ends too early"
        case UnicodeDecodeError():
            return "the text is not UTF-8"
        case KeyError():
            return "the enum has no such symbol"
        case RecursionError():
            return "the record is nested too deeply"
        case _:
            return str(exc)


# PAIR and TAIL are indexed by 14 bits of a number and contain the bytes that encode these bits. PAIR is used if more
# bits of the number follow. Each of its entries has two bytes, both with the continuation bit. TAIL is used for the
# last bits of the number. Each of its entries has one or two bytes.
PAIR = tuple(chr(number & 127 | 128) + chr(number >> 7 | 128) for number in range(1 << 14))
TAIL = tuple(chr(number) if number < 128 else PAIR[number][0] + chr(number >> 7) for number in range(1 << 14))
# LENGTH maps a length to the encoded length. NULLABLE_LENGTH is for a text in a union with null. It maps the index of
# the text's branch, and then the length, to the encoded index followed by the encoded length.
LENGTH = tuple(TAIL[length << 1] for length in range(LIMIT))
NULLABLE_LENGTH = {index: tuple(chr(index << 1) + text for text in LENGTH) for index in (0, 1)}

# The next three tables map the length of an id to the encoded length. ANY_ID_LENGTH ends at 128 characters. ID_LENGTH
# and NULLABLE_ID_LENGTH are for numeric ids. They end at 19 characters, because every id of 1 to 19 digits satisfies
# all rules for ids. For a longer id, the look-up raises IndexError. An empty id is invalid: the entry for its length is
# None, and joining None raises TypeError.
ID_LENGTH: tuple[Any, ...] = (None, *LENGTH[1:20])
ANY_ID_LENGTH: tuple[Any, ...] = (None, *LENGTH[1:129])
NULLABLE_ID_LENGTH: dict[int, tuple[Any, ...]] = {i: (None, *lengths[1:20]) for i, lengths in NULLABLE_LENGTH.items()}

# Times in milliseconds from July 1970 to 2039 take six bytes. The first byte contains six bits of the time, because its
# lowest bit is zigzag's sign. Each of the other five bytes contains seven bits of the time.
FIRST_BYTE = tuple(chr(number << 1 | 128) for number in range(1 << 6))
MIDDLE_BYTE = tuple(chr(number | 128) for number in range(1 << 7))
TIME_MIN, TIME_MAX = 1 << 34, 1 << 41


def encode_long(number: int) -> str:
    """Encode a whole number of at most 64 bits. Raises Misfit for any other value."""
    if type(number) is not int or not -0x8000000000000000 <= number <= 0x7FFFFFFFFFFFFFFF:
        raise Misfit(number)
    number = number << 1 if number >= 0 else ~(number << 1)
    out = ""
    while number > 0x3FFF:
        out += PAIR[number & 0x3FFF]
        number >>= 14
    return out + TAIL[number]


def encode_time(number: int) -> str:
    """Encode a time in milliseconds. Raises Misfit for a value that is not a whole number in the years 1 to 9999."""
    if type(number) is not int or not MIN_TIMESTAMP <= number <= MAX_TIMESTAMP:
        raise Misfit(number)
    return encode_long(number)


def encode_int(number: int) -> str:
    """Encode a whole number of at most 32 bits. Raises Misfit for any other value."""
    if type(number) is not int or not -0x80000000 <= number <= 0x7FFFFFFF:
        raise Misfit(number)
    return encode_long(number)


def encode_texts(texts: list[str]) -> str:
    """Encode a list of texts as one block. Raises Misfit for a value that is not a list."""
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
    """Encode a list of ids as one block.

    Return (the encoded list, whether all ids are known to satisfy the rules for ids). If an id is not numeric or is
    longer than 19 digits, the second value is False, even if all ids are valid.
    """
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
                # The ids are on average as long as the first id. ``items`` is right only if each id has this length. In
                # that case every character at a multiple of ``size + 1`` is the encoded length. Otherwise one of these
                # characters is a digit, and an encoded length is never a digit.
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
        pass  # an id is empty, too long or not a text, or there are too many ids
    return encode_texts(ids), False


def encode_bytes(content: bytes) -> str:
    """Encode ``content`` with its length. Raises Misfit for a value that is not of type bytes."""
    if type(content) is not bytes:
        raise Misfit(content)
    return encode_long(len(content)) + content.decode("latin-1")


def float_codec(code: str) -> tuple[Callable[[float], str], Callable[[bytes, int], tuple[float]]]:
    """Return (encoder, decoder) for Avro's float if ``code`` is ``f``, or for its double if ``code`` is ``d``."""
    layout = struct.Struct("<" + code)
    pack = layout.pack

    def encode(number: float) -> str:
        if type(number) is not float and type(number) is not int:
            raise Misfit(number)
        return pack(number).decode("latin-1")

    return encode, layout.unpack_from


# SHORT_LENGTH maps the first byte of an encoded length to the length. The entry is -1 if the encoded length has more
# bytes or the length is negative.
SHORT_LENGTH = tuple(-1 if byte & 1 or byte > 127 else byte >> 1 for byte in range(256))

# TIME_LOW, TIME_MIDDLE and TIME_HIGH are for times of six bytes that are not negative. Each table maps two of the six
# bytes, read as a little-endian number, to their part of the time. For any other time, one of the look-ups raises
# KeyError.
read_three_pairs = struct.Struct("<HHH").unpack_from
TIME_LOW = {low | 128 | (high | 128) << 8: (low >> 1) + (high << 6) for low in range(0, 128, 2) for high in range(128)}
TIME_MIDDLE = {low | 128 | (high | 128) << 8: (low + (high << 7)) << 13 for low in range(128) for high in range(128)}
TIME_HIGH = {low | 128 | high << 8: (low + (high << 7)) << 27 for low in range(128) for high in range(128)}


def decode_long(data: bytes, position: int) -> tuple[int, int]:
    """Return (number, position after it).

    Raises Misfit if the number has more than 64 bits, and IndexError if the data end too early.
    """
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
    """Return (number, position after it). Raises Misfit if the number has more than 32 bits."""
    number, position = decode_long(data, position)
    if not -0x80000000 <= number <= 0x7FFFFFFF:
        raise Misfit("a number of more than 32 bits")
    return number, position


def decode_length(data: bytes, position: int) -> tuple[int, int]:
    """Return (length, position after it).

    Raises Misfit if the length is negative or greater than the number of bytes that follow.
    """
    length, position = decode_long(data, position)
    if length < 0 or length > len(data) - position:
        raise Misfit("a length is negative, or goes beyond the end of the record")
    return length, position


def decode_count(data: bytes, position: int) -> tuple[int, int, int]:
    """Return (number of items in a block, size of the block in bytes or -1 if no size is given, position after both).

    Raises Misfit if the block claims more items than bytes follow.
    """
    count, position = decode_long(data, position)
    size = -1
    if count < 0:
        count = -count
        size, position = decode_length(data, position)
    if not 0 < count <= len(data) - position:
        raise Misfit("a block claims more items than there are bytes")
    return count, size, position


# _ID_LENGTHS contains the lengths 17 to 19 in encoded form. They are the characters ", $ and &. In a block of Discord's
# ids, these characters are the only bytes that are not digits. _HALF decodes these lengths.
_ID_LENGTHS = bytes(length << 1 for length in (17, 18, 19))
_DIGITS = b"0123456789"
_HALF = bytes(byte >> 1 for byte in range(256))


def decode_texts(data: bytes, text: str, position: int) -> tuple[list[str], int]:
    """Return (the texts of an array, position after it). ``text`` is ``data`` decoded as Latin-1.

    Two fast ways split a whole block at once: the first is for ASCII texts of the same length, and the second is for
    ids of 17 to 19 digits, like Discord's. They are tried only for the first block of an array. Most arrays have only
    one block. If the fast ways fail, the texts are read one by one.
    """
    count, start = SHORT_LENGTH[data[position]], position + 1
    if not count:
        return [], start
    if count < 0:
        count, _, start = decode_count(data, position)
    first = data[start]
    # If the length of the first text takes more than one byte, ``step`` is 0, and ``end`` is the position of the first
    # byte of this length. That byte is not 0, so the first way is not taken.
    step = SHORT_LENGTH[first] + 1
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

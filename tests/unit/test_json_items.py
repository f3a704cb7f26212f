"""Reading a JSON file in pieces gives the same values and the same errors as Python's parser."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

import pytest

from rtfm.knowledge.json_items import MAX_VALUE, JsonItem, JsonMember, NotJson, read

SIGNS = ["a", "\\", '"', "é", "日", "😀", "\n", " ", "{", "]", ",", "0", "\ud800", "\u2028"]


def values(chance: random.Random, depth: int = 3) -> Any:
    """Return a random JSON value."""
    match chance.randrange(8 if depth else 6):
        case 0:
            return chance.choice([None, True, False])
        case 1:
            return chance.randrange(-(10**18), 10**18)
        case 2:
            return chance.uniform(-1e9, 1e9)
        case 3 | 4 | 5:
            return "".join(chance.choices(SIGNS, k=chance.choice([0, 3, 50, 5_000])))
        case 6:
            return [values(chance, depth - 1) for _ in range(chance.randrange(6))]
        case _:
            return {f"k{number}": values(chance, depth - 1) for number in range(chance.randrange(6))}


def read_whole(path: Path) -> tuple[dict[str, Any], list[Any]]:
    """Return (members, items of the array) of a file that is read to its end."""
    entries = list(read(path, array="items"))
    items = [entry.value for entry in entries if isinstance(entry, JsonItem)]
    assert [entry.number for entry in entries if isinstance(entry, JsonItem)] == list(range(len(items)))
    return {entry.key: entry.value for entry in entries if isinstance(entry, JsonMember)}, items


@pytest.mark.parametrize("seed", range(25))
def test_wherever_the_pieces_are_cut_the_values_are_the_same(seed: int, tmp_path: Path) -> None:
    """The values do not depend on the pieces, even if a number, escape, multi-byte character or literal is cut."""
    chance = random.Random(seed)
    document = {
        "pad": "x" * (65_000 + chance.randrange(600)),
        "items": [values(chance) for _ in range(150)],
        "after": values(chance),
    }
    file = tmp_path / "file.json"
    indent = chance.choice([None, 1])
    text = json.dumps(document, ensure_ascii=seed % 2 == 0, indent=indent).encode(errors="surrogatepass")
    if seed % 2:
        text = text.replace(b"\xed\xa0\x80", b"?")
        document = json.loads(text)
    file.write_bytes((b"\xef\xbb\xbf" if seed % 3 == 0 else b"") + text)
    members, items = read_whole(file)
    assert items == document["items"]
    assert members == {**document, "items": []}


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("", "line 1, column 1: not JSON: Expecting value"),
        ("[1]", "it does not contain a JSON object"),
        ("[" * 100_000, "it is nested too deeply"),
        ('{"a": 1,}', "line 1, column 9: not JSON: Expecting property name"),
        ('{"a": 1\n "b": 2}', "line 2, column 2: not JSON: Expecting ',' delimiter"),
        ('{"items": [1, 2\n, ]}', "line 2, column 3: not JSON: Expecting value"),
        ('{"items": [1 2]}', "line 1, column 14: not JSON: Expecting ',' delimiter"),
        ('{"items": [\n\n  {"a" 1}]}', "line 3, column 8: not JSON: Expecting ':' delimiter"),
        ('{"a": "x', "line 1, column 7: not JSON: Unterminated string"),
        ('{"a": 1} x', "line 1, column 10: not JSON: Extra data"),
        ("{1: 2}", "line 1, column 3: not JSON: Expecting property name"),
        ('{"a": [1, 2', "line 1, column 12: not JSON: Expecting ',' delimiter"),
    ],
)
def test_an_error_has_the_place_that_it_has_in_the_file(text: str, why: str, tmp_path: Path) -> None:
    """The error for invalid JSON names the position of the fault in the file, even far beyond the first piece."""
    file = tmp_path / "file.json"
    file.write_text(text, encoding="utf-8")
    with pytest.raises(NotJson) as caught:
        read_whole(file)
    assert str(caught.value).startswith(why)
    if text.startswith("{") and "line 1" not in why:
        file.write_text('{"pad": "' + "x" * 200_000 + '",\n' + text[1:], encoding="utf-8")
        line = int(why.split()[1].rstrip(","))
        with pytest.raises(NotJson) as caught:
            read_whole(file)
        assert str(caught.value).startswith(why.replace(f"line {line}", f"line {line + 1}"))


def test_bytes_that_are_no_text_are_named_by_their_place(tmp_path: Path) -> None:
    """The error for bytes that are not UTF-8 names their position, even if a piece before ends inside a character."""
    file = tmp_path / "file.json"
    file.write_bytes(b'{"pad": "' + b"x" * 65_526 + "é".encode() + b"y" * 100 + b'\xff"}')
    with pytest.raises(NotJson, match=f"byte {9 + 65_526 + 2 + 100}: not UTF-8"):
        read_whole(file)


def test_a_value_without_end_is_not_read_to_its_end(tmp_path: Path) -> None:
    """A value that is longer than any useful one is an error, so that memory is bounded."""
    file = tmp_path / "file.json"
    with file.open("w", encoding="utf-8") as writing:
        writing.write('{"items": ["')
        for _ in range(40):
            writing.write("x" * 1_000_000)
        writing.write('"]}')
    with pytest.raises(NotJson, match=f"a value of more than {MAX_VALUE} characters"):
        read_whole(file)

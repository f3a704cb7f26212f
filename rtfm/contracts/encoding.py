"""The source of an encoder: from the shape of an event to a Python function that writes it.

The function takes the event and the frame, runs straight through the fields, and joins everything once. All texts are
expected to be ASCII and short, and take a slower way where they are not; ids are looked at together. Whatever comes of
a value that does not fit is raised anew as what ``refused`` makes of the event.

The rules of ``rtfm.events`` cost little: ids of 1 to 19 digits keep the rule for ids whatever it demands, and times
before the last moment that was found to be right need no clock. Only where something else is found is the rule itself
asked, once for the event.
"""

from __future__ import annotations

from typing import Any

from attrs import define, field

from rtfm.contracts import shapes, varints
from rtfm.events import ID, holds_ids


@define
class EncoderState:
    """The lines written so far and the names that they use."""

    names: dict[str, Any] = field(factory=dict)
    lines: list[str] = field(factory=list)
    counter: int = 0

    def line(self, depth: int, text: str) -> None:
        """Add a line, ``depth`` levels deep."""
        self.lines.append("    " * depth + text)

    def name(self, prefix: str, value: Any) -> str:
        """A name under which the source finds ``value``."""
        for known, other in self.names.items():
            if other is value:
                return known
        name = f"{prefix}_{len(self.names)}"
        self.names[name] = value
        return name

    def variable(self) -> str:
        """A fresh variable."""
        self.counter += 1
        return f"v{self.counter}"


def source(shape: shapes.Record) -> tuple[str, dict[str, Any]]:
    """(source, names that it uses) of ``encode(event, frame) -> bytes`` for ``shape``, which must be covered."""
    state = EncoderState(names={name: getattr(varints, name) for name in _RUNTIME})
    state.names.update(join="".join, write_float=varints.floating("f")[0], write_double=varints.floating("d")[0])
    state.names["matches_id"] = ID.fullmatch
    state.line(0, "def encode(event, frame):")
    state.line(1, "try:")
    state.line(2, "unsure = False")
    parts = _record(state, shape, "event", 2)
    state.line(2, "if unsure:")
    state.line(3, "check(event)")
    state.line(2, f'return {_joined(["frame", *parts])}.encode("latin-1")')
    # Whatever a wrong value raises in between, ``refused`` finds the field and says what is wrong with it.
    state.line(1, "except Exception as exc:")
    state.line(2, "raise refused(event, exc) from exc")
    return "\n".join(state.lines) + "\n", state.names


_RUNTIME = [
    *("Misfit", "LENGTH", "SOME_LENGTH", "EVEN", "MORE", "PAIR", "TAIL", "TIME_MIN", "TIME_MAX"),
    *("ID_LENGTH", "ANY_ID_LENGTH", "encode_long", "encode_int", "encode_time"),
    *("encode_bytes", "encode_texts", "encode_ids"),
]


def _record(state: EncoderState, shape: shapes.Record, v: str, depth: int) -> list[str]:
    known_class = state.name(shape.event_class.__name__, shape.event_class)
    state.line(depth, f"if {v}.__class__ is not {known_class}:")
    state.line(depth + 1, f"raise Misfit({v})")
    # All at once and first, so that the processor fetches them side by side.
    variables = {slot.name: state.variable() for slot in shape.slots}
    for name, variable in variables.items():
        state.line(depth, f"{variable} = {v}.{name}")
    ids = [slot for slot in shape.slots if _is_id(slot) and slot.name not in MADE_IDS]
    prepared = _ids(state, ids, variables, v, depth) if ids else {}
    parts: list[str] = []
    for slot in shape.slots:
        parts += prepared.get(slot.name) or _slot(state, slot, variables[slot.name], depth)
    return parts


MADE_IDS = frozenset({"query_id"})
"""Ids that are more than digits, mostly: they are matched one by one."""

_TEXT = shapes.Primitive("string", None)


def _is_id(slot: shapes.Slot) -> bool:
    shape = slot.shape.value if isinstance(slot.shape, shapes.Nullable) else slot.shape
    return holds_ids(slot.name) and shape == _TEXT


def _slot(state: EncoderState, slot: shapes.Slot, v: str, depth: int) -> list[str]:
    """Write the lines that prepare a field, with what its name asks for; see ``_value``."""
    if slot.name == "observed_at":
        # Nothing but a time can be compared with one; None, which needs no check, is left out.
        state.line(depth, f"if {v} is not None and {v} > checked_until[0]:")
        state.line(depth + 1, "unsure = True")
    if slot.shape == shapes.Sequence(_TEXT) and holds_ids(slot.name):
        state.line(depth, f"if {v}:")
        state.line(depth + 1, f"{v}, plain = encode_ids({v})")
        state.line(depth + 1, "unsure = unsure or not plain")
        _empty(state, v, depth)
        return [v]
    if slot.shape == _TEXT and holds_ids(slot.name):
        state.line(depth, f"if not {v}.encode().isalnum() and not matches_id({v}):")
        state.line(depth + 1, f"raise Misfit({v})")
        return [f"ANY_ID_LENGTH[len({v})]", v]
    return _value(state, slot.shape, v, depth)


def _ids(
    state: EncoderState, slots: list[shapes.Slot], variables: dict[str, str], record: str, depth: int
) -> dict[str, list[str]]:
    """Write the lines for ids that are short and of digits in all but odd cases, which are noticed for all at once."""
    prepared = {}
    state.line(depth, "try:")
    for slot in slots:
        v = variables[slot.name]
        prepared[slot.name] = [f"{v}n", v]
        if isinstance(slot.shape, shapes.Nullable):
            index, none = (1, "\\x00") if slot.shape.null_first else (0, "\\x02")
            state.line(depth + 1, f"if {v} is None:")
            state.line(depth + 2, f'{v}n = "{none}"; {v} = ""')
            state.line(depth + 1, "else:")
            state.line(depth + 2, f"{v}n = {state.name('SOME_ID_LENGTH', varints.SOME_ID_LENGTH[index])}[len({v})]")
        else:
            state.line(depth + 1, f"{v}n = ID_LENGTH[len({v})]")
    # Digits of bytes are recognised several times as fast as digits of text.
    texts = [v for _, v in prepared.values()]
    state.line(depth + 1, f"usual = {_joined(texts) if len(texts) > 1 else texts[0]}.encode().isdigit()")
    state.line(depth, "except IndexError:")
    state.line(depth + 1, "usual = False")
    state.line(depth, "if not usual:")
    state.line(depth + 1, "unsure = True")
    for slot in slots:
        v = variables[slot.name]
        state.line(depth + 1, f"{v} = {record}.{slot.name}")
        _value(state, slot.shape, v, depth + 1)
    return prepared


def _joined(parts: list[str]) -> str:
    """The expression that joins ``parts``.

    Not an f-string, which is slower, and which would ask a subclass of str, as enums may be, how it wants to be shown.
    """
    return f"join(({', '.join(parts)}{',' * (len(parts) == 1)}))"


def _value(state: EncoderState, shape: shapes.Shape, v: str, depth: int) -> list[str]:
    """Write the lines that prepare the value of the variable ``v``; the variables that then hold its bytes."""
    match shape:
        case shapes.Primitive(kind="string"):
            _text(state, "LENGTH", "", "if", v, depth)
            return [f"{v}n", v]
        case shapes.Nullable(value=shapes.Primitive(kind="string"), null_first=null_first):
            index, none = (1, "\\x00") if null_first else (0, "\\x02")
            state.line(depth, f"if {v} is None:")
            state.line(depth + 1, f'{v}n = "{none}"')
            state.line(depth + 1, f'{v} = ""')
            lengths = state.name("SOME_LENGTH", varints.SOME_LENGTH[index])
            _text(state, lengths, f'"\\x{index << 1:02x}" + ', "elif", v, depth)
            return [f"{v}n", v]
        case shapes.Nullable(value=inner, null_first=null_first):
            some, none = ("\\x02", "\\x00") if null_first else ("\\x00", "\\x02")
            state.line(depth, f"if {v} is None:")
            state.line(depth + 1, f'{v} = "{none}"')
            state.line(depth, "else:")
            parts = _value(state, inner, v, depth + 1)
            joined = f"{_quoted(some)} + {parts[0]}" if len(parts) == 1 else _joined([_quoted(some), *parts])
            state.line(depth + 1, f"{v} = {joined}")
        case shapes.Enumeration(enum_class=enum_class, symbols=symbols):
            _enumeration(state, enum_class, symbols, v, depth)
        case shapes.Sequence(items=shapes.Primitive(kind="string")):
            state.line(depth, f"if {v}:")
            state.line(depth + 1, f"{v} = encode_texts({v})")
            _empty(state, v, depth)
        case shapes.Sequence(items=items):
            _sequence(state, items, v, depth)
        case shapes.Record():
            return _record(state, shape, v, depth)
        case shapes.Primitive(kind="long", logical="timestamp-millis"):
            return _time(state, v, depth)
        case shapes.Primitive(kind=kind):
            _primitive(state, kind, v, depth)
        case _:
            raise NotImplementedError(shape)
    return [v]


def _text(state: EncoderState, lengths: str, some: str, condition: str, v: str, depth: int) -> None:
    state.line(depth, f"{condition} {v}.isascii() and (n := len({v})) < {varints.LIMIT}:")
    state.line(depth + 1, f"{v}n = {lengths}[n]")
    state.line(depth, "else:")
    state.line(depth + 1, f'{v} = {v}.encode().decode("latin-1")')
    state.line(depth + 1, f"{v}n = {lengths}[n] if (n := len({v})) < {varints.LIMIT} else {some}encode_long(n)")


def _primitive(state: EncoderState, kind: str, v: str, depth: int) -> None:
    if kind == "boolean":
        state.line(depth, f"if {v} is False:")
        state.line(depth + 1, f'{v} = "\\x00"')
        state.line(depth, f"elif {v} is True:")
        state.line(depth + 1, f'{v} = "\\x01"')
        state.line(depth, "else:")
        state.line(depth + 1, f"raise Misfit({v})")
    elif kind in ("int", "long"):
        state.line(depth, f"if {v}.__class__ is int and 0 <= {v} < {varints.LIMIT}:")
        state.line(depth + 1, f"{v} = LENGTH[{v}]")
        state.line(depth, "else:")
        state.line(depth + 1, f"{v} = encode_{kind}({v})")
    elif kind == "bytes":
        state.line(depth, f"{v} = encode_bytes({v})")
    else:
        state.line(depth, f"{v} = write_{kind}({v})")


def _time(state: EncoderState, v: str, depth: int) -> list[str]:
    # Byte by byte: a table by 14 bits of a time has another place for each, and no cache of the processor keeps it.
    low = [f"{v}a", f"{v}b", f"{v}c"]
    state.line(depth, f"if {v}.__class__ is int and TIME_MIN <= {v} < TIME_MAX:")
    state.line(depth + 1, f"n = {v} & 0xFFFFF")
    state.line(depth + 1, f"{low[0]} = EVEN[n & 0x3F]; {low[1]} = MORE[n >> 6 & 0x7F]; {low[2]} = MORE[n >> 13]")
    state.line(depth + 1, f"n = {v} >> 20")
    state.line(depth + 1, f"{v}d = PAIR[n & 0x3FFF]; {v} = TAIL[n >> 14]")
    state.line(depth, "else:")
    state.line(depth + 1, f'{" = ".join(low)} = {v}d = ""; {v} = encode_time({v})')
    return [*low, f"{v}d", v]


def _enumeration(state: EncoderState, enum_class: Any, symbols: tuple[str, ...], v: str, depth: int) -> None:
    # By identity: hashing a member would run Python code. UNKNOWN comes first in the schema and last in practice.
    order = [*range(1, len(symbols)), 0]
    for place, index in enumerate(order):
        member = state.name(f"{enum_class.__name__}_{symbols[index]}", enum_class(symbols[index]))
        state.line(depth, f"{'elif' if place else 'if'} {v} is {member}:")
        state.line(depth + 1, f'{v} = "{_escaped(varints.encode_long(index))}"')
    state.line(depth, "else:")
    state.line(depth + 1, f"raise Misfit({v})")


def _sequence(state: EncoderState, items: shapes.Shape, v: str, depth: int) -> None:
    state.line(depth, f"if {v} and {v}.__class__ is list:")
    state.line(depth + 1, f"{v}s = [LENGTH[n] if (n := len({v})) < {varints.LIMIT} else encode_long(n)]")
    item = state.variable()
    state.line(depth + 1, f"for {item} in {v}:")
    parts = _value(state, items, item, depth + 2)
    state.line(depth + 2, f"{v}s += ({', '.join(parts)}{',' * (len(parts) == 1)})")
    state.line(depth + 1, f'{v} = join({v}s) + "\\x00"')
    _empty(state, v, depth)


def _empty(state: EncoderState, v: str, depth: int) -> None:
    """End the lines for a list with those for one without items, and for what is no list."""
    state.line(depth, f"elif {v}.__class__ is list:")
    state.line(depth + 1, f'{v} = "\\x00"')
    state.line(depth, "else:")
    state.line(depth + 1, f"raise Misfit({v})")


def _quoted(escaped: str) -> str:
    return f'"{escaped}"'


def _escaped(text: str) -> str:
    return "".join(f"\\x{ord(character):02x}" for character in text)

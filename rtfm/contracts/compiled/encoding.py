"""The source of an encoder: from the shape of an event to a Python function that writes it.

The function takes the event and the frame, runs straight through the fields, and joins everything once. All texts are
expected to be ASCII and short, and take a slower way where they are not; ids are looked at together. Whatever comes of
a value that does not fit is raised anew as what ``build_refusal`` makes of the event.

The rules of ``rtfm.events`` cost little: ids of 1 to 19 digits keep the rule for ids whatever it demands, and times
before the last moment that was found to be right need no clock. Only where something else is found is the rule itself
asked, once for the event.
"""

from __future__ import annotations

from typing import Any

from rtfm.contracts import shapes
from rtfm.contracts.compiled import varints
from rtfm.contracts.compiled.source import SourceState, item_of
from rtfm.events import ID, is_id_field


def source(shape: shapes.RecordShape) -> tuple[str, dict[str, Any]]:
    """(source, names that it uses) of ``encode(event, frame) -> bytes`` for ``shape``, which must be covered."""
    state = SourceState(names={name: getattr(varints, name) for name in _RUNTIME})
    state.names.update(join="".join, write_float=varints.float_codec("f")[0], write_double=varints.float_codec("d")[0])
    state.names["matches_id"] = ID.fullmatch
    state.line(0, "def encode(event, frame):")
    state.line(1, "try:")
    state.line(2, "unsure = False")
    parts = _record(state, shape, "event", "", 2)
    state.line(2, "if unsure:")
    state.line(3, "check(event)")
    state.line(2, f'return {_join(["frame", *parts])}.encode("latin-1")')
    # Whatever a wrong value raises in between, ``build_refusal`` finds the field and says what is wrong with it.
    state.line(1, "except Exception as exc:")
    state.line(2, "raise build_refusal(event, exc) from exc")
    return state.text(), state.names


_RUNTIME = [
    *("Misfit", "LENGTH", "FIRST_BYTE", "MIDDLE_BYTE", "PAIR", "TAIL", "TIME_MIN", "TIME_MAX"),
    *("ID_LENGTH", "ANY_ID_LENGTH", "encode_long", "encode_int", "encode_time"),
    *("encode_bytes", "encode_texts", "encode_ids"),
]


def _record(state: SourceState, shape: shapes.RecordShape, v: str, prefix: str, depth: int) -> list[str]:
    """Write the lines that prepare the record in ``v``; its fields' variables are named ``prefix`` and the field."""
    known_class = state.constant(shape.event_class.__name__, shape.event_class)
    state.line(depth, f"if {v}.__class__ is not {known_class}:")
    state.line(depth + 1, f"raise Misfit({v})")
    # All at once and first, so that the processor fetches them side by side.
    variables = {slot.name: state.variable(prefix + slot.name) for slot in shape.slots}
    for name, variable in variables.items():
        state.line(depth, f"{variable} = {v}.{name}")
    ids = [slot for slot in shape.slots if _is_id(slot) and slot.name not in FREE_FORM_IDS]
    prepared = _ids(state, ids, variables, v, depth) if ids else {}
    parts: list[str] = []
    for slot in shape.slots:
        parts += prepared.get(slot.name) or _slot(state, slot, variables[slot.name], depth)
    return parts


FREE_FORM_IDS = frozenset({"query_id"})
"""Ids that are more than digits, mostly: they are matched one by one."""

_TEXT = shapes.Primitive("string", None)


def _is_id(slot: shapes.Slot) -> bool:
    shape = slot.shape.value if isinstance(slot.shape, shapes.Nullable) else slot.shape
    return is_id_field(slot.name) and shape == _TEXT


def _slot(state: SourceState, slot: shapes.Slot, v: str, depth: int) -> list[str]:
    """Write the lines that prepare a field, with what its name asks for; see ``_value``."""
    if slot.name == "observed_at":
        # Nothing but a time can be compared with one; None, which needs no check, is left out.
        state.line(depth, f"if {v} is not None and {v} > checked_until[0]:")
        state.line(depth + 1, "unsure = True")
    if slot.shape == shapes.Sequence(_TEXT) and is_id_field(slot.name):
        state.line(depth, f"if {v}:")
        state.line(depth + 1, f"{v}, plain = encode_ids({v})")
        state.line(depth + 1, "unsure = unsure or not plain")
        _end_list(state, v, depth)
        return [v]
    if slot.shape == _TEXT and is_id_field(slot.name):
        state.line(depth, f"if not {v}.encode().isalnum() and not matches_id({v}):")
        state.line(depth + 1, f"raise Misfit({v})")
        return [f"ANY_ID_LENGTH[len({v})]", v]
    return _value(state, slot.shape, v, depth)


def _ids(
    state: SourceState, slots: list[shapes.Slot], variables: dict[str, str], record: str, depth: int
) -> dict[str, list[str]]:
    """Write the lines for ids that are short and of digits in all but odd cases, which are noticed for all at once."""
    prepared = {}
    state.line(depth, "try:")
    for slot in slots:
        v = variables[slot.name]
        length = state.part(v, "length")
        prepared[slot.name] = [length, v]
        if isinstance(slot.shape, shapes.Nullable):
            index, none = (1, "\\x00") if slot.shape.null_first else (0, "\\x02")
            state.line(depth + 1, f"if {v} is None:")
            state.line(depth + 2, f'{length} = "{none}"; {v} = ""')
            state.line(depth + 1, "else:")
            lengths = state.constant("SOME_ID_LENGTH", varints.SOME_ID_LENGTH[index])
            state.line(depth + 2, f"{length} = {lengths}[len({v})]")
        else:
            state.line(depth + 1, f"{length} = ID_LENGTH[len({v})]")
    # Digits of bytes are recognised several times as fast as digits of text.
    texts = [v for _, v in prepared.values()]
    state.line(depth + 1, f"usual = {_join(texts) if len(texts) > 1 else texts[0]}.encode().isdigit()")
    state.line(depth, "except IndexError:")
    state.line(depth + 1, "usual = False")
    state.line(depth, "if not usual:")
    state.line(depth + 1, "unsure = True")
    for slot in slots:
        v = variables[slot.name]
        state.line(depth + 1, f"{v} = {record}.{slot.name}")
        _value(state, slot.shape, v, depth + 1)
    return prepared


def _join(parts: list[str]) -> str:
    """The expression that joins ``parts``.

    Not an f-string, which is slower, and which would ask a subclass of str, as enums may be, how it wants to be shown.
    """
    return f"join(({', '.join(parts)}{',' * (len(parts) == 1)}))"


def _value(state: SourceState, shape: shapes.Shape, v: str, depth: int) -> list[str]:
    """Write the lines that prepare the value of the variable ``v``; the variables that then hold its bytes."""
    match shape:
        case shapes.Primitive(kind="string"):
            return _text(state, "LENGTH", "", "if", v, depth)
        case shapes.Nullable(value=shapes.Primitive(kind="string"), null_first=null_first):
            index, none = (1, "\\x00") if null_first else (0, "\\x02")
            state.line(depth, f"if {v} is None:")
            state.line(depth + 1, f'{state.part(v, "length")} = "{none}"; {v} = ""')
            lengths = state.constant("SOME_LENGTH", varints.SOME_LENGTH[index])
            return _text(state, lengths, f'"\\x{index << 1:02x}" + ', "elif", v, depth)
        case shapes.Nullable(value=inner, null_first=null_first):
            some, none = ("\\x02", "\\x00") if null_first else ("\\x00", "\\x02")
            state.line(depth, f"if {v} is None:")
            state.line(depth + 1, f'{v} = "{none}"')
            state.line(depth, "else:")
            parts = _value(state, inner, v, depth + 1)
            joined = f'"{some}" + {parts[0]}' if len(parts) == 1 else _join([f'"{some}"', *parts])
            state.line(depth + 1, f"{v} = {joined}")
        case shapes.Enumeration(enum_class=enum_class, symbols=symbols):
            _enumeration(state, enum_class, symbols, v, depth)
        case shapes.Sequence(items=shapes.Primitive(kind="string")):
            state.line(depth, f"if {v}:")
            state.line(depth + 1, f"{v} = encode_texts({v})")
            _end_list(state, v, depth)
        case shapes.Sequence(items=items):
            _sequence(state, items, v, depth)
        case shapes.RecordShape():
            return _record(state, shape, v, f"{v}_", depth)
        case shapes.Primitive(kind="long", logical="timestamp-millis"):
            return _time(state, v, depth)
        case shapes.Primitive(kind=kind):
            _primitive(state, kind, v, depth)
        case _:
            raise NotImplementedError(shape)
    return [v]


def _text(state: SourceState, lengths: str, some: str, condition: str, v: str, depth: int) -> list[str]:
    before = state.part(v, "length")
    state.line(depth, f"{condition} {v}.isascii() and (length := len({v})) < {varints.LIMIT}:")
    state.line(depth + 1, f"{before} = {lengths}[length]")
    state.line(depth, "else:")
    state.line(depth + 1, f'{v} = {v}.encode().decode("latin-1")')
    state.line(depth + 1, f"length = len({v})")
    state.line(depth + 1, f"{before} = {lengths}[length] if length < {varints.LIMIT} else {some}encode_long(length)")
    return [before, v]


def _primitive(state: SourceState, kind: str, v: str, depth: int) -> None:
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


def _time(state: SourceState, v: str, depth: int) -> list[str]:
    # Byte by byte: a table by 14 bits of a time has another place for each, and no cache of the processor keeps it.
    first, second, third, rest = (state.part(v, what) for what in ("byte_1", "byte_2", "byte_3", "bytes_4_5"))
    state.line(depth, f"if {v}.__class__ is int and TIME_MIN <= {v} < TIME_MAX:")
    state.line(depth + 1, f"number = {v} & 0xFFFFF")
    state.line(depth + 1, f"{first} = FIRST_BYTE[number & 0x3F]; {second} = MIDDLE_BYTE[number >> 6 & 0x7F]")
    state.line(depth + 1, f"{third} = MIDDLE_BYTE[number >> 13]")
    state.line(depth + 1, f"number = {v} >> 20")
    state.line(depth + 1, f"{rest} = PAIR[number & 0x3FFF]; {v} = TAIL[number >> 14]")
    state.line(depth, "else:")
    state.line(depth + 1, f'{first} = {second} = {third} = {rest} = ""; {v} = encode_time({v})')
    return [first, second, third, rest, v]


def _enumeration(state: SourceState, enum_class: Any, symbols: tuple[str, ...], v: str, depth: int) -> None:
    # By identity: hashing a member would run Python code. UNKNOWN comes first in the schema and last in practice.
    order = [*range(1, len(symbols)), 0]
    for place, index in enumerate(order):
        member = state.constant(f"{enum_class.__name__}_{symbols[index]}", enum_class(symbols[index]))
        state.line(depth, f"{'elif' if place else 'if'} {v} is {member}:")
        state.line(depth + 1, f"{v} = {varints.encode_long(index)!a}")
    state.line(depth, "else:")
    state.line(depth + 1, f"raise Misfit({v})")


def _sequence(state: SourceState, items: shapes.Shape, v: str, depth: int) -> None:
    state.line(depth, f"if {v} and {v}.__class__ is list:")
    parts, item = state.part(v, "parts"), state.variable(item_of(v))
    state.line(depth + 1, f"length = len({v})")
    state.line(depth + 1, f"{parts} = [LENGTH[length] if length < {varints.LIMIT} else encode_long(length)]")
    state.line(depth + 1, f"for {item} in {v}:")
    of_item = _value(state, items, item, depth + 2)
    state.line(depth + 2, f"{parts} += ({', '.join(of_item)}{',' * (len(of_item) == 1)})")
    state.line(depth + 1, f'{v} = join({parts}) + "\\x00"')
    _end_list(state, v, depth)


def _end_list(state: SourceState, v: str, depth: int) -> None:
    """End the lines for a list with those for one without items, and for what is no list."""
    state.line(depth, f"elif {v}.__class__ is list:")
    state.line(depth + 1, f'{v} = "\\x00"')
    state.line(depth, "else:")
    state.line(depth + 1, f"raise Misfit({v})")

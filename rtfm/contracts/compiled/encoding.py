"""The generator of encoders. It turns the shape of an event into the source of a Python function.

The function takes the event and the frame. It prepares the parts of each field in order, without calls where possible,
and joins all parts once. It has a fast path for short ASCII texts, and checks the ids of a record together. If an
exception occurs in the function, the function raises the error that ``build_refusal`` builds.

The function also makes sure that the event breaks no rule of ``rtfm.events``. For nearly all events, two fast tests are
enough: an id of 1 to 19 digits satisfies every rule for ids, and an ``observed_at`` is valid if it is not later than
the latest time that the last full check allowed. If one of these tests fails, the function calls ``check``, which
applies all rules to the event.
"""

from __future__ import annotations

from typing import Any

from rtfm.contracts import shapes
from rtfm.contracts.compiled import varints
from rtfm.contracts.compiled.source import SourceState, item_of
from rtfm.events import ID, is_id_field


def source(shape: shapes.RecordShape) -> tuple[str, dict[str, Any]]:
    """Generate the function ``encode(event, frame) -> bytes``.

    Return the source, and a dict from name to each object that the source uses. ``shapes.is_covered`` must be true of
    ``shape``.
    """
    state = SourceState(names={name: getattr(varints, name) for name in _RUNTIME})
    state.names.update(join="".join, write_float=varints.float_codec("f")[0], write_double=varints.float_codec("d")[0])
    state.names["matches_id"] = ID.fullmatch
    state.line(0, "def encode(event, frame):")
    state.line(1, "try:")
    state.line(2, "must_check = False")
    parts = _record(state, shape, "event", "", 2)
    state.line(2, "if must_check:")
    state.line(3, "check(event)")
    state.line(2, f'return {_join(["frame", *parts])}.encode("latin-1")')
    # An invalid value may raise any exception. ``build_refusal`` finds the field and says what is wrong.
    state.line(1, "except Exception as exc:")
    state.line(2, "raise build_refusal(event, exc) from exc")
    return state.text(), state.names


_RUNTIME = [
    *("Misfit", "LENGTH", "FIRST_BYTE", "MIDDLE_BYTE", "PAIR", "TAIL", "TIME_MIN", "TIME_MAX"),
    *("ID_LENGTH", "ANY_ID_LENGTH", "encode_long", "encode_int", "encode_time"),
    *("encode_bytes", "encode_texts", "encode_ids"),
]


def _record(state: SourceState, shape: shapes.RecordShape, var: str, prefix: str, depth: int) -> list[str]:
    """Add the lines that prepare the record in the variable ``var``, and return the variables with the record's parts.

    The variable of a field is named ``prefix`` followed by the field's name.
    """
    known_class = state.constant(shape.event_class.__name__, shape.event_class)
    state.line(depth, f"if {var}.__class__ is not {known_class}:")
    state.line(depth + 1, f"raise Misfit({var})")
    # All fields are read before the first field is used, so that the CPU fetches them in parallel.
    variables = {slot.name: state.variable(prefix + slot.name) for slot in shape.slots}
    for name, variable in variables.items():
        state.line(depth, f"{variable} = {var}.{name}")
    ids = [slot for slot in shape.slots if _is_id(slot) and slot.name not in FREE_FORM_IDS]
    prepared = _ids(state, ids, variables, var, depth) if ids else {}
    parts: list[str] = []
    for slot in shape.slots:
        parts += prepared.get(slot.name) or _slot(state, slot, variables[slot.name], depth)
    return parts


FREE_FORM_IDS = frozenset({"query_id"})
"""Names of id fields whose values usually contain more than digits.

With these fields, the common test for numeric ids would nearly always fail. They are therefore matched one by one.
"""

_TEXT = shapes.Primitive("string", None)


def _is_id(slot: shapes.Slot) -> bool:
    shape = slot.shape.value if isinstance(slot.shape, shapes.Nullable) else slot.shape
    return is_id_field(slot.name) and shape == _TEXT


def _slot(state: SourceState, slot: shapes.Slot, var: str, depth: int) -> list[str]:
    """Add the lines that prepare a field, as ``_value`` does, and the checks that the field's name requires."""
    if slot.name == "observed_at":
        # None is valid. For any other value that is not a number, the comparison raises an exception.
        state.line(depth, f"if {var} is not None and {var} > checked_until[0]:")
        state.line(depth + 1, "must_check = True")
    if slot.shape == shapes.Sequence(_TEXT) and is_id_field(slot.name):
        state.line(depth, f"if {var}:")
        state.line(depth + 1, f"{var}, is_numeric = encode_ids({var})")
        state.line(depth + 1, "must_check = must_check or not is_numeric")
        _end_list(state, var, depth)
        return [var]
    if slot.shape == _TEXT and is_id_field(slot.name):
        state.line(depth, f"if not {var}.encode().isalnum() and not matches_id({var}):")
        state.line(depth + 1, f"raise Misfit({var})")
        return [f"ANY_ID_LENGTH[len({var})]", var]
    return _value(state, slot.shape, var, depth)


def _ids(
    state: SourceState, slots: list[shapes.Slot], variables: dict[str, str], record: str, depth: int
) -> dict[str, list[str]]:
    """Add the lines that prepare the id fields of a record, whose values are usually numeric and short.

    The generated lines join all ids and test once whether the joined text is numeric. If this text is not numeric, or
    if an id is longer than 19 characters, the lines prepare each id like any other text, and set ``must_check`` to
    True.
    """
    prepared = {}
    state.line(depth, "try:")
    for slot in slots:
        var = variables[slot.name]
        length = state.part(var, "length")
        prepared[slot.name] = [length, var]
        if isinstance(slot.shape, shapes.Nullable):
            index, none = (1, "\\x00") if slot.shape.null_first else (0, "\\x02")
            state.line(depth + 1, f"if {var} is None:")
            state.line(depth + 2, f'{length} = "{none}"; {var} = ""')
            state.line(depth + 1, "else:")
            lengths = state.constant("NULLABLE_ID_LENGTH", varints.NULLABLE_ID_LENGTH[index])
            state.line(depth + 2, f"{length} = {lengths}[len({var})]")
        else:
            state.line(depth + 1, f"{length} = ID_LENGTH[len({var})]")
    # bytes.isdigit is several times as fast as str.isdigit.
    texts = [var for _, var in prepared.values()]
    state.line(depth + 1, f"all_numeric = {_join(texts) if len(texts) > 1 else texts[0]}.encode().isdigit()")
    state.line(depth, "except IndexError:")
    state.line(depth + 1, "all_numeric = False")
    state.line(depth, "if not all_numeric:")
    state.line(depth + 1, "must_check = True")
    for slot in slots:
        var = variables[slot.name]
        state.line(depth + 1, f"{var} = {record}.{slot.name}")
        _value(state, slot.shape, var, depth + 1)
    return prepared


def _join(parts: list[str]) -> str:
    """Return the source of an expression that joins the variables ``parts``.

    The expression is not an f-string, because an f-string is slower and calls ``__format__`` of subclasses of str, such
    as enums.
    """
    return f"join(({', '.join(parts)}{',' * (len(parts) == 1)}))"


def _value(state: SourceState, shape: shapes.Shape, var: str, depth: int) -> list[str]:
    """Add the lines that encode the value in the variable ``var``.

    Return the variables that contain the encoded parts after these lines.
    """
    match shape:
        case shapes.Primitive(kind="string"):
            return _text(state, "LENGTH", "", "if", var, depth)
        case shapes.Nullable(value=shapes.Primitive(kind="string"), null_first=null_first):
            index, none = (1, "\\x00") if null_first else (0, "\\x02")
            state.line(depth, f"if {var} is None:")
            state.line(depth + 1, f'{state.part(var, "length")} = "{none}"; {var} = ""')
            lengths = state.constant("NULLABLE_LENGTH", varints.NULLABLE_LENGTH[index])
            return _text(state, lengths, f'"\\x{index << 1:02x}" + ', "elif", var, depth)
        case shapes.Nullable(value=inner, null_first=null_first):
            some, none = ("\\x02", "\\x00") if null_first else ("\\x00", "\\x02")
            state.line(depth, f"if {var} is None:")
            state.line(depth + 1, f'{var} = "{none}"')
            state.line(depth, "else:")
            parts = _value(state, inner, var, depth + 1)
            joined = f'"{some}" + {parts[0]}' if len(parts) == 1 else _join([f'"{some}"', *parts])
            state.line(depth + 1, f"{var} = {joined}")
        case shapes.Enumeration(enum_class=enum_class, symbols=symbols):
            _enumeration(state, enum_class, symbols, var, depth)
        case shapes.Sequence(items=shapes.Primitive(kind="string")):
            state.line(depth, f"if {var}:")
            state.line(depth + 1, f"{var} = encode_texts({var})")
            _end_list(state, var, depth)
        case shapes.Sequence(items=items):
            _sequence(state, items, var, depth)
        case shapes.RecordShape():
            return _record(state, shape, var, f"{var}_", depth)
        case shapes.Primitive(kind="long", logical="timestamp-millis"):
            return _time(state, var, depth)
        case shapes.Primitive(kind=kind):
            _primitive(state, kind, var, depth)
        case _:
            raise NotImplementedError(shape)
    return [var]


def _text(state: SourceState, lengths: str, some: str, condition: str, var: str, depth: int) -> list[str]:
    before = state.part(var, "length")
    state.line(depth, f"{condition} {var}.isascii() and (length := len({var})) < {varints.LIMIT}:")
    state.line(depth + 1, f"{before} = {lengths}[length]")
    state.line(depth, "else:")
    state.line(depth + 1, f'{var} = {var}.encode().decode("latin-1")')
    state.line(depth + 1, f"length = len({var})")
    state.line(depth + 1, f"{before} = {lengths}[length] if length < {varints.LIMIT} else {some}encode_long(length)")
    return [before, var]


def _primitive(state: SourceState, kind: str, var: str, depth: int) -> None:
    if kind == "boolean":
        state.line(depth, f"if {var} is False:")
        state.line(depth + 1, f'{var} = "\\x00"')
        state.line(depth, f"elif {var} is True:")
        state.line(depth + 1, f'{var} = "\\x01"')
        state.line(depth, "else:")
        state.line(depth + 1, f"raise Misfit({var})")
    elif kind in ("int", "long"):
        state.line(depth, f"if {var}.__class__ is int and 0 <= {var} < {varints.LIMIT}:")
        state.line(depth + 1, f"{var} = LENGTH[{var}]")
        state.line(depth, "else:")
        state.line(depth + 1, f"{var} = encode_{kind}({var})")
    elif kind == "bytes":
        state.line(depth, f"{var} = encode_bytes({var})")
    else:
        state.line(depth, f"{var} = write_{kind}({var})")


def _time(state: SourceState, var: str, depth: int) -> list[str]:
    # The first three bytes are looked up one by one. A table for two bytes has 16,384 entries, and the low bits of
    # times are spread over all entries, so that such a table would not stay in the CPU's cache.
    first, second, third, rest = (state.part(var, what) for what in ("byte_1", "byte_2", "byte_3", "bytes_4_5"))
    state.line(depth, f"if {var}.__class__ is int and TIME_MIN <= {var} < TIME_MAX:")
    state.line(depth + 1, f"number = {var} & 0xFFFFF")
    state.line(depth + 1, f"{first} = FIRST_BYTE[number & 0x3F]; {second} = MIDDLE_BYTE[number >> 6 & 0x7F]")
    state.line(depth + 1, f"{third} = MIDDLE_BYTE[number >> 13]")
    state.line(depth + 1, f"number = {var} >> 20")
    state.line(depth + 1, f"{rest} = PAIR[number & 0x3FFF]; {var} = TAIL[number >> 14]")
    state.line(depth, "else:")
    state.line(depth + 1, f'{first} = {second} = {third} = {rest} = ""; {var} = encode_time({var})')
    return [first, second, third, rest, var]


def _enumeration(state: SourceState, enum_class: Any, symbols: tuple[str, ...], var: str, depth: int) -> None:
    # Members are compared by identity, because hashing a member for a look-up runs Python code. UNKNOWN, the first
    # symbol of the schema, is compared last, because it is the rarest.
    order = [*range(1, len(symbols)), 0]
    for place, index in enumerate(order):
        member = state.constant(f"{enum_class.__name__}_{symbols[index]}", enum_class(symbols[index]))
        state.line(depth, f"{'elif' if place else 'if'} {var} is {member}:")
        state.line(depth + 1, f"{var} = {varints.encode_long(index)!a}")
    state.line(depth, "else:")
    state.line(depth + 1, f"raise Misfit({var})")


def _sequence(state: SourceState, items: shapes.Shape, var: str, depth: int) -> None:
    state.line(depth, f"if {var} and {var}.__class__ is list:")
    parts, item = state.part(var, "parts"), state.variable(item_of(var))
    state.line(depth + 1, f"length = len({var})")
    state.line(depth + 1, f"{parts} = [LENGTH[length] if length < {varints.LIMIT} else encode_long(length)]")
    state.line(depth + 1, f"for {item} in {var}:")
    of_item = _value(state, items, item, depth + 2)
    state.line(depth + 2, f"{parts} += ({', '.join(of_item)}{',' * (len(of_item) == 1)})")
    state.line(depth + 1, f'{var} = join({parts}) + "\\x00"')
    _end_list(state, var, depth)


def _end_list(state: SourceState, var: str, depth: int) -> None:
    """Add the branches for an empty list, and for a value that is not a list."""
    state.line(depth, f"elif {var}.__class__ is list:")
    state.line(depth + 1, f'{var} = "\\x00"')
    state.line(depth, "else:")
    state.line(depth + 1, f"raise Misfit({var})")

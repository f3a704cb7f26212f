"""The generator of decoders. It turns a writer's schema and the reader's shape into the source of a Python function.

The writer's schema may be the reader's own or another version. The generated function skips fields that the reader does
not have, uses the defaults of fields that the writer does not have, and converts numbers to wider types. The generator
decides once which of these steps a field needs, so that the function need not decide this for each record.

The function decodes the whole record as Latin-1 once, and each text is a slice of the result. This is faster than
decoding each text as UTF-8. Only slices that are not ASCII are decoded as UTF-8, from the original bytes.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

import attrs
from attrs import NOTHING

from rtfm.contracts import reference, shapes
from rtfm.contracts.compiled import varints
from rtfm.contracts.compiled.skipping import Unresolvable, build_skipper
from rtfm.contracts.compiled.source import SourceState, item_of
from rtfm.contracts.tree import Field, Node

_WIDER = {"long": ("int",), "float": ("int", "long"), "double": ("int", "long", "float")}


class NotCovered(Exception):
    """The compiled codec does not support a type of the schemas; fastavro does."""


def source(shape: shapes.RecordShape, writer: Node) -> tuple[str, dict[str, Any], dict[int, str]]:
    """Generate the function ``decode(data) -> event``.

    Return three things: the source, a dict from name to each object that the source uses, and a dict from line number
    to the path of the field that the line reads. Raises Unresolvable if the writer's records cannot be read as the
    event, and NotCovered if only fastavro supports a type.
    """
    state = SourceState(names={name: getattr(varints, name) for name in _RUNTIME})
    state.names.update(read_float=varints.float_codec("f")[1], read_double=varints.float_codec("d")[1])
    state.line(0, "def decode(data):", shape.name)
    state.line(1, 'text = data.decode("latin-1")', shape.name)
    state.line(1, "position = 5", shape.name)
    _record(state, writer, shape, "event", "", shape.event_class.__name__, 1)
    state.line(1, "if position != len(data):", shape.name)
    state.line(2, 'raise Misfit("the record does not end at the last byte")', shape.name)
    state.line(1, "return event", shape.name)
    return state.text(), state.names, state.paths()


_RUNTIME = [
    *("Misfit", "SHORT_LENGTH", "TIME_LOW", "TIME_MIDDLE", "TIME_HIGH", "read_three_pairs"),
    *("decode_long", "decode_int", "decode_length", "decode_count", "decode_texts"),
]


def _read(state: SourceState, node: Node, shape: shapes.Shape, target: str, path: str, depth: int) -> None:
    """Add the lines that read a value of the type ``node`` into the variable ``target``.

    The generated lines read the value at ``position``, and move ``position`` to the byte after the value.
    """
    if node.kind == "union":
        _union(state, node, shape, target, path, depth)
        return
    if isinstance(shape, shapes.Nullable):
        if node.kind == "null":
            state.line(depth, f"{target} = None", path)
        else:
            _read(state, node, shape.value, target, path, depth)
        return
    match shape:
        case shapes.RecordShape() if node.kind == "record":
            _record(state, node, shape, target, f"{target}_", path, depth)
        case shapes.Sequence(items=shapes.Primitive(kind="string")) if node.items and node.items.kind == "string":
            state.line(depth, f"{target}, position = decode_texts(data, text, position)", path)
        case shapes.Sequence(items=items) if node.kind == "array" and node.items is not None:
            item = state.variable(item_of(target))
            _begin_blocks(state, target, path, depth)
            _read(state, node.items, items, item, f"{path}[]", depth + 2)
            state.line(depth + 2, f"{state.part(target, 'append')}({item})", path)
            state.line(depth + 1, "byte = data[position]; position += 1", path)
        case shapes.Enumeration() if node.kind == "enum":
            _enumeration(state, node, shape, target, path, depth)
        case shapes.Primitive(kind=kind, logical=logical):
            _check_readable(node, kind, logical, path)
            _primitive(state, node.kind, kind, logical, target, path, depth)
        case shapes.Other():
            raise NotCovered(path)
        case _:
            raise Unresolvable(
                f"{path}: {node.kind} cannot be read as {type(shape).__name__.removesuffix('Shape').lower()}"
            )


def _check_readable(node: Node, kind: str, logical: str | None, path: str) -> None:
    """Raise Unresolvable unless a written ``node`` can be read as the primitive type ``kind``."""
    if not (node.kind == kind or node.kind in _WIDER.get(kind, ()) or {node.kind, kind} == {"string", "bytes"}):
        raise Unresolvable(f"{path}: {node.kind} cannot be read as {kind}")
    if node.logical and logical and node.logical != logical:
        raise Unresolvable(f"{path}: {node.logical} cannot be read as {logical}")


def _primitive(
    state: SourceState, written: str, kind: str, logical: str | None, target: str, path: str, depth: int
) -> None:
    def line(text: str, deeper: int = 0) -> None:
        state.line(depth + deeper, text, path)

    if kind in ("string", "bytes"):
        line("length = SHORT_LENGTH[data[position]]; position += 1")
        line("if length < 0: length, position = decode_length(data, position - 1)")
        line("end = position + length")
        if kind == "bytes":
            line(f"{target} = data[position:end]")
        else:
            line(f"{target} = text[position:end]")
            line(f"if not {target}.isascii(): {target} = data[position:end].decode()")
        line("position = end")
    elif kind == "boolean":
        line("byte = data[position]; position += 1")
        line('if byte > 1: raise Misfit("the byte of a boolean is neither 0 nor 1")')
        line(f"{target} = byte == 1")
    elif written in ("float", "double"):
        line(f"{target} = read_{written}(data, position)[0]; position += {4 if written == 'float' else 8}")
    elif logical == "timestamp-millis" and written == "long":
        line("try:")
        line("low, middle, high = read_three_pairs(data, position)", 1)
        line(f"{target} = TIME_LOW[low] + TIME_MIDDLE[middle] + TIME_HIGH[high]; position += 6", 1)
        line(f"except TABLE_MISSES: {target}, position = decode_long(data, position)")
    else:
        line("byte = data[position]")
        line(f"if byte < 128: {target} = (byte >> 1) ^ -(byte & 1); position += 1")
        line(f"else: {target}, position = decode_{written}(data, position)")
        if kind in ("float", "double"):
            line(f"{target} = float({target})")


def _enumeration(state: SourceState, node: Node, shape: shapes.Enumeration, target: str, path: str, depth: int) -> None:
    members = {}
    for index, symbol in enumerate(node.symbols):
        known = symbol if symbol in shape.symbols else shape.default
        if known is not None:
            members[index] = shape.enum_class(known)
    by_byte = {index << 1: member for index, member in members.items() if index < 64}
    enum = shape.enum_class.__name__
    of_byte, of_number = state.constant(f"{enum}_OF_BYTE", by_byte), state.constant(f"{enum}_OF_NUMBER", members)
    state.line(depth, f"{target} = {of_byte}.get(data[position]); position += 1", path)
    state.line(depth, f"if {target} is None:", path)
    state.line(depth + 1, "number, position = decode_int(data, position - 1)", path)
    state.line(depth + 1, f"{target} = {of_number}[number]", path)


def _union(state: SourceState, node: Node, shape: shapes.Shape, target: str, path: str, depth: int) -> None:
    if len(node.branches) > 63:
        raise NotCovered(path)
    state.line(depth, "byte = data[position]; position += 1", path)
    # Null is tested last, because most nullable fields are not null.
    order = sorted(range(len(node.branches)), key=lambda index: node.branches[index].kind == "null")
    for place, index in enumerate(order):
        state.line(depth, f"{'elif' if place else 'if'} byte == {index << 1}:", path)
        try:
            _read(state, node.branches[index], shape, target, path, depth + 1)
        except Unresolvable as exc:
            if not any(_is_resolvable(branch, shape) for branch in node.branches):
                raise
            state.line(depth + 1, f"raise Misfit({str(exc)!r})", path)
    state.line(depth, "else:", path)
    state.line(depth + 1, 'raise Misfit("the union has no such branch")', path)


def _is_resolvable(node: Node, shape: shapes.Shape) -> bool:
    try:
        _read(SourceState({}), node, shape, "x", "", 0)
    except Unresolvable:
        return False
    return True


def _begin_blocks(state: SourceState, target: str, path: str, depth: int) -> None:
    """Add the beginning of the loop over the items of an array.

    The caller must add the lines that read one item, and then the line that reads the first byte of the next block.
    """
    state.line(depth, f"{target} = []; {state.part(target, 'append')} = {target}.append", path)
    state.line(depth, "byte = data[position]; position += 1", path)
    state.line(depth, "while byte:", path)
    state.line(depth + 1, "length, _, position = decode_count(data, position - 1)", path)
    state.line(depth + 1, "for _ in range(length):", path)


def _record(
    state: SourceState, node: Node, shape: shapes.RecordShape, target: str, prefix: str, path: str, depth: int
) -> None:
    if node.short_name != shape.name.rpartition(".")[2]:
        raise Unresolvable(f"{path}: {node.name} cannot be read as {shape.name}")
    known = {slot.name: slot for slot in shape.slots}
    variables = {slot.name: state.variable(prefix + slot.name) for slot in shape.slots}
    written = {entry.name for entry in node.fields}
    for entry in node.fields:
        slot = known.get(entry.name)
        if slot is None:
            _skip_field(state, entry, path, depth)
        else:
            _read(state, entry.node, slot.shape, variables[slot.name], f"{path}.{slot.name}", depth)
    for slot in shape.slots:
        if slot.name not in written:
            if slot.default is NOTHING:
                raise Unresolvable(
                    f"{path}.{slot.name}: the writer's schema does not have this field, and it has no default"
                )
            made = _default(state, slot)
            state.line(depth, f"{variables[slot.name]} = {made}", f"{path}.{slot.name}")
    blank = build_blank(shape.event_class)
    known_class = state.constant(shape.event_class.__name__, shape.event_class)
    if blank is None:
        arguments = ", ".join(f"{name}={variable}" for name, variable in variables.items())
        state.line(depth, f"{target} = {known_class}({arguments})", path)
        return
    # The function fills an instance of a subclass that is not frozen, and then changes the class of this instance to
    # the frozen class. This takes a tenth of the time that the frozen class's constructor takes.
    state.line(depth, f"{target} = {state.constant(blank.__name__, blank)}()", path)
    for name, variable in variables.items():
        state.line(depth, f"{target}.{name} = {variable}", path)
    state.line(depth, f"{target}.__class__ = {known_class}", path)


def _default(state: SourceState, slot: shapes.Slot) -> str:
    shape, default = slot.shape, slot.default
    value = reference.build_event(shape, default)
    if type(value) in (str, int, bool, bytes, type(None)):
        return repr(value)
    make: Callable[[], Any] = lambda: reference.build_event(shape, default)  # noqa: E731 - a name for the generated source
    return state.constant(f"default_{slot.name}", make) + "()"


def _skip_field(state: SourceState, entry: Field, path: str, depth: int) -> None:
    name = state.constant(f"skip_{entry.name}", build_skipper(entry.node, {}, {}))
    state.line(depth, f"position = {name}(data, position)", f"{path}.{entry.name}")


def build_blank(event_class: type[Any]) -> type[Any] | None:
    """Build a subclass of the frozen class ``event_class``. Its instances can be filled field by field.

    A filled instance becomes an instance of ``event_class`` by an assignment to its ``__class__``. Return None if this
    is impossible: if the constructor of ``event_class`` does more than set fields, or if ``__class__`` cannot be
    assigned.
    """
    constructor = vars(event_class).get("__init__")
    only_sets = inspect.isfunction(constructor) and constructor.__code__.co_filename.startswith("<attrs generated")
    plain = all(entry.validator is None and entry.converter is None for entry in attrs.fields(event_class))
    hooks = ("__attrs_post_init__", "__attrs_pre_init__")
    if not (only_sets and plain) or any(hasattr(event_class, hook) for hook in hooks):
        return None
    namespace = {
        "__slots__": (),
        "__init__": object.__init__,
        "__setattr__": object.__setattr__,
        "__delattr__": object.__delattr__,
    }
    try:
        blank = type(f"{event_class.__name__}Blank", (event_class,), namespace)
        blank().__class__ = event_class
    except TypeError:
        return None
    return blank

"""The source of a decoder: from a writer's schema and the reader's shape to a Python function that reads it.

The writer's schema may be the reader's own or another version: fields that the reader lacks are stepped over, fields
that the writer lacks take their defaults, and numbers are widened, all decided here and not for each record. The text
of a record is taken as Latin-1 once and cut from that, which costs less than decoding each piece as UTF-8; pieces that
are not ASCII are decoded properly.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

import attrs
from attrs import NOTHING, define, field

from rtfm.contracts import reference, shapes, varints
from rtfm.contracts.tree import Field, Node, is_size, takes_no_bytes

_WIDER = {"long": ("int",), "float": ("int", "long"), "double": ("int", "long", "float")}


class Unresolvable(Exception):
    """Records of the writer's schema cannot be read as the event; the argument says where and why."""


class NotCovered(Exception):
    """The schemas have a type that only fastavro reads."""


@define
class DecoderState:
    """The lines written so far, the names that they use, and which field each line reads."""

    names: dict[str, Any] = field(factory=dict)
    lines: list[tuple[str, str]] = field(factory=list)
    functions: list[list[tuple[str, str]]] = field(factory=list)
    counter: int = 0

    def line(self, depth: int, text: str, path: str) -> None:
        """Add a line that reads ``path``, ``depth`` levels deep."""
        self.lines.append(("    " * depth + text, path))

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


def source(shape: shapes.Record, writer: Node) -> tuple[str, dict[str, Any], dict[int, str]]:
    """(source, names that it uses, line number → path) of ``decode(data) -> event``.

    Raises Unresolvable when the writer's records cannot be such events, NotCovered when that is for fastavro to say.
    """
    state = DecoderState(names={name: getattr(varints, name) for name in _RUNTIME})
    state.names.update(read_float=varints.floating("f")[1], read_double=varints.floating("d")[1])
    state.line(0, "def decode(data):", shape.name)
    state.line(1, 'text = data.decode("latin-1")', shape.name)
    state.line(1, "p = 5", shape.name)
    _record(state, writer, shape, "event", shape.event_class.__name__, 1)
    state.line(1, "if p != len(data):", shape.name)
    state.line(2, 'raise Misfit("it ends before or behind the last byte")', shape.name)
    state.line(1, "return event", shape.name)
    blocks = [*state.functions, state.lines]
    lines = [entry for block in blocks for entry in (*block, ("", ""), ("", ""))][:-2]
    text = "\n".join(line for line, _ in lines) + "\n"
    return text, state.names, {number: path for number, (_, path) in enumerate(lines, 1) if path}


_RUNTIME = [
    *("Misfit", "SHORT_LENGTH", "TIME_LOW", "TIME_MIDDLE", "TIME_HIGH", "read_three_pairs"),
    *("decode_long", "decode_int", "decode_length", "decode_count", "decode_texts"),
]


def _read(state: DecoderState, node: Node, shape: shapes.Shape, target: str, path: str, depth: int) -> None:
    """Write the lines that read a ``node`` at ``p`` into ``target`` and leave ``p`` behind it."""
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
        case shapes.Record() if node.kind == "record":
            _record(state, node, shape, target, path, depth)
        case shapes.Sequence(items=shapes.Primitive(kind="string")) if node.items and node.items.kind == "string":
            state.line(depth, f"{target}, p = decode_texts(data, text, p)", path)
        case shapes.Sequence(items=items) if node.kind == "array" and node.items is not None:
            _blocks(state, target, path, depth)
            _read(state, node.items, items, f"{target}i", f"{path}[]", depth + 2)
            state.line(depth + 2, f"{target}a({target}i)", path)
            state.line(depth + 1, "b = data[p]; p += 1", path)
        case shapes.Enumeration() if node.kind == "enum":
            _enumeration(state, node, shape, target, path, depth)
        case shapes.Primitive(kind=kind, logical=logical):
            if not (node.kind == kind or node.kind in _WIDER.get(kind, ()) or {node.kind, kind} == {"string", "bytes"}):
                raise Unresolvable(f"{path}: {node.kind} cannot be read as {kind}")
            if node.logical and logical and node.logical != logical:
                raise Unresolvable(f"{path}: {node.logical} cannot be read as {logical}")
            _primitive(state, node.kind, kind, logical, target, path, depth)
        case shapes.Other():
            raise NotCovered(path)
        case _:
            raise Unresolvable(f"{path}: {node.kind} cannot be read as {type(shape).__name__.lower()}")


def _primitive(
    state: DecoderState, written: str, kind: str, logical: str | None, target: str, path: str, depth: int
) -> None:
    def line(text: str, deeper: int = 0) -> None:
        state.line(depth + deeper, text, path)

    if kind in ("string", "bytes"):
        line("n = SHORT_LENGTH[data[p]]; p += 1")
        line("if n < 0: n, p = decode_length(data, p - 1)")
        line("q = p + n")
        if kind == "bytes":
            line(f"{target} = data[p:q]")
        else:
            line(f"{target} = text[p:q]")
            line(f"if not {target}.isascii(): {target} = data[p:q].decode()")
        line("p = q")
    elif kind == "boolean":
        line("b = data[p]; p += 1")
        line('if b > 1: raise Misfit("neither true nor false")')
        line(f"{target} = b == 1")
    elif written in ("float", "double"):
        line(f"{target} = read_{written}(data, p)[0]; p += {4 if written == 'float' else 8}")
    elif logical == "timestamp-millis" and written == "long":
        line("try:")
        line("x, y, z = read_three_pairs(data, p)", 1)
        line(f"{target} = TIME_LOW[x] + TIME_MIDDLE[y] + TIME_HIGH[z]; p += 6", 1)
        line(f"except TABLE_MISSES: {target}, p = decode_long(data, p)")
    else:
        line("b = data[p]")
        line(f"if b < 128: {target} = (b >> 1) ^ -(b & 1); p += 1")
        line(f"else: {target}, p = decode_{written}(data, p)")
        if kind in ("float", "double"):
            line(f"{target} = float({target})")


def _enumeration(
    state: DecoderState, node: Node, shape: shapes.Enumeration, target: str, path: str, depth: int
) -> None:
    members = {}
    for index, symbol in enumerate(node.symbols):
        known = symbol if symbol in shape.symbols else shape.default
        if known is not None:
            members[index] = shape.enum_class(known)
    by_byte = {index << 1: member for index, member in members.items() if index < 64}
    state.line(depth, f"{target} = {state.name('MEMBERS', by_byte)}.get(data[p]); p += 1", path)
    state.line(depth, f"if {target} is None:", path)
    state.line(depth + 1, "n, p = decode_int(data, p - 1)", path)
    state.line(depth + 1, f"{target} = {state.name('MEMBERS', members)}[n]", path)


def _union(state: DecoderState, node: Node, shape: shapes.Shape, target: str, path: str, depth: int) -> None:
    if len(node.branches) > 63:
        raise NotCovered(path)
    state.line(depth, "b = data[p]; p += 1", path)
    # Null last: a field that may be null mostly is not.
    order = sorted(range(len(node.branches)), key=lambda index: node.branches[index].kind == "null")
    for place, index in enumerate(order):
        state.line(depth, f"{'elif' if place else 'if'} b == {index << 1}:", path)
        try:
            _read(state, node.branches[index], shape, target, path, depth + 1)
        except Unresolvable as exc:
            if not any(_resolves(branch, shape) for branch in node.branches):
                raise
            state.line(depth + 1, f"raise Misfit({str(exc)!r})", path)
    state.line(depth, "else:", path)
    state.line(depth + 1, 'raise Misfit("no such branch of the union")', path)


def _resolves(node: Node, shape: shapes.Shape) -> bool:
    try:
        _read(DecoderState(), node, shape, "x", "", 0)
    except Unresolvable:
        return False
    return True


def _blocks(state: DecoderState, target: str, path: str, depth: int) -> None:
    """Begin the loop over the items of an array; the caller reads one item and then the next block's first byte."""
    state.line(depth, f"{target} = []; {target}a = {target}.append", path)
    state.line(depth, "b = data[p]; p += 1", path)
    state.line(depth, "while b:", path)
    state.line(depth + 1, f"{target}n, _, p = decode_count(data, p - 1)", path)
    state.line(depth + 1, f"for _ in range({target}n):", path)


def _record(state: DecoderState, node: Node, shape: shapes.Record, target: str, path: str, depth: int) -> None:
    if node.short_name != shape.name.rpartition(".")[2]:
        raise Unresolvable(f"{path}: {node.name} cannot be read as {shape.name}")
    known = {slot.name: slot for slot in shape.slots}
    variables = {slot.name: state.variable() for slot in shape.slots}
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
                raise Unresolvable(f"{path}.{slot.name}: the writer has no such field and the reader no default")
            made = _default(state, slot)
            state.line(depth, f"{variables[slot.name]} = {made}", f"{path}.{slot.name}")
    blank = blank_of(shape.event_class)
    known_class = state.name(shape.event_class.__name__, shape.event_class)
    if blank is None:
        arguments = ", ".join(f"{name}={variable}" for name, variable in variables.items())
        state.line(depth, f"{target} = {known_class}({arguments})", path)
        return
    # Assigned to a subclass that is not frozen yet, then frozen: a tenth of what the constructor costs.
    state.line(depth, f"{target} = {state.name('Blank', blank)}()", path)
    for name, variable in variables.items():
        state.line(depth, f"{target}.{name} = {variable}", path)
    state.line(depth, f"{target}.__class__ = {known_class}", path)


def _default(state: DecoderState, slot: shapes.Slot) -> str:
    value = reference.build(_without_null(slot), slot.default)
    if isinstance(value, (str, int, float, bytes, type(None))) and not isinstance(slot.shape, shapes.Sequence):
        return state.name(f"DEFAULT_{slot.name}", value)
    shape, default = _without_null(slot), slot.default
    make: Callable[[], Any] = lambda: reference.build(shape, default)  # noqa: E731 - a name for the generated source
    return state.name(f"default_{slot.name}", make) + "()"


def _without_null(slot: shapes.Slot) -> shapes.Shape:
    if isinstance(slot.shape, shapes.Nullable) and slot.default is not None:
        return slot.shape.value
    return slot.shape


def _skip_field(state: DecoderState, entry: Field, path: str, depth: int) -> None:
    name = state.name("skip", skipper(entry.node, {}, {}))
    state.line(depth, f"p = {name}(data, p)", f"{path}.{entry.name}")


Skip = Callable[[bytes, int], int]


def skipper(node: Node, made: dict[int, Skip], empty: dict[int, bool]) -> Skip:
    """A function from (data, position of a ``node``) to the position behind it; IndexError or Misfit when cut short.

    Raises Unresolvable for a type that cannot be. ``made`` holds the functions of the records above, so that a
    recursive one finds itself, ``empty`` which records take no bytes.
    """
    if id(node) in made:
        return made[id(node)]
    if takes_no_bytes(node, empty):
        # At once: such records can be nested so that they have more fields than anybody can step over.
        return lambda _, p: p
    if node.kind == "fixed" and not is_size(node.size):
        raise Unresolvable(f"{node.name} has the size {node.size!r}")
    match node.kind:
        case "null" | "boolean" | "float" | "double" | "fixed":
            width = {"null": 0, "boolean": 1, "float": 4, "double": 8}.get(node.kind, node.size)
            return lambda _, p: p + width
        case "int" | "long" | "enum":
            return lambda data, p: varints.decode_long(data, p)[1]
        case "string" | "bytes":
            return lambda data, p: sum(varints.decode_length(data, p))
        case "union":
            branches = [skipper(branch, made, empty) for branch in node.branches]
            return lambda data, p: _skip_union(branches, data, p)
        case "record":
            parts: list[Skip] = []
            made[id(node)] = lambda data, p: _skip_all(parts, data, p)
            parts.extend(skipper(entry.node, made, empty) for entry in node.fields)
            return made[id(node)]
        case _:
            assert node.items is not None  # noqa: S101 - what is left are arrays and maps
            inner = [skipper(node.items, made, empty)]
            if node.kind == "map":
                inner.insert(0, skipper(Node("string"), made, empty))
            return lambda data, p: _skip_blocks(inner, data, p)


def _skip_union(branches: list[Skip], data: bytes, p: int) -> int:
    index, p = varints.decode_long(data, p)
    if not 0 <= index < len(branches):
        raise varints.Misfit("no such branch of the union")
    return branches[index](data, p)


def _skip_all(parts: list[Skip], data: bytes, p: int) -> int:
    for part in parts:
        p = part(data, p)
    return p


def _skip_blocks(inner: list[Skip], data: bytes, p: int) -> int:
    while data[p]:
        count, size, p = varints.decode_count(data, p)
        if size >= 0:
            p += size
        else:
            for _ in range(count):
                before = p
                p = _skip_all(inner, data, p)
                if p == before:
                    break  # items that take no bytes: there may be as many as the record has bytes, in each block
    return p + 1


def blank_of(event_class: type[Any]) -> type[Any] | None:
    """A subclass of a frozen attrs class whose instances can be filled field by field and then become of that class.

    None where the constructor does more than set fields, or the class cannot be changed this way.
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

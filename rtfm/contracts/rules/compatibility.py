"""The check that a schema is compatible with its released versions. Pure.

Each level says which schema must be able to read which records
(https://docs.confluent.io/platform/current/schema-registry/fundamentals/schema-evolution.html):

- BACKWARD: the new schema must be able to read records of the old schema.
- FORWARD: the old schema must be able to read records of the new schema.
- FULL: both.

A transitive level compares the new schema with every released version. Any other level, except NONE, compares the new
schema with the newest released version only. NONE compares nothing.

Whether a schema can read a record is decided as in Java's Avro, which registries use. Avro's Python checker then looks
for incompatibilities that this module missed. At every level except NONE, the project's own rules in ``history`` apply
too.
"""

from __future__ import annotations

import json
import warnings
from collections.abc import Iterator, Mapping
from typing import Any

from attrs import frozen

from rtfm.contracts.catalogue import Schema
from rtfm.contracts.rules import history
from rtfm.contracts.rules.findings import Breach, Finding
from rtfm.contracts.tree import Node, field_path, items_path, parse, walk

# https://avro.apache.org/docs/1.12.0/specification/#schema-resolution
_WIDENS_TO = {
    "int": ("long", "float", "double"),
    "long": ("float", "double"),
    "float": ("double",),
    "string": ("bytes",),
    "bytes": ("string",),
}


@frozen
class Gap:
    """A place where a reader's schema cannot read records of a writer's schema.

    ``path`` is the place and ``rule`` the name of the broken rule. If the rule compares types, names or sizes,
    ``written`` is that of the writer's schema, and ``expected`` is that of the reader's schema. For other rules,
    ``detail`` says what is wrong.
    """

    path: str
    rule: str
    detail: str = ""
    written: str = ""
    expected: str = ""


def find_violations(subject: str, schema: Schema, released: Mapping[int, Schema], level: str) -> list[Finding]:
    """Return the rules that ``schema`` breaks as the next version of ``subject``, under the compatibility ``level``.

    Messages refer to ``schema`` by the number of the newest version if ``schema`` equals that version, and otherwise by
    the number of the next version.
    """
    newest = max(released, default=0)
    number = newest if schema == released.get(newest) else newest + 1
    found = []
    for version, old in versions_to_compare(released, level).items():
        breaches = []
        if level.startswith(("BACKWARD", "FULL")):
            breaches += [("backward", _to_breach(gap, backward=True)) for gap in find_gaps(schema, old)]
        if level.startswith(("FORWARD", "FULL")):
            breaches += [("forward", _to_breach(gap, backward=False)) for gap in find_gaps(old, schema)]
        breaches += [("history", change) for change in history.find_breaches(parse(old), parse(schema))]
        consequence = {
            "backward": f", so readers of v{number} cannot read v{version}",
            "forward": f", so readers of v{version} cannot read v{number}",
            "history": f" against v{version}",
        }
        found += [
            Finding(
                kind="compatibility",
                subject=subject,
                rule=breach.rule,
                path=breach.path,
                message=f"{subject} v{number}: {breach.what}{consequence[direction]}; {breach.fix}",
                version=version,
                direction=direction,
                fix=breach.fix,
                what=breach.what,
            )
            for direction, breach in breaches
        ]
    return found


def versions_to_compare(released: Mapping[int, Schema], level: str) -> dict[int, Schema]:
    """Return the released versions that ``level`` compares a new version with."""
    if level == "NONE":
        return {}
    versions = sorted(released)
    return {version: released[version] for version in (versions if level.endswith("_TRANSITIVE") else versions[-1:])}


def is_accepted(schema: Schema, old: Schema, level: str) -> bool:
    """Return whether ``schema`` may follow ``old`` under ``level``, without the project's own rules."""
    backward = can_read(schema, old) if level.startswith(("BACKWARD", "FULL")) else True
    return backward and (can_read(old, schema) if level.startswith(("FORWARD", "FULL")) else True)


def can_read(reader: Schema, writer: Schema) -> bool:
    """Return whether ``reader`` can read every record of ``writer``, without the project's own rules."""
    return not find_gaps(reader, writer)


def find_gaps(reader: Schema, writer: Schema) -> list[Gap]:
    """Return every place where ``reader`` cannot read records of ``writer``; empty if it can read them all."""
    found = list(dict.fromkeys(_find_gaps(parse(reader), parse(writer), "", set())))
    if not found and (why := _check_with_avro(reader, writer)):
        found.append(Gap("", "avro", why))
    return found


def unremovable_fields(released: Mapping[int, Schema], level: str) -> list[str]:
    """Return the paths of the fields that no later version may omit.

    These are the fields that have no default in a released version. A reader with that version could not read a record
    without such a field.
    """
    versions = versions_to_compare(released, level) if level.startswith(("FORWARD", "FULL")) else {}
    types = (part for version in versions.values() for part in walk(parse(version)))
    paths = (field_path(path, entry.name) for path, node in types for entry in node.fields if not entry.has_default)
    return list(dict.fromkeys(paths))


def _find_gaps(reader: Node, writer: Node, path: str, seen: set[tuple[int, int]]) -> Iterator[Gap]:
    if (id(reader), id(writer)) in seen:
        return  # a recursive type, already being compared
    seen = seen | {(id(reader), id(writer))}
    if writer.kind == "union":
        yield from _find_gaps_of_written_union(reader, writer, path, seen)
    elif reader.kind == "union":
        yield from _find_gaps_of_read_union(reader, writer, path, seen)
    elif reader.kind != writer.kind:
        if reader.kind not in _WIDENS_TO.get(writer.kind, ()):
            yield Gap(path, "type", "", _name(writer), _name(reader))
    elif reader.items is not None and writer.items is not None:
        yield from _find_gaps(reader.items, writer.items, items_path(path, reader), seen)
    elif reader.name:
        yield from _find_named_gaps(reader, writer, path, seen)


def _find_gaps_of_written_union(reader: Node, writer: Node, path: str, seen: set[tuple[int, int]]) -> Iterator[Gap]:
    for branch in writer.branches:
        if reader.kind == "union" or len(writer.branches) == 1:
            yield from _find_gaps(reader, branch, path, seen)
        elif any(True for _ in _find_gaps(reader, branch, path, seen)):
            yield Gap(path, "type", "", _name(writer), _name(reader))
            return


def _find_gaps_of_read_union(reader: Node, writer: Node, path: str, seen: set[tuple[int, int]]) -> Iterator[Gap]:
    inside = [list(_find_gaps(branch, writer, path, seen)) for branch in reader.branches]
    if all(inside):
        alike = [found for branch, found in zip(reader.branches, inside, strict=True) if branch.kind == writer.kind]
        named = writer.kind in ("record", "enum", "array", "map") and len(alike) == 1
        yield from alike[0] if named else [Gap(path, "union-branch", "", _name(writer), _name(reader))]


def _find_named_gaps(reader: Node, writer: Node, path: str, seen: set[tuple[int, int]]) -> Iterator[Gap]:
    if reader.short_name != writer.short_name and writer.name not in reader.aliases:
        yield Gap(path, "name", "", writer.name, reader.name)
    if reader.size != writer.size:
        yield Gap(path, "size", "", str(writer.size), str(reader.size))
    missing = [symbol for symbol in writer.symbols if symbol not in reader.symbols]
    if missing and reader.default not in reader.symbols:
        yield Gap(path, "enum-symbol", ", ".join(missing))
    written = {entry.name: entry for entry in writer.fields}
    for entry in reader.fields:
        name = next((known for known in (entry.name, *entry.aliases) if known in written), None)
        where = field_path(path, entry.name)
        if name is not None:
            yield from _find_gaps(entry.node, written[name].node, where, seen)
        elif not entry.has_default:
            yield Gap(where, "default", _name(entry.node))


def _to_breach(gap: Gap, *, backward: bool) -> Breach:
    """Describe ``gap`` for the person who changes the schema."""
    at = f"`{gap.path}`" if gap.path else "the record"
    old, new = (gap.written, gap.expected) if backward else (gap.expected, gap.written)
    match gap.rule, backward:
        case "default", True:
            what, fix = f"the new field {at} has no default", "add a default"
        case "default", False:
            what, fix = f"the field {at} is removed, but it had no default", "keep the field"
        case "enum-symbol", True:
            what = f"the symbol {gap.detail} is removed from {at}, whose enum has no default"
            fix = "keep the symbol"
        case "enum-symbol", False:
            what = f"the symbol {gap.detail} is added to {at}, whose enum had no default"
            fix = "use only the old symbols, or add a new field for the new symbols"
        case (("type" | "union-branch"), _):
            what, fix = f"{at} changes from {old} to {new}", f"keep {old}, or add a new field with a default"
        case "name", _:
            what, fix = (
                f"the type of {at} changes its name from {old} to {new}",
                f"keep the name, or add the alias {old}",
            )
        case "size", _:
            what, fix = f"{at} changes its size from {old} to {new} bytes", "keep the size"
        case _:
            what, fix = f"{at}: {gap.detail}", "keep the released form"
    return Breach(gap.path, gap.rule, what, fix)


def _name(node: Node) -> str:
    if node.kind == "union":
        return "[" + ", ".join(_name(branch) for branch in node.branches) + "]"
    if node.items is not None:
        return f"{node.kind} of {_name(node.items)}"
    return node.name or node.kind


def _check_with_avro(reader: Schema, writer: Schema) -> str | None:
    """Return why Avro's Python checker finds the schemas incompatible; None if it does not, or cannot parse them."""
    import avro.compatibility
    import avro.errors
    import avro.schema

    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", avro.errors.IgnoredLogicalType)  # ``lint`` reports these, with the place
            reading, written = (
                avro.schema.parse(json.dumps(_qualify_aliases(schema, ""))) for schema in (reader, writer)
            )
    except avro.errors.AvroException:
        return None  # the schema is malformed, and ``lint`` reports how
    checker: Any = avro.compatibility.ReaderWriterCompatibilityChecker
    result = checker().get_compatibility(reading, written)
    if result.compatibility is avro.compatibility.SchemaCompatibilityType.compatible:
        return None
    return "; ".join(sorted(result.messages)) or "the schemas do not resolve"


def _qualify_aliases(schema: Any, namespace: str) -> Any:
    """Return ``schema`` with the namespace added to every alias that has none.

    Avro's specification says that such an alias is in the namespace of its type. Avro's Python checker does not apply
    this rule.
    """
    if isinstance(schema, list):
        return [_qualify_aliases(branch, namespace) for branch in schema]
    if not isinstance(schema, dict):
        return schema
    inner = schema.get("namespace", namespace)
    changed = {
        key: _qualify_aliases(value, inner) if key in ("type", "items", "values") else value
        for key, value in schema.items()
    }
    if "fields" in schema:
        changed["fields"] = [entry | {"type": _qualify_aliases(entry["type"], inner)} for entry in schema["fields"]]
    if "aliases" in schema:
        changed["aliases"] = [alias if "." in alias or not inner else f"{inner}.{alias}" for alias in schema["aliases"]]
    return changed

"""Random pairs of schemas for comparing checks of compatibility: a schema, and the same one with changes."""

from __future__ import annotations

import copy
import random
from collections.abc import Callable
from typing import Any

Schema = dict[str, Any]

PRIMITIVES = ("boolean", "int", "long", "float", "double", "bytes", "string")
DEFAULTS: dict[str, Any] = {
    "boolean": False,
    "int": 0,
    "long": 0,
    "float": 0.0,
    "double": 0.0,
    "bytes": "",
    "string": "",
}


def base(chance: random.Random, number: int) -> Schema:
    """Return a record schema with a field of each kind of type, in random order and with random primitive types."""
    fields = [
        _field("plain", chance.choice(PRIMITIVES)),
        _field("number", chance.choice(("int", "long", "float"))),
        _field("with_default", (kind := chance.choice(PRIMITIVES)), default=DEFAULTS[kind]),
        _field("maybe", ["null", chance.choice(PRIMITIVES)], default=None),
        _field("one_of", chance.choice((["string", "long"], ["null", "string", "int"], ["long", "bytes"]))),
        _field("enum", _enum("Kind", ["A", "B", "C"], default="A")),
        _field("strict_enum", _enum("Strict", ["X", "Y"])),
        _field("items", {"type": "array", "items": chance.choice(PRIMITIVES)}),
        _field("by_key", {"type": "map", "values": chance.choice(PRIMITIVES)}),
        _field("hash", {"type": "fixed", "name": "Hash", "size": 8}),
        _field("at", {"type": "long", "logicalType": "timestamp-millis"}, doc="A time, in milliseconds."),
        _field("inner", _record("Inner", [_field("a", "string"), _field("b", "long", default=0)])),
        _field("list", {"type": "array", "items": _record("Item", [_field("c", chance.choice(PRIMITIVES))])}),
        _field("maybe_inner", ["null", _record("Deep", [_field("d", "int"), _field("e", ["null", "string"])])]),
        _field("tree", _record("Tree", [_field("value", "int"), _field("next", ["null", "Tree"], default=None)])),
    ]
    chance.shuffle(fields)
    return _record(f"Thing{number}", fields, namespace="pairs")


def changed(chance: random.Random, schema: Schema) -> tuple[Schema, str]:
    """Return ``schema`` with one or two changes, and a description of them."""
    made, done = copy.deepcopy(schema), []
    for _ in range(chance.choice((1, 1, 1, 2))):
        change = chance.choice(CHANGES)
        change(chance, made)
        done.append(change.__name__)
    return made, ", ".join(done)


def _field(name: str, kind: Any, **more: Any) -> Schema:
    return {"name": name, "type": kind, "doc": "A field."} | more


def _record(name: str, fields: list[Schema], **more: Any) -> Schema:
    return {"type": "record", "name": name, "doc": "A record.", "fields": fields} | more


def _enum(name: str, symbols: list[str], **more: Any) -> Schema:
    return {"type": "enum", "name": name, "doc": "An enum.", "symbols": symbols} | more


def _records(schema: Any) -> list[Schema]:
    """Return all record schemas in ``schema``, the outermost first."""
    if isinstance(schema, list):
        return [found for branch in schema for found in _records(branch)]
    if not isinstance(schema, dict):
        return []
    if schema["type"] == "record":
        return [schema] + [found for entry in schema["fields"] for found in _records(entry["type"])]
    return _records(schema.get("items", schema.get("values")))


def _any_field(chance: random.Random, schema: Schema) -> Schema:
    record = chance.choice([known for known in _records(schema) for _ in (1, 2)[: 1 + (known is schema)]])
    return chance.choice(record["fields"]) if record["fields"] else _find(schema, "plain") or schema["fields"][0]


def _find(schema: Schema, name: str) -> Schema | None:
    return next((entry for entry in schema["fields"] if entry["name"] == name), None)


def add_field(chance: random.Random, schema: Schema) -> None:
    chance.choice(_records(schema))["fields"].append(_field("added", chance.choice(PRIMITIVES)))


def add_field_with_default(chance: random.Random, schema: Schema) -> None:
    kind = chance.choice(PRIMITIVES)
    chance.choice(_records(schema))["fields"].append(_field("added_too", kind, default=DEFAULTS[kind]))


def add_enum_field(chance: random.Random, schema: Schema) -> None:
    """Add a field that has no default, but whose enum has one."""
    schema["fields"].append(_field("added_enum", _enum("Added", ["P", "Q"], default="P")))


def remove_field(chance: random.Random, schema: Schema) -> None:
    fields = chance.choice(_records(schema))["fields"]
    if len(fields) > 1 and (entry := chance.choice(fields))["name"] not in ("tree", "value", "next"):
        fields.remove(entry)


def lose_default(chance: random.Random, schema: Schema) -> None:
    _any_field(chance, schema).pop("default", None)


def change_type(chance: random.Random, schema: Schema) -> None:
    entry = _any_field(chance, schema)
    if isinstance(entry["type"], str) and entry["type"] in PRIMITIVES:
        entry["type"] = chance.choice(PRIMITIVES)
        if "default" in entry:
            entry["default"] = DEFAULTS[entry["type"]]


def widen(chance: random.Random, schema: Schema) -> None:
    if entry := _find(schema, "number"):
        entry["type"] = {"int": "long", "long": "double", "float": "double", "double": "float"}.get(
            entry["type"], "int"
        )


def narrow(chance: random.Random, schema: Schema) -> None:
    if entry := _find(schema, "number"):
        entry["type"] = {"long": "int", "float": "long", "int": "string"}.get(entry["type"], "int")


def make_nullable(chance: random.Random, schema: Schema) -> None:
    entry = _any_field(chance, schema)
    if isinstance(entry["type"], str) and entry["type"] in PRIMITIVES:
        entry["type"] = ["null", entry["type"]]
        entry.pop("default", None)


def make_required(chance: random.Random, schema: Schema) -> None:
    if (entry := _find(schema, "maybe")) and isinstance(entry["type"], list):
        entry["type"] = entry["type"][1]
        entry.pop("default", None)


def add_branch(chance: random.Random, schema: Schema) -> None:
    if (entry := _find(schema, "one_of")) and isinstance(entry["type"], list):
        entry["type"] = entry["type"] + [kind for kind in ("boolean", "double") if kind not in entry["type"]][:1]


def remove_branch(chance: random.Random, schema: Schema) -> None:
    if (entry := _find(schema, "one_of")) and isinstance(entry["type"], list) and len(entry["type"]) > 1:
        entry["type"] = entry["type"][:-1]


def reorder_branches(chance: random.Random, schema: Schema) -> None:
    if (entry := _find(schema, "one_of")) and isinstance(entry["type"], list):
        entry["type"] = entry["type"][::-1]


def collapse_union(chance: random.Random, schema: Schema) -> None:
    if (entry := _find(schema, "one_of")) and isinstance(entry["type"], list):
        entry["type"] = entry["type"][-1]


def add_symbol(chance: random.Random, schema: Schema) -> None:
    if (entry := _find(schema, chance.choice(("enum", "strict_enum")))) and isinstance(entry["type"], dict):
        entry["type"]["symbols"] = [*entry["type"]["symbols"], "NEW"]


def remove_symbol(chance: random.Random, schema: Schema) -> None:
    if (entry := _find(schema, chance.choice(("enum", "strict_enum")))) and isinstance(entry["type"], dict):
        entry["type"]["symbols"] = entry["type"]["symbols"][:-1]


def reorder_symbols(chance: random.Random, schema: Schema) -> None:
    if (entry := _find(schema, chance.choice(("enum", "strict_enum")))) and isinstance(entry["type"], dict):
        entry["type"]["symbols"] = entry["type"]["symbols"][::-1]


def change_enum_default(chance: random.Random, schema: Schema) -> None:
    if (entry := _find(schema, "enum")) and isinstance(entry["type"], dict):
        entry["type"]["default"] = entry["type"]["symbols"][-1]


def lose_enum_default(chance: random.Random, schema: Schema) -> None:
    if (entry := _find(schema, "enum")) and isinstance(entry["type"], dict):
        entry["type"].pop("default", None)


def rename_record(chance: random.Random, schema: Schema) -> None:
    """Rename the record type of the field ``inner``."""
    if (entry := _find(schema, "inner")) and isinstance(entry["type"], dict):
        entry["type"]["name"] = "Renamed"


def rename_record_with_alias(chance: random.Random, schema: Schema) -> None:
    if (entry := _find(schema, "inner")) and isinstance(entry["type"], dict) and entry["type"]["name"] == "Inner":
        entry["type"] |= {"name": "Aliased", "aliases": ["Inner"]}


def rename_root(chance: random.Random, schema: Schema) -> None:
    schema["name"] = "Another"


def change_namespace(chance: random.Random, schema: Schema) -> None:
    schema["namespace"] = "elsewhere"


def rename_field(chance: random.Random, schema: Schema) -> None:
    if entry := _find(schema, "plain"):
        entry["name"] = "renamed"


def rename_field_with_alias(chance: random.Random, schema: Schema) -> None:
    if entry := _find(schema, "plain"):
        entry |= {"name": "aliased", "aliases": ["plain"]}


def resize(chance: random.Random, schema: Schema) -> None:
    if (entry := _find(schema, "hash")) and isinstance(entry["type"], dict):
        entry["type"]["size"] = 16


def change_items(chance: random.Random, schema: Schema) -> None:
    if (entry := _find(schema, "items")) and isinstance(entry["type"], dict):
        entry["type"]["items"] = chance.choice(PRIMITIVES)


def change_values(chance: random.Random, schema: Schema) -> None:
    if (entry := _find(schema, "by_key")) and isinstance(entry["type"], dict):
        entry["type"]["values"] = chance.choice(PRIMITIVES)


def array_becomes_map(chance: random.Random, schema: Schema) -> None:
    if (entry := _find(schema, "items")) and isinstance(entry["type"], dict):
        entry["type"] = {"type": "map", "values": entry["type"].get("items", "string")}


def change_logical_type(chance: random.Random, schema: Schema) -> None:
    if (entry := _find(schema, "at")) and isinstance(entry["type"], dict):
        entry["type"] = chance.choice(({"type": "long", "logicalType": "timestamp-micros"}, "long"))


def change_doc(chance: random.Random, schema: Schema) -> None:
    _any_field(chance, schema)["doc"] = "Said in other words."


def reorder_fields(chance: random.Random, schema: Schema) -> None:
    """Move fields of simple types only, because a named type must be defined before its name is used."""
    plain = [entry for entry in schema["fields"] if isinstance(entry["type"], str)]
    for entry in plain:
        schema["fields"].remove(entry)
    schema["fields"][:0] = plain[::-1]


def change_inside_tree(chance: random.Random, schema: Schema) -> None:
    """Change a type inside a record that contains itself."""
    if (entry := _find(schema, "tree")) and isinstance(entry["type"], dict):
        entry["type"]["fields"][0]["type"] = chance.choice(("long", "string"))


Change = Callable[[random.Random, Schema], None]
CHANGES: list[Change] = [
    *(add_field, add_field_with_default, add_enum_field, remove_field, lose_default, change_type, widen, narrow),
    *(make_nullable, make_required, add_branch, remove_branch, reorder_branches, collapse_union),
    *(add_symbol, remove_symbol, reorder_symbols, change_enum_default, lose_enum_default),
    *(rename_record, rename_record_with_alias, rename_root, change_namespace, rename_field, rename_field_with_alias),
    *(resize, change_items, change_values, array_becomes_map, change_logical_type, change_doc),
    *(reorder_fields, change_inside_tree),
]


def pairs(count: int, bases: int, seed: int = 7) -> list[tuple[int, Schema, Schema, str]]:
    """Return ``count`` pairs as (number of the old schema, old, new, changes).

    The first pairs have one change each, in the order of ``CHANGES``. The others have random changes.
    """
    chance = random.Random(seed)
    old = [base(chance, number) for number in range(bases)]
    made = []
    for number in range(count):
        before = old[number % bases]
        if number < len(CHANGES):
            after, what = copy.deepcopy(before), CHANGES[number].__name__
            CHANGES[number](chance, after)
        else:
            after, what = changed(chance, before)
        made.append((number % bases, before, after, what))
    return made

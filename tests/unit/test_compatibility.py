"""Incompatible changes of a schema, by Avro's rules and by this project's rules, and faults of a single schema."""

from __future__ import annotations

import json
from typing import Any

import pytest

from rtfm.contracts import catalogue
from rtfm.contracts.catalogue import Topic
from rtfm.contracts.release import topic_findings
from rtfm.contracts.rules import difference, lint
from rtfm.contracts.rules.compatibility import can_read, find_violations, unremovable_fields

SUBJECT = "bot-queries-value"


def record(*fields: Any, **more: Any) -> dict[str, Any]:
    return {"type": "record", "name": "Thing", "namespace": "rtfm.events", "doc": "A thing.", "fields": fields} | more


def field(name: str, kind: Any = "string", **more: Any) -> dict[str, Any]:
    return {"name": name, "type": kind, "doc": "A field."} | more


def enum(*symbols: str, **more: Any) -> dict[str, Any]:
    return {"type": "enum", "name": "Kind", "doc": "A kind.", "symbols": list(symbols)} | more


def rules(old: Any, new: Any, level: str = "FULL_TRANSITIVE") -> set[tuple[str | None, str]]:
    return {(entry.direction, entry.rule) for entry in find_violations(SUBJECT, new, {1: old}, level)}


def test_a_new_field_without_default_is_named_with_its_fix_and_whom_it_breaks() -> None:
    """A violation names subject, version, field, rule, fix, producers and consumers."""
    topic = Topic(
        name="bot-queries",
        doc="Questions.",
        key="a",
        partitions=1,
        retention_h=1,
        schema=record(field("a"), field("locale")),
        schema_file="bot-query.avsc",
        compatibility="FULL_TRANSITIVE",
        producers=("bot",),
        consumers=("processor: answer",),
    )
    found = topic_findings(topic, {1: record(field("a"))})
    assert [entry.message for entry in found] == [
        "bot-queries-value v2: the new field `locale` has no default, so readers of v2 cannot read v1; add a default"
    ]
    assert (found[0].path, found[0].rule) == ("locale", "default")
    assert (found[0].producers, found[0].consumers) == (("bot",), ("processor: answer",))


TIME = {"type": "long", "logicalType": "timestamp-millis"}
MICROS = {"type": "long", "logicalType": "timestamp-micros"}


@pytest.mark.parametrize(
    ("old", "new", "rule"),
    [
        (field("x"), None, ("forward", "default")),
        (field("x", "int"), field("x", "string"), ("backward", "type")),
        (field("x", "int"), field("x", "long"), ("forward", "type")),
        (field("x", ["null", "string"]), field("x"), ("backward", "type")),
        (field("x"), field("x", ["null", "string"]), ("forward", "type")),
        (field("x", ["null", "string"]), field("x", ["null", "int"]), ("backward", "union-branch")),
        (field("x", enum("A")), field("x", enum("A", "B")), ("forward", "enum-symbol")),
        (field("x", TIME), field("x", MICROS), ("history", "logical-type")),
        (field("x", TIME), field("x", "long"), ("history", "logical-type")),
        (
            field("x", enum("A", "B", default="A")),
            field("x", enum("A", default="A")),
            ("history", "enum-symbol-removed"),
        ),
        (field("x", enum("A", "B", default="A")), field("x", enum("A", "B", default="B")), ("history", "enum-default")),
        (field("x", enum("A", "B", default="A")), field("x", enum("B", "A", default="A")), ("history", "enum-order")),
        (field("x", ["null", "int"]), field("x", ["int", "null"]), ("history", "union-order")),
        (
            field("x", enum("A", default="A")),
            field("x", enum("A", default="A", namespace="b")),
            ("history", "namespace"),
        ),
    ],
)
def test_a_breaking_change_is_found_by_its_rule(old: Any, new: Any, rule: tuple[str, str]) -> None:
    """A breaking change of one field is found, with its direction and its rule."""
    assert rule in rules(record(field("a"), old), record(field("a"), *([new] if new else [])))


@pytest.mark.parametrize(
    ("old", "new"),
    [
        (None, field("x", default="")),
        (field("x", default=""), None),
        (field("x", enum("A", default="A")), field("x", enum("A", "B", default="A"))),
        (field("x"), field("x", doc="Said in other words.")),
        (field("x", "string"), field("x", "bytes")),
    ],
)
def test_a_compatible_change_passes(old: Any, new: Any) -> None:
    """Fields with defaults may be added or removed, enums with defaults may get symbols, and docs may change."""
    versions = [record(field("a"), *([entry] if entry else [])) for entry in (old, new)]
    assert rules(versions[0], versions[1]) == set()


# BACKWARD_BREAK breaks only new readers of old records, and FORWARD_BREAK only old readers of new records.
BACKWARD_BREAK = (record(field("a")), record(field("a"), field("x")))
FORWARD_BREAK = (record(field("a"), field("x")), record(field("a")))


@pytest.mark.parametrize(
    ("level", "backward", "forward"),
    [("NONE", 0, 0)]
    + [
        (f"{name}{suffix}", b, f)
        for name, b, f in (("BACKWARD", 1, 0), ("FORWARD", 0, 1), ("FULL", 1, 1))
        for suffix in ("", "_TRANSITIVE")
    ],
)
def test_each_level_checks_its_own_directions(level: str, backward: int, forward: int) -> None:
    """Each of Confluent's seven levels checks its own directions."""
    assert len(rules(*BACKWARD_BREAK, level)) == backward
    assert len(rules(*FORWARD_BREAK, level)) == forward


@pytest.mark.parametrize(("level", "count"), [("BACKWARD", 0), ("BACKWARD_TRANSITIVE", 1), ("FULL_TRANSITIVE", 1)])
def test_only_a_transitive_level_compares_with_versions_before_the_newest(level: str, count: int) -> None:
    """Only a transitive level compares a schema with versions before the newest.

    In the test, the field x has no default, had a default in version 2, and did not exist in version 1.
    """
    released = {1: record(field("a")), 2: record(field("a"), field("x", default=""))}
    found = find_violations(SUBJECT, record(field("a"), field("x")), released, level)
    assert [entry.version for entry in found] == [1] * count


def test_a_violation_deep_inside_has_its_whole_path() -> None:
    """A violation inside an array, a union and a record is reported with its whole path."""

    def nested(*more: Any) -> Any:
        inner = record(field("a"), *more, name="Inner")
        return record(field("list", {"type": "array", "items": ["null", inner]}))

    found = find_violations(SUBJECT, nested(field("b")), {1: nested()}, "BACKWARD")
    assert [entry.path for entry in found] == ["list[].b"]


def test_a_recursive_schema_is_compared_to_its_end() -> None:
    """A schema that contains itself is compared completely and without endless recursion."""

    def tree(kind: str) -> Any:
        return record(field("value", kind), field("next", ["null", "Thing"], default=None))

    assert can_read(tree("int"), tree("int"))
    assert not can_read(tree("int"), tree("string"))


def test_fields_without_default_can_never_be_removed() -> None:
    """A field that has no default in some released version can never be removed.

    This holds under levels that include forward compatibility.
    """
    released = {1: record(field("a"), field("b", default="")), 2: record(field("a"), field("c"))}
    assert unremovable_fields(released, "FULL_TRANSITIVE") == ["a", "c"]
    assert unremovable_fields(released, "BACKWARD_TRANSITIVE") == []


@pytest.mark.parametrize(
    ("schema", "rule"),
    [
        (record(field("x", ["null", "string"], default="")), "default"),
        (record(field("x", "int", default="7")), "default"),
        (record(field("x", enum("A"))), "enum-default"),
        (record(field("x", {"type": "int", "logicalType": "timestamp-millis"})), "logical-type"),
        (record(field("x", {"type": "long", "logicalType": "timestamp-milis"})), "logical-type"),
        (record(field("x", doc="")), "doc"),
        (record(field("x"), doc=""), "doc"),
        (record(field("x", enum("A", default="A", doc=""))), "doc"),
    ],
)
def test_what_libraries_disagree_on_is_a_fault_of_the_schema(schema: Any, rule: str) -> None:
    """A schema is faulty if libraries disagree on its defaults, enums or logical types, or if a doc is missing."""
    assert [fault.rule for fault in lint.find_breaches(schema)] == [rule]


def test_the_contracts_have_no_faults() -> None:
    """The three schemas of the project have no faults."""
    for topic in catalogue.load().topics_with_schema():
        assert lint.find_breaches(topic.schema or {}) == []


def test_a_difference_is_described_in_words() -> None:
    """The description of a difference names added, removed and changed fields and enum symbols."""
    old = record(field("a"), field("gone"), field("kind", enum("A", default="A")))
    new = json.loads(
        json.dumps(record(field("a", "long"), field("kind", enum("A", "B", default="A")), field("x", default="")))
    )
    assert difference.describe_changes(old, new) == [
        "field gone is removed",
        "field a: type string becomes long",
        "field x is added: string, default ''",
        "enum Kind: symbol B is added",
    ]

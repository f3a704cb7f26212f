"""Verdicts on whether one schema can read records of another: those of this project, the registry and Java."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from rtfm.contracts import open_registry
from rtfm.contracts.rules.compatibility import can_read, find_violations
from rtfm.settings import Settings
from tests import java_avro
from tests.java_avro import JavaAvro
from tests.schema_pairs import pairs

PAIRS = pairs(204, bases=12)

OURS_ALONE = {"logical-type", "enum-symbol-removed", "enum-default", "enum-order", "union-order", "namespace"}
"""The rules in which this project is stricter than Avro."""


@pytest.fixture(scope="module")
def java() -> Iterator[JavaAvro]:
    with java_avro.running() as running:
        yield running


def test_verdicts_match_those_of_the_registry_and_java(bare_settings: Settings, java: JavaAvro) -> None:
    """R26: This project, the registry and Java give the same verdicts on 204 pairs of schemas, in both directions."""
    registry = open_registry(bare_settings)
    for number in {number for number, *_ in PAIRS}:
        old = next(old for n, old, *_ in PAIRS if n == number)
        for level in ("BACKWARD", "FORWARD"):
            registry.set_compatibility(f"{level}-{number}", level)
            registry.register(f"{level}-{number}", old)
    unlike = []
    accepted = 0
    for number, old, new, what in PAIRS:
        for level, reader, writer in (("BACKWARD", new, old), ("FORWARD", old, new)):
            ours = can_read(reader, writer)
            theirs = registry.is_compatible(f"{level}-{number}", new, 1)
            accepted += ours
            if not ours == theirs == java.can_read(reader, writer):
                unlike.append((what, level, ours, theirs))
    assert unlike == []
    assert len(PAIRS) >= 200
    assert len(PAIRS) * 2 * 0.3 < accepted < len(PAIRS) * 2 * 0.7  # both verdicts occur often


def test_every_stricter_verdict_has_a_named_rule() -> None:
    """Where this project is stricter than Avro, its refusals name exactly the rules of ``OURS_ALONE``."""
    stricter: dict[str, int] = {}
    for _, old, new, _ in PAIRS:
        if can_read(new, old) and can_read(old, new):
            for violation in find_violations("pairs-value", new, {1: old}, "FULL_TRANSITIVE"):
                assert violation.direction == "history"
                stricter[violation.rule] = stricter.get(violation.rule, 0) + 1
    assert stricter.keys() == OURS_ALONE

"""Whether a schema can take the place of its released versions. Pure: no files, no network.

BACKWARD means that the new schema reads what the old one wrote, FORWARD that the old one reads what the new one
writes, FULL both; the transitive levels compare with every released version, the others with the newest
(https://docs.confluent.io/platform/current/schema-registry/fundamentals/schema-evolution.html).
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from rtfm.contracts.catalogue import Schema


def violations(schema: Schema, released: Mapping[int, Schema], level: str) -> list[str]:
    """One line for each released version and direction that ``schema`` breaks under ``level``."""
    if level == "NONE" or not released:
        return []
    versions = sorted(released) if level.endswith("_TRANSITIVE") else [max(released)]
    found = []
    for version in versions:
        if level.startswith(("BACKWARD", "FULL")):
            found += [f"cannot read v{version}: {why}" for why in _incompatibilities(schema, released[version])]
        if level.startswith(("FORWARD", "FULL")):
            found += [f"v{version} cannot read it: {why}" for why in _incompatibilities(released[version], schema)]
    return found


def _incompatibilities(reader: Schema, writer: Schema) -> list[str]:
    from avro.compatibility import ReaderWriterCompatibilityChecker, SchemaCompatibilityType
    from avro.schema import parse

    checker: Any = ReaderWriterCompatibilityChecker
    result = checker().get_compatibility(parse(json.dumps(reader)), parse(json.dumps(writer)))
    if result.compatibility is SchemaCompatibilityType.compatible:
        return []
    return [
        f"{location}: {message}"
        for location, message in zip(sorted(result.locations), sorted(result.messages), strict=False)
    ] or ["the schemas do not resolve"]

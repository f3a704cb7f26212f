"""Checks of all contracts, and the release of their schemas.

For each subject whose schema changed, a release writes the schema to ``released/<subject>/<n>.avsc``, and examples of
records with their bytes to ``<n>.examples.json`` in the same folder. After that it writes ``contracts.lock``. If a
check fails, a release writes nothing.
"""

from __future__ import annotations

import io
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import fastavro
from attrs import evolve

from rtfm.contracts import lock
from rtfm.contracts.catalogue import Catalogue, Schema, Topic
from rtfm.contracts.reference import parse_for_fastavro
from rtfm.contracts.registry import SchemaRegistry
from rtfm.contracts.rules import lint
from rtfm.contracts.rules.compatibility import find_violations, is_accepted
from rtfm.contracts.rules.findings import Finding
from rtfm.contracts.tree import Node, parse
from rtfm.errors import ConfigError
from rtfm.files import write_atomically

_SNOWFLAKE = "1286754213907726336"
_TIME_MS = 1_726_854_000_123


def findings(catalogue: Catalogue) -> list[Finding]:
    """Check all contracts, using only the files in the catalogue's folder. Raises ConfigError for malformed files."""
    found = [
        Finding(
            kind="lock", subject=subject, rule="released", path="", message=f"{subject}: {what}", file=lock.LOCK_FILE
        )
        for subject, what in lock.find_breaches(catalogue)
    ]
    for topic in catalogue.topics_with_schema():
        found += topic_findings(topic, catalogue.released_schemas(topic.name))
    return found


def topic_findings(topic: Topic, released: Mapping[int, Schema]) -> list[Finding]:
    """Check the schema of one topic, both by itself and against its ``released`` versions."""
    schema = topic.schema or {}
    by_itself = [
        Finding(
            kind="lint",
            subject=topic.subject,
            rule=breach.rule,
            path=breach.path,
            message=f"{topic.subject}: {breach.what}; {breach.fix}",
            fix=breach.fix,
            file=topic.schema_file,
            what=breach.what,
        )
        for breach in lint.find_breaches(schema)
    ]
    against = find_violations(topic.subject, schema, released, topic.compatibility or "NONE")
    return by_itself + [
        evolve(finding, producers=topic.producers, consumers=topic.consumers, file=topic.schema_file)
        for finding in against
    ]


def disagreements(catalogue: Catalogue, registry: SchemaRegistry) -> list[Finding]:
    """Find the registered versions on which the registry and this project's check disagree.

    For each registered version, both decide by Avro's rules whether the current schema is compatible with that version.
    Raises Unavailable if the registry does not respond.
    """
    found = []
    for topic in catalogue.topics_with_schema():
        schema, level = topic.schema or {}, topic.compatibility or "NONE"
        for version, (_, registered) in registry.versions(topic.name).items():
            theirs = registry.is_compatible(topic.name, schema, version)
            ours = is_accepted(schema, registered, level)
            if theirs is not ours:
                verb = "accepts" if theirs else "refuses"
                verdict = f"the registry at {registry.url} {verb} the schema after version {version}"
                found.append(
                    Finding(
                        kind="registry",
                        subject=topic.subject,
                        rule="registry-disagrees",
                        path="",
                        message=f"{topic.subject}: {verdict}, but this project {'accepts' if ours else 'refuses'} it",
                        version=version,
                        file=topic.schema_file,
                    )
                )
    return found


def plan(catalogue: Catalogue) -> dict[str, int]:
    """Return the next version of each topic whose schema changed since its last release, by topic name."""
    changed = {}
    for topic in catalogue.topics_with_schema():
        released = catalogue.released_schemas(topic.name)
        if not released or topic.schema != released[max(released)]:
            changed[topic.name] = max(released, default=0) + 1
    return changed


def release(catalogue: Catalogue, planned: dict[str, int]) -> None:
    """Write the released files of each topic in ``planned``, and the lock.

    Raises ConfigError if a check of any contract fails. In that case nothing is written.
    """
    if found := findings(catalogue):
        raise ConfigError(
            f"nothing was released: {found[0].message}", hint="`rtfm-cli schemas check` shows everything that is wrong."
        )
    for name, version in planned.items():
        _freeze(catalogue, catalogue.topic(name), version)
    lock.write(catalogue)


def reset(catalogue: Catalogue) -> None:
    """Delete all released versions, and release the current schemas as version 1 of each subject.

    Raises ConfigError if a schema breaks a rule that does not depend on earlier versions. This function does not check
    whether a reset is still allowed; its caller must decide that.
    """
    for topic in catalogue.topics_with_schema():
        if found := topic_findings(topic, {}):
            raise ConfigError(f"nothing was reset: {found[0].message}")
    for topic in catalogue.topics_with_schema():
        for path in sorted(catalogue.released_directory(topic.name).glob("*")):
            path.unlink()
        _freeze(catalogue, topic, 1)
    lock.write(catalogue)


def _freeze(catalogue: Catalogue, topic: Topic, version: int) -> None:
    assert topic.schema is not None  # noqa: S101 - see Catalogue.topics_with_schema
    directory = catalogue.released_directory(topic.name)
    text = (catalogue.directory / str(topic.schema_file)).read_text(encoding="utf-8")
    write_atomically(directory / f"{version}.avsc", text)
    write_atomically(directory / f"{version}.examples.json", _to_json(examples(topic.schema)))


def examples(schema: Schema) -> list[dict[str, Any]]:
    """Build two example records of ``schema``, each as JSON and as hexadecimal Avro bytes.

    The first record has a value in every field, even if null is allowed. In the second record, texts, arrays and maps
    are empty, numbers are 0, and a field is null if null is allowed.
    """
    node = parse(schema)
    return [
        {"value": value, "avro": _encode(schema, value)}
        for value in (_build_example(node, "", full=True), _build_example(node, "", full=False))
    ]


def examples_path(catalogue: Catalogue, topic: Topic, version: int) -> Path:
    """Return the path of the file with the examples of a released version."""
    return catalogue.released_directory(topic.name) / f"{version}.examples.json"


def _encode(schema: Schema, value: Any) -> str:
    out = io.BytesIO()
    fastavro.schemaless_writer(out, parse_for_fastavro(schema), value)
    return out.getvalue().hex()


def _build_example(node: Node, name: str, *, full: bool) -> Any:
    match node.kind:
        case "record":
            return {entry.name: _build_example(entry.node, entry.name, full=full) for entry in node.fields}
        case "array":
            return [_build_example(node.items, name, full=full) for _ in range(2)] if full and node.items else []
        case "map":
            return {"key": _build_example(node.items, name, full=full)} if full and node.items else {}
        case "union":
            null = next((branch for branch in node.branches if branch.kind == "null"), None)
            others = [branch for branch in node.branches if branch.kind != "null"]
            return None if null and not full else _build_example(others[0], name, full=full)
        case "enum":
            return node.symbols[-1] if full else node.symbols[0]
        case _:
            return _build_plain_example(node, name, full=full)


def _build_plain_example(node: Node, name: str, *, full: bool) -> Any:
    match node.kind:
        case "string":
            return (_SNOWFLAKE if name.endswith(("_id", "_ids")) else f"{name} – ñ 🌊") if full else ""
        case "int" | "long":
            return 0 if not full else _TIME_MS if node.logical == "timestamp-millis" else 70_000
        case "float" | "double":
            return 0.75 if full else 0.0
        case "boolean":
            return full
        case "bytes" | "fixed":
            return b"\x01" * (node.size or int(full))
        case _:
            return None


def _to_json(value: Any) -> str:
    return json.dumps(value, indent=2, ensure_ascii=False, default=lambda data: data.decode("latin-1")) + "\n"

"""``contracts.lock``: the checksums of released versions, which never change.

Owns the fingerprint of a schema, which is the same for two texts that differ only in layout and docs. Reads and writes
files, does not use a registry.
"""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

from attrs import NOTHING, asdict, frozen

from rtfm.contracts.catalogue import Catalogue, Schema, Topic
from rtfm.contracts.tree import Node, parse
from rtfm.errors import ConfigError
from rtfm.files import write_atomically

LOCK_FILE = "contracts.lock"


@frozen(kw_only=True)
class LockedVersion:
    """One released version: the fingerprint of its schema, and the SHA-256 of its file and of its examples' file.

    All are hexadecimal; ``examples_sha256`` is None without examples.
    """

    fingerprint: str
    sha256: str
    examples_sha256: str | None = None


def fingerprint(schema: Schema) -> str:
    """Return the SHA-256, in hexadecimal, of ``schema`` without docs and layout."""
    text = json.dumps(_canonical(parse(schema), set()), separators=(",", ":"), ensure_ascii=False)
    return hashlib.sha256(text.encode()).hexdigest()


def read(catalogue: Catalogue) -> dict[str, dict[int, LockedVersion]]:
    """Read the lock file: subject → version → entry; empty without a file. Raises ConfigError if it is malformed."""
    path = catalogue.directory / LOCK_FILE
    if not path.is_file():
        return {}
    try:
        subjects = json.loads(path.read_text(encoding="utf-8"))["subjects"]
        return {
            subject: {int(version): LockedVersion(**entry) for version, entry in versions.items()}
            for subject, versions in subjects.items()
        }
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as exc:
        raise ConfigError(
            f"{path} is malformed: {exc}", hint="It is written by `rtfm-cli schemas release`; take it from git."
        ) from exc


def write(catalogue: Catalogue) -> None:
    """Lock every released version in its present form. Raises OSError if the file cannot be written."""
    subjects = {
        topic.subject: {str(version): asdict(locked) for version, locked in _read_released(catalogue, topic).items()}
        for topic in catalogue.topics_with_schema()
    }
    write_atomically(catalogue.directory / LOCK_FILE, json.dumps({"subjects": subjects}, indent=2) + "\n")


def find_breaches(catalogue: Catalogue) -> list[tuple[str, str]]:
    """Return (subject, error) for every released version that is missing, changed or not in the lock."""
    locked = read(catalogue)
    found = []
    for topic in catalogue.topics_with_schema():
        known, there = locked.get(topic.subject, {}), _read_released(catalogue, topic)
        for version in sorted(known.keys() | there.keys()):
            where = f"released/{topic.subject}/{version}.avsc"
            if version not in there:
                found.append((topic.subject, f"{where} is missing, but it was released; restore it from git"))
            elif version not in known:
                found.append((topic.subject, f"{where} is not in {LOCK_FILE}; only `schemas release` creates versions"))
            elif known[version] != there[version]:
                same = known[version].sha256 == there[version].sha256
                what = f"the examples of {where} were" if same else f"{where} was"
                found.append((topic.subject, f"{what} changed or removed after the release; restore them from git"))
    removed = locked.keys() - {topic.subject for topic in catalogue.topics_with_schema()}
    return found + [
        (subject, f"{subject} was released, but the catalogue has no such topic") for subject in sorted(removed)
    ]


def _read_released(catalogue: Catalogue, topic: Topic) -> dict[int, LockedVersion]:
    directory = catalogue.released_directory(topic.name)
    return {
        version: LockedVersion(
            fingerprint=fingerprint(schema),
            sha256=_sha256(directory / f"{version}.avsc") or "",
            examples_sha256=_sha256(directory / f"{version}.examples.json"),
        )
        for version, schema in catalogue.released_schemas(topic.name).items()
    }


def _sha256(path: Path) -> str | None:
    return hashlib.sha256(path.read_bytes()).hexdigest() if path.is_file() else None


def _canonical(node: Node, seen: set[str]) -> Any:
    if node.name and node.name in seen:
        return node.name
    seen.add(node.name)
    attributes = {
        "name": node.name,
        "logicalType": node.logical,
        "aliases": list(node.aliases),
        "symbols": list(node.symbols),
        "default": node.default,
        "size": node.size,
        "items": node.items and _canonical(node.items, seen),
        "branches": [_canonical(branch, seen) for branch in node.branches],
    }
    parts: dict[str, Any] = {"type": node.kind} | {key: value for key, value in attributes.items() if value}
    if node.kind == "record":
        parts["fields"] = [
            {"name": entry.name, "aliases": list(entry.aliases), "type": _canonical(entry.node, seen)}
            | ({} if entry.default is NOTHING else {"default": entry.default})
            for entry in node.fields
        ]
    return parts

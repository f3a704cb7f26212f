"""The file ``contracts.lock``. If a file of a released version is changed, the checksums in this file reveal that.

This module also defines the fingerprint of a schema. Two schemas that differ only in layout and docs have the same
fingerprint. The module reads and writes files, and does not use a registry.
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
    """The checksums of one released version, in hexadecimal.

    ``fingerprint`` is the fingerprint of the schema. ``sha256`` is the SHA-256 of the schema's file.
    ``examples_sha256`` is the SHA-256 of the file with the examples, or None if that file does not exist.
    """

    fingerprint: str
    sha256: str
    examples_sha256: str | None = None


def fingerprint(schema: Schema) -> str:
    """Return the SHA-256, in hexadecimal, of ``schema`` without docs and layout."""
    text = json.dumps(_canonical(parse(schema), set()), separators=(",", ":"), ensure_ascii=False)
    return hashlib.sha256(text.encode()).hexdigest()


def read(catalogue: Catalogue) -> dict[str, dict[int, LockedVersion]]:
    """Read the lock file. Return the checksums by subject and then by version; without a file, return an empty dict.

    Raises ConfigError if the file is malformed.
    """
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
            f"{path} is malformed: {exc}",
            hint="`rtfm-cli schemas release` writes this file. Restore it from git.",
        ) from exc


def write(catalogue: Catalogue) -> None:
    """Write the current checksums of every released version. Raises OSError if the file cannot be written."""
    subjects = {
        topic.subject: {str(version): asdict(locked) for version, locked in _read_released(catalogue, topic).items()}
        for topic in catalogue.topics_with_schema()
    }
    write_atomically(catalogue.directory / LOCK_FILE, json.dumps({"subjects": subjects}, indent=2) + "\n")


def find_breaches(catalogue: Catalogue) -> list[tuple[str, str]]:
    """Return (subject, error) for each difference between the released files and the lock.

    A difference is a released version that is missing, changed or not in the lock, or a subject in the lock whose topic
    is not in the catalogue.
    """
    locked = read(catalogue)
    found = []
    for topic in catalogue.topics_with_schema():
        known, there = locked.get(topic.subject, {}), _read_released(catalogue, topic)
        for version in sorted(known.keys() | there.keys()):
            where = f"released/{topic.subject}/{version}.avsc"
            if version not in there:
                found.append((topic.subject, f"{where} was released, but the file is missing; restore it from git"))
            elif version not in known:
                what = f"{where} is not in {LOCK_FILE}; only `rtfm-cli schemas release` may create versions"
                found.append((topic.subject, what))
            elif known[version] != there[version]:
                same = known[version].sha256 == there[version].sha256
                what = f"the examples of {where} were" if same else f"{where} was"
                found.append((topic.subject, f"{what} changed or removed after the release; restore the file from git"))
    removed = locked.keys() - {topic.subject for topic in catalogue.topics_with_schema()}
    return found + [
        (subject, f"{subject} was released, but its topic is not in the catalogue") for subject in sorted(removed)
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

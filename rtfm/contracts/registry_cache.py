"""A disk cache of a registry's ids and schemas. Each pair of registry address and prefix has its own folder.

Entries do not expire, because only a registry that was rebuilt gives the id of one schema to another schema. The module
``registry`` confirms cached ids, and thereby finds out whether the registry was rebuilt.

Each entry is a file. Services can therefore share a folder without overwriting each other's entries. If the cache
cannot be read or written, it is ignored without an error.
"""

from __future__ import annotations

import hashlib
import json
import shutil
from contextlib import suppress
from pathlib import Path
from typing import Any
from urllib.parse import quote

from rtfm.contracts.catalogue import Schema
from rtfm.files import write_atomically


class RegistryCache:
    """The cache of one registry, in a folder below ``directory``. Thread-safe.

    If ``directory`` is None, the cache is always empty.
    """

    def __init__(self, directory: Path | None, url: str, prefix: str) -> None:
        name = hashlib.sha256(f"{url} {prefix}".encode()).hexdigest()[:24]
        self._folder = directory / name if directory else None
        self._url = url

    def id_of(self, subject: str, fingerprint: str) -> int | None:
        """Return the cached id of the schema with ``fingerprint`` under ``subject``; None if no id is cached."""
        known = self._read(_id_file(subject, fingerprint)).get("id")
        return known if type(known) is int else None

    def schema(self, schema_id: int) -> Schema | None:
        """Return the cached schema of ``schema_id``; None if it is not cached."""
        known = self._read(_schema_file(schema_id)).get("schema")
        return known if isinstance(known, dict) and known.get("type") == "record" else None

    def schemas(self) -> dict[int, Schema]:
        """Return every cached schema, by id."""
        found = {}
        for path in sorted(self._folder.glob("schema-*.json")) if self._folder and self._folder.is_dir() else ():
            schema_id = path.stem.removeprefix("schema-")
            if schema_id.isdecimal() and (schema := self.schema(int(schema_id))) is not None:
                found[int(schema_id)] = schema
        return found

    def keep_id(self, subject: str, fingerprint: str, schema_id: int) -> None:
        """Cache the id of a schema under ``subject``."""
        if self.id_of(subject, fingerprint) != schema_id:
            self._write(_id_file(subject, fingerprint), {"url": self._url, "subject": subject, "id": schema_id})

    def keep_schema(self, schema_id: int, schema: Schema) -> None:
        """Cache the schema of ``schema_id``."""
        if self.schema(schema_id) != schema:
            self._write(_schema_file(schema_id), {"url": self._url, "id": schema_id, "schema": schema})

    def forget(self) -> None:
        """Delete all entries of this registry."""
        if self._folder is not None:
            shutil.rmtree(self._folder, ignore_errors=True)

    def _read(self, name: str) -> dict[str, Any]:
        if self._folder is None:
            return {}
        try:
            content = json.loads((self._folder / name).read_text(encoding="utf-8"))
        except (OSError, ValueError, RecursionError):
            return {}
        return content if isinstance(content, dict) else {}

    def _write(self, name: str, content: dict[str, Any]) -> None:
        if self._folder is None:
            return
        with suppress(OSError):
            write_atomically(self._folder / name, json.dumps(content, ensure_ascii=False))


def _id_file(subject: str, fingerprint: str) -> str:
    return f"id-{quote(subject, safe='')[:150]}-{fingerprint[:32]}.json"


def _schema_file(schema_id: int) -> str:
    return f"schema-{schema_id}.json"

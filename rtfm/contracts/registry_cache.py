"""What a registry answered before, on disk: ids and schemas, by registry address and prefix.

A schema id is never given to another schema, so what is kept here does not grow old; a registry that was rebuilt from
nothing breaks that, which is why ``registry`` confirms ids before it trusts them for long. A cache that cannot be read
or written is no cache, and no error.
"""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

from rtfm.contracts.catalogue import Schema


class RegistryCache:
    """The answers of one registry, in one file below ``directory``; nowhere when that is None."""

    def __init__(self, directory: Path | None, url: str, prefix: str) -> None:
        name = hashlib.sha256(f"{url} {prefix}".encode()).hexdigest()[:24]
        self._path = directory / f"{name}.json" if directory else None
        self._url = url
        content = self._read()
        self._ids: dict[str, list[Any]] = content.get("ids", {})
        self._schemas: dict[str, Schema] = content.get("schemas", {})

    def id_of(self, subject: str, fingerprint: str) -> int | None:
        """The id that the schema with ``fingerprint`` had under ``subject``."""
        known = self._ids.get(subject)
        return int(known[1]) if known and known[0] == fingerprint else None

    def schema(self, schema_id: int) -> Schema | None:
        """The schema that ``schema_id`` stood for."""
        return self._schemas.get(str(schema_id))

    def keep_id(self, subject: str, fingerprint: str, schema_id: int) -> None:
        """Remember the id of a schema under ``subject``."""
        if self._ids.get(subject) != [fingerprint, schema_id]:
            self._ids[subject] = [fingerprint, schema_id]
            self._write()

    def keep_schema(self, schema_id: int, schema: Schema) -> None:
        """Remember what ``schema_id`` stands for."""
        if self._schemas.get(str(schema_id)) != schema:
            self._schemas[str(schema_id)] = schema
            self._write()

    def forget(self) -> None:
        """Remember nothing of this registry."""
        self._ids, self._schemas = {}, {}
        self._write()

    def _read(self) -> dict[str, Any]:
        if self._path is None:
            return {}
        try:
            content = json.loads(self._path.read_text(encoding="utf-8"))
            valid = isinstance(content["ids"], dict) and isinstance(content["schemas"], dict)
        except (OSError, ValueError, KeyError, TypeError):
            return {}
        return content if valid else {}

    def _write(self) -> None:
        if self._path is None:
            return
        text = json.dumps({"url": self._url, "ids": self._ids, "schemas": self._schemas}, ensure_ascii=False)
        partial = self._path.with_suffix(f".{id(self):x}")
        try:
            self._path.parent.mkdir(parents=True, exist_ok=True)
            partial.write_text(text, encoding="utf-8")
            partial.replace(self._path)
        except OSError:
            return

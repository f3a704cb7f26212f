"""A client of Confluent's schema registry API. It has one method for each operation, and no cache.

No request takes longer than its timeout, even if the response or the look-up of the host name is slow.

The module uses httpx and not Confluent's client for four reasons: Confluent's client waits without limit by default,
raises two families of errors, requests an unknown id again for every record, and cannot start from a cache.
"""

from __future__ import annotations

import json
from typing import Any, cast
from urllib.parse import quote, unquote, urlsplit

import fastavro
import httpx

from rtfm.addresses import redact_address
from rtfm.contracts import tree
from rtfm.contracts.catalogue import Schema
from rtfm.deadline import run_within
from rtfm.errors import ConfigError, PermanentError, Unavailable, UnknownSchema

# Confluent's error codes for "not found". A response with status 404 but without one of these codes means that the
# address is wrong.
_NOT_FOUND = (40401, 40402, 40403, 40408)

MAX_ANSWER_BYTES = 1_000_000
"""Largest allowed size of a response, in bytes. The largest schema of this project has about 12,000 bytes."""


class SchemaRefused(PermanentError):
    """The registry refuses a schema because it is invalid or incompatible with a registered version."""


class _AnswerTooLong(PermanentError):
    """A response is longer than MAX_ANSWER_BYTES."""


class RegistryClient:
    """A client of the registry at ``url``. Threads may share an instance.

    ``url`` contains the path of the API, and may contain ``user:password@``.
    """

    def __init__(self, url: str, *, timeout_s: float = 2.0, prefix: str = "") -> None:
        """Build the client.

        ``timeout_s`` is the time limit of each request, in seconds. ``prefix`` is put before every subject.
        """
        parts = urlsplit(url)
        self.url = redact_address(url).rstrip("/")
        self._prefix = prefix
        self._timeout_s = timeout_s
        self._client = httpx.Client(
            timeout=timeout_s,
            auth=(unquote(parts.username), unquote(parts.password or "")) if parts.username else None,
            headers={"Accept": "application/vnd.schemaregistry.v1+json, application/json"},
        )

    def subject(self, topic_name: str) -> str:
        """Return the subject of the topic's values: the prefix, the topic's name and ``-value`` (TopicNameStrategy)."""
        return f"{self._prefix}{topic_name}-value"

    def fetch_schema(self, schema_id: int, timeout_s: float | None = None) -> Schema | None:
        """Fetch the schema of ``schema_id``; None if the registry does not have it.

        Raises UnknownSchema if the schema is too long, is not an Avro record, or refers to other registered schemas.
        """
        try:
            answer = self._request("GET", f"/schemas/ids/{schema_id}", timeout_s=timeout_s)
        except _AnswerTooLong as exc:
            # With UnknownSchema, the record becomes a dead letter. With ConfigError, the service would end, and anyone
            # who can register a schema could stop the service with a long schema.
            raise UnknownSchema(f"schema id {schema_id}: {exc}") from exc
        if answer is None:
            return None
        try:
            schema = json.loads(answer["schema"])
            fastavro.parse_schema(json.loads(answer["schema"]))
            tree.parse(schema)
        except Exception as exc:  # not JSON, such as Protobuf; fastavro raises its own errors, KeyError and TypeError
            raise UnknownSchema(
                f"schema id {schema_id} at {self.url} is not an Avro schema, or refers to other schemas"
            ) from exc
        if not isinstance(schema, dict) or schema.get("type") != "record":
            raise UnknownSchema(f"schema id {schema_id} at {self.url} is not an Avro record")
        return cast("Schema", schema)

    def lookup(self, topic_name: str, schema: Schema) -> tuple[int, int] | None:
        """Return the (id, version) of ``schema`` under the topic's subject; None if it is not registered there."""
        answer = self._request("POST", f"/subjects/{self._quoted_subject(topic_name)}", _body(schema))
        return None if answer is None else (int(answer["id"]), int(answer["version"]))

    def versions(self, topic_name: str) -> dict[int, tuple[int, Schema]]:
        """Fetch all versions of the topic's subject, as a dict from version to (id, schema) in ascending order."""
        path = f"/subjects/{self._quoted_subject(topic_name)}/versions"
        found = {}
        for number in sorted(self._request("GET", path) or ()):
            answer = self._request("GET", f"{path}/{number}")
            if answer is None:
                continue  # the version was removed after the list was fetched
            try:
                schema = json.loads(answer["schema"])
            except ValueError as exc:
                raise ConfigError(
                    f"{self.subject(topic_name)} version {number} at {self.url} is not an Avro schema",
                    hint=f"Remove this version with: curl -X DELETE {self.url}{path}/{number}",
                ) from exc
            found[int(number)] = (int(answer["id"]), cast("Schema", schema))
        return found

    def register(self, topic_name: str, schema: Schema) -> int:
        """Register ``schema`` as the next version and return its id.

        If the schema is already registered, nothing changes and its existing id is returned. Raises SchemaRefused if
        the registry finds the schema invalid or incompatible.
        """
        answer = self._request("POST", f"/subjects/{self._quoted_subject(topic_name)}/versions", _body(schema))
        return int(answer["id"])

    def is_compatible(self, topic_name: str, schema: Schema, version: int) -> bool:
        """Return whether the registry finds ``schema`` compatible with ``version``, under the subject's level."""
        path = f"/compatibility/subjects/{self._quoted_subject(topic_name)}/versions/{version}"
        answer = self._request("POST", path, _body(schema))
        return bool(answer["is_compatible"])

    def compatibility(self, topic_name: str) -> str | None:
        """Fetch the compatibility level that is set for the subject; None if the registry's default applies."""
        answer = self._request("GET", f"/config/{self._quoted_subject(topic_name)}")
        return None if answer is None else str(answer.get("compatibilityLevel") or answer.get("compatibility"))

    def set_compatibility(self, topic_name: str, level: str | None) -> None:
        """Set the compatibility level of the subject; with None, the registry's default applies again."""
        path = f"/config/{self._quoted_subject(topic_name)}"
        if level is None:
            self._request("DELETE", path)
        else:
            self._request("PUT", path, {"compatibility": level})

    def unregister(self, topic_name: str, version: int) -> None:
        """Delete a version permanently, to undo its registration. The registry does not use the schema's id again."""
        self.remove(topic_name, version)
        self._request("DELETE", f"/subjects/{self._quoted_subject(topic_name)}/versions/{version}?permanent=true")

    def remove(self, topic_name: str, version: int) -> None:
        """Remove a version from its subject.

        The schema can still be fetched by its id. Records that were written with the schema therefore stay readable.
        """
        self._request("DELETE", f"/subjects/{self._quoted_subject(topic_name)}/versions/{version}")

    def close(self) -> None:
        """Close the connections."""
        self._client.close()

    def _quoted_subject(self, topic_name: str) -> str:
        return quote(self.subject(topic_name), safe="")

    def _request(
        self, method: str, path: str, body: dict[str, Any] | None = None, *, timeout_s: float | None = None
    ) -> Any:
        """Make a request and return the parsed response; None if the registry does not have what was requested."""
        bound_s = self._timeout_s if timeout_s is None else min(timeout_s, self._timeout_s)

        def ask() -> tuple[int, bytes]:
            content = bytearray()
            with self._client.stream(method, self.url + path, json=body, timeout=bound_s) as response:
                for chunk in response.iter_bytes():
                    content += chunk
                    if len(content) > MAX_ANSWER_BYTES:
                        break
                return response.status_code, bytes(content)

        try:
            status, content = run_within(bound_s, ask)
        except TimeoutError as exc:
            raise self._unavailable(f"no response within {bound_s:g} s") from exc
        except (httpx.HTTPError, RuntimeError) as exc:  # RuntimeError: the client was closed during the request
            is_late = isinstance(exc, httpx.TimeoutException)
            raise self._unavailable(f"no response within {bound_s:g} s" if is_late else str(exc)) from exc
        if len(content) > MAX_ANSWER_BYTES:
            raise _AnswerTooLong(f"{self.url} responds with more than {MAX_ANSWER_BYTES} bytes to {method} {path}")
        return self._read_answer(status, content, f"{method} {path}")

    def _read_answer(self, status: int, content: bytes, request: str) -> Any:
        """Return the parsed response, or None if the registry does not have what was requested.

        If the response reports another failure, raise the error for its status.
        """
        answer = _parse_json(content)
        if status == 404 and isinstance(answer, dict) and answer.get("error_code") in _NOT_FOUND:
            return None
        if status in (401, 403):
            raise ConfigError(
                f"the schema registry at {self.url} refuses the credentials ({status})",
                hint="SCHEMA_REGISTRY_URL must contain valid credentials, as in https://user:password@host.",
            )
        if status in (409, 422):
            reason = answer.get("message") if isinstance(answer, dict) else None
            raise SchemaRefused(
                f"the schema registry refuses the schema: {reason or content[:200].decode(errors='replace')}"
            )
        if status >= 500 or status in (408, 429):
            raise self._unavailable(f"it responds with status {status}")
        if status >= 300 or answer is None:
            raise ConfigError(
                f"{self.url} does not respond like a schema registry ({status} to {request})",
                hint="SCHEMA_REGISTRY_URL must include the path, for example /apis/ccompat/v7.",
            )
        return answer

    def _unavailable(self, reason: str) -> Unavailable:
        return Unavailable(
            "schema registry",
            f"the schema registry at {self.url} is unreachable: {reason}",
            hint="Start it with `rtfm-cli local up`, or set SCHEMA_REGISTRY_URL.",
        )


def _body(schema: Schema) -> dict[str, Any]:
    return {"schema": json.dumps(schema, separators=(",", ":"), ensure_ascii=False), "schemaType": "AVRO"}


def _parse_json(content: bytes) -> Any:
    try:
        return json.loads(content)
    except (ValueError, RecursionError):
        return None

"""The schema registry, over Confluent's REST API.

Plain httpx rather than Confluent's client: that one waits for ever unless told, raises two families of errors, and
has neither a bound on look-ups of one unknown id nor a way to start from a cache; what is needed here is a handful of
requests. Services only look up; registering is for ``rtfm-cli schemas register``.
"""

from __future__ import annotations

import json
import threading
from pathlib import Path
from typing import Any, cast
from urllib.parse import quote, urlsplit, urlunsplit

import httpx

from rtfm.contracts.catalogue import Schema
from rtfm.errors import ConfigError, PermanentError, Unavailable, UnknownSchema

# Confluent's error codes; a 404 without one of them comes from a wrong address.
_NOT_FOUND = (40401, 40402, 40403, 40408)
_REGISTER_HINT = "Run `rtfm-cli schemas register`."


class SchemaRefused(PermanentError):
    """The registry refuses a schema: invalid, or incompatible with a version that it holds."""


class SchemaRegistry:
    """A registry at ``url`` (path included; ``https://user:password@host`` signs in). Safe to share between threads."""

    def __init__(self, url: str, *, timeout_s: float = 2.0, cache_dir: Path | None = None, prefix: str = "") -> None:
        """``timeout_s`` bounds each request; ``prefix`` stands before every subject."""
        parts = urlsplit(url)
        self.url = urlunsplit(parts._replace(netloc=parts.netloc.rpartition("@")[2])).rstrip("/")
        self._prefix = prefix
        self._timeout_s = timeout_s
        self._client = httpx.Client(
            timeout=timeout_s,
            auth=(parts.username, parts.password or "") if parts.username else None,
            headers={"Accept": "application/vnd.schemaregistry.v1+json, application/json"},
        )
        self._lock = threading.Lock()
        self._ids: dict[str, int] = {}
        self._schemas: dict[int, Schema] = {}

    def subject(self, topic_name: str) -> str:
        """The registry's name for the values of the topic (TopicNameStrategy, with the prefix)."""
        return f"{self._prefix}{topic_name}-value"

    def id_for(self, topic_name: str, schema: Schema) -> int:
        """The id under which ``schema`` is registered for the topic. Never registers.

        Raises ConfigError when it is not registered, Unavailable when the registry does not answer.
        """
        with self._lock:
            if topic_name not in self._ids:
                found = self.lookup(topic_name, schema)
                if found is None:
                    raise ConfigError(
                        f"the schema of {self.subject(topic_name)} is not registered at {self.url}",
                        hint=_REGISTER_HINT,
                    )
                self._ids[topic_name] = found[0]
            return self._ids[topic_name]

    def schema(self, schema_id: int) -> Schema:
        """The schema that ``schema_id`` stands for. Ids are immutable, so an answer is kept.

        Raises UnknownSchema when the registry has none, Unavailable when it does not answer.
        """
        with self._lock:
            if schema_id not in self._schemas:
                answer = self._request("GET", f"/schemas/ids/{schema_id}")
                if answer is None:
                    raise UnknownSchema(f"schema id {schema_id} does not exist at {self.url}")
                self._schemas[schema_id] = cast("Schema", json.loads(answer["schema"]))
            return self._schemas[schema_id]

    def lookup(self, topic_name: str, schema: Schema) -> tuple[int, int] | None:
        """The (id, version) of ``schema`` under the topic's subject; None when it is not registered there."""
        answer = self._request("POST", f"/subjects/{self._quoted(topic_name)}", _body(schema))
        return None if answer is None else (int(answer["id"]), int(answer["version"]))

    def versions(self, topic_name: str) -> dict[int, tuple[int, Schema]]:
        """Version → (id, schema) of the topic's subject, ascending; empty when it has none."""
        path = f"/subjects/{self._quoted(topic_name)}/versions"
        found = {}
        for number in sorted(self._request("GET", path) or ()):
            answer = self._request("GET", f"{path}/{number}")
            found[int(number)] = (int(answer["id"]), cast("Schema", json.loads(answer["schema"])))
        return found

    def register(self, topic_name: str, schema: Schema) -> int:
        """Register ``schema`` as the next version and give its id; the same id when it is registered already.

        Raises SchemaRefused when the registry finds it invalid or incompatible.
        """
        answer = self._request("POST", f"/subjects/{self._quoted(topic_name)}/versions", _body(schema))
        return int(answer["id"])

    def is_compatible(self, topic_name: str, schema: Schema, version: int) -> bool:
        """The registry's own verdict on ``schema`` against ``version``, under the subject's level."""
        path = f"/compatibility/subjects/{self._quoted(topic_name)}/versions/{version}"
        answer = self._request("POST", path, _body(schema))
        return bool(answer["is_compatible"])

    def compatibility(self, topic_name: str) -> str | None:
        """The compatibility level that is set for the subject itself; None when it follows the registry's default."""
        answer = self._request("GET", f"/config/{self._quoted(topic_name)}")
        return None if answer is None else str(answer.get("compatibilityLevel") or answer.get("compatibility"))

    def set_compatibility(self, topic_name: str, level: str) -> None:
        """Set the compatibility level of the subject."""
        self._request("PUT", f"/config/{self._quoted(topic_name)}", {"compatibility": level})

    def close(self) -> None:
        """Close the connections."""
        self._client.close()

    def _quoted(self, topic_name: str) -> str:
        return quote(self.subject(topic_name), safe="")

    def _request(self, method: str, path: str, body: dict[str, Any] | None = None) -> Any:
        """The answer as JSON; None when the registry says that there is no such thing."""
        try:
            response = self._client.request(method, self.url + path, json=body)
        except httpx.HTTPError as exc:
            reason = f"no answer within {self._timeout_s:g} s" if isinstance(exc, httpx.TimeoutException) else str(exc)
            raise self._unavailable(reason) from exc
        status = response.status_code
        answer = _json(response)
        if status == 404 and isinstance(answer, dict) and answer.get("error_code") in _NOT_FOUND:
            return None
        if status in (401, 403):
            raise ConfigError(
                f"the schema registry at {self.url} refuses the credentials ({status})",
                hint="Put them into SCHEMA_REGISTRY_URL: https://user:password@host.",
            )
        if status in (409, 422):
            said = answer.get("message") if isinstance(answer, dict) else None
            raise SchemaRefused(f"the schema registry refuses it: {said or response.text[:200]}")
        if status >= 500 or status in (408, 429):
            raise self._unavailable(f"it answers {status}")
        if status >= 300 or answer is None:
            raise ConfigError(
                f"{self.url} does not answer as a schema registry does ({status} to {method} {path})",
                hint="SCHEMA_REGISTRY_URL takes the path too, such as /apis/ccompat/v7.",
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


def _json(response: httpx.Response) -> Any:
    try:
        return response.json()
    except ValueError:
        return None

"""The schema registry, over Confluent's REST API.

Plain httpx rather than Confluent's client: that one waits for ever unless told, raises two families of errors, and
has neither a bound on look-ups of one unknown id nor a way to start from a cache; what is needed here is a handful of
requests. Services only look up; registering is for ``rtfm-cli schemas register``.

Promises of the two look-ups that services make, ``id_for`` and ``schema``: one request at a time, none longer than the
timeout; after a failure none before a growing, jittered pause is over, meanwhile Unavailable at once; an id that the
registry does not know is asked for again only after half a minute. What was answered once is kept on disk, so that a
service starts with the registry gone; then a thread confirms what was taken from there as soon as it can, and when
the registry means something else by an id, every further look-up raises ConfigError.
"""

from __future__ import annotations

import json
import random
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar, cast
from urllib.parse import quote, urlsplit, urlunsplit

import httpx

from rtfm.contracts.catalogue import Schema
from rtfm.contracts.lock import fingerprint
from rtfm.contracts.registry_cache import RegistryCache
from rtfm.errors import ConfigError, PermanentError, RtfmError, Unavailable, UnknownSchema

Answer = TypeVar("Answer")

# Confluent's error codes; a 404 without one of them comes from a wrong address.
_NOT_FOUND = (40401, 40402, 40403, 40408)
_REGISTER_HINT = "Run `rtfm-cli schemas register`."

UNKNOWN_FOR_S = 30.0
"""How long an id that the registry does not know is not asked for again."""
FIRST_PAUSE_S, LONGEST_PAUSE_S = 0.25, 15.0
CONFIRM_TIMEOUT_S = 0.5


class SchemaRefused(PermanentError):
    """The registry refuses a schema: invalid, or incompatible with a version that it holds."""


class SchemaRegistry:
    """A registry at ``url`` (path included; ``https://user:password@host`` signs in). Safe to share between threads."""

    def __init__(
        self,
        url: str,
        *,
        timeout_s: float = 2.0,
        cache_dir: Path | None = None,
        prefix: str = "",
        clock: Callable[[], float] = time.monotonic,
        chance: Callable[[], float] = random.random,
    ) -> None:
        """``timeout_s`` bounds each request; ``prefix`` stands before every subject; ``cache_dir`` None: no cache."""
        parts = urlsplit(url)
        self.url = urlunsplit(parts._replace(netloc=parts.netloc.rpartition("@")[2])).rstrip("/")
        self._prefix = prefix
        self._timeout_s = timeout_s
        self._clock = clock
        self._chance = chance
        self._client = httpx.Client(
            timeout=timeout_s,
            auth=(parts.username, parts.password or "") if parts.username else None,
            headers={"Accept": "application/vnd.schemaregistry.v1+json, application/json"},
        )
        self._cache = RegistryCache(cache_dir, self.url, prefix)
        self._lock = threading.Lock()
        self._ids: dict[str, int] = {}
        self._schemas: dict[int, Schema] = {}
        self._unknown: dict[int, float] = {}
        self._failures = 0
        self._not_before = 0.0
        self._last_failure: Unavailable | None = None
        self._unconfirmed: dict[int, str] = {}
        self._conflict: ConfigError | None = None
        self._confirming: threading.Thread | None = None
        self._closed = threading.Event()

    def subject(self, topic_name: str) -> str:
        """The registry's name for the values of the topic (TopicNameStrategy, with the prefix)."""
        return f"{self._prefix}{topic_name}-value"

    def id_for(self, topic_name: str, schema: Schema) -> int:
        """The id under which ``schema`` is registered for the topic. Never registers.

        Raises ConfigError when it is not registered, Unavailable when the registry does not answer.
        """
        if self._conflict is not None:
            raise self._conflict
        known = self._ids.get(topic_name)
        return known if known is not None else self._find_id(topic_name, schema)

    def schema(self, schema_id: int) -> Schema:
        """The schema that ``schema_id`` stands for.

        Raises UnknownSchema when the registry has none, Unavailable when it does not answer.
        """
        if self._conflict is not None:
            raise self._conflict
        known = self._schemas.get(schema_id)
        return known if known is not None else self._find_schema(schema_id)

    def _find_id(self, topic_name: str, schema: Schema) -> int:
        subject, mark = self.subject(topic_name), fingerprint(schema)
        with self._lock:
            if topic_name in self._ids:
                return self._ids[topic_name]
            cached = self._cache.id_of(subject, mark)
            if cached is not None:
                self._trust(cached, mark)
                self._ids[topic_name] = cached
                return cached
            found = self._paced(lambda: self.lookup(topic_name, schema))
            if found is None:
                raise ConfigError(f"the schema of {subject} is not registered at {self.url}", hint=_REGISTER_HINT)
            self._cache.keep_id(subject, mark, found[0])
            self._ids[topic_name] = found[0]
            return found[0]

    def _find_schema(self, schema_id: int) -> Schema:
        with self._lock:
            if schema_id in self._schemas:
                return self._schemas[schema_id]
            cached = self._cache.schema(schema_id)
            if cached is not None:
                self._trust(schema_id, fingerprint(cached))
                self._schemas[schema_id] = cached
                return cached
            if self._clock() < self._unknown.get(schema_id, 0.0):
                raise self._no_such_id(schema_id)
            found = self._paced(lambda: self._schema_of(schema_id))
            if found is None:
                # Bounded: a producer that makes up ids must not fill the memory.
                if len(self._unknown) >= 10_000:
                    self._unknown.clear()
                self._unknown[schema_id] = self._clock() + UNKNOWN_FOR_S
                raise self._no_such_id(schema_id)
            self._cache.keep_schema(schema_id, found)
            self._schemas[schema_id] = found
            return found

    def _no_such_id(self, schema_id: int) -> UnknownSchema:
        return UnknownSchema(f"schema id {schema_id} does not exist at {self.url}")

    def _schema_of(self, schema_id: int, timeout_s: float | None = None) -> Schema | None:
        answer = self._request("GET", f"/schemas/ids/{schema_id}", timeout_s=timeout_s)
        return None if answer is None else cast("Schema", json.loads(answer["schema"]))

    def _paced(self, request: Callable[[], Answer]) -> Answer:
        """The answer to ``request``, which is not made while the pause after a failure lasts."""
        if self._last_failure is not None and self._clock() < self._not_before:
            raise Unavailable(self._last_failure.dependency, str(self._last_failure), hint=self._last_failure.hint)
        try:
            answer = request()
        except Unavailable as exc:
            self._last_failure = exc
            self._not_before = self._clock() + self._pause_s()
            raise
        self._failures, self._last_failure = 0, None
        return answer

    def _pause_s(self) -> float:
        self._failures = min(self._failures + 1, 16)
        longest: float = min(LONGEST_PAUSE_S, FIRST_PAUSE_S * 2 ** (self._failures - 1))
        return longest * (0.5 + 0.5 * self._chance())

    def _trust(self, schema_id: int, mark: str) -> None:
        """Use a cached id now, and see to it that the registry still means the same by it."""
        self._unconfirmed[schema_id] = mark
        if self._confirming is not None and self._confirming.is_alive():
            return
        try:
            self._confirm(CONFIRM_TIMEOUT_S)
        except Unavailable:
            self._confirming = threading.Thread(target=self._keep_confirming, name="registry-ids", daemon=True)
            self._confirming.start()
        if self._conflict is not None:
            raise self._conflict

    def _confirm(self, timeout_s: float) -> None:
        for schema_id, mark in list(self._unconfirmed.items()):
            found = self._schema_of(schema_id, timeout_s)
            if found is None or fingerprint(found) != mark:
                self._conflict = ConfigError(
                    f"schema id {schema_id} means something else at {self.url} than when this service last used it",
                    hint="If it was rebuilt, run `rtfm-cli schemas register` and start the service again.",
                )
                return
            del self._unconfirmed[schema_id]

    def _keep_confirming(self) -> None:
        pause_s = FIRST_PAUSE_S
        while self._unconfirmed and self._conflict is None:
            if self._closed.wait(pause_s * (0.5 + 0.5 * self._chance())):
                return
            pause_s = min(LONGEST_PAUSE_S, pause_s * 2)
            try:
                self._confirm(self._timeout_s)
            except RtfmError:
                continue

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

    def set_compatibility(self, topic_name: str, level: str | None) -> None:
        """Set the compatibility level of the subject; None lets it follow the registry's default."""
        path = f"/config/{self._quoted(topic_name)}"
        if level is None:
            self._request("DELETE", path)
        else:
            self._request("PUT", path, {"compatibility": level})

    def unregister(self, topic_name: str, version: int) -> None:
        """Take a version back that was registered by mistake. Its id stays taken."""
        path = f"/subjects/{self._quoted(topic_name)}/versions/{version}"
        self._request("DELETE", path)
        self._request("DELETE", f"{path}?permanent=true")

    def forget_cached(self) -> None:
        """Drop what is cached of this registry, as after it was rebuilt."""
        self._cache.forget()

    def keep(self, topic_name: str, schema: Schema, schema_id: int) -> None:
        """Cache the id of a schema, so that services on this machine can start without the registry."""
        self._cache.keep_id(self.subject(topic_name), fingerprint(schema), schema_id)
        self._cache.keep_schema(schema_id, schema)

    def close(self) -> None:
        """Close the connections and stop confirming."""
        self._closed.set()
        self._client.close()

    def _quoted(self, topic_name: str) -> str:
        return quote(self.subject(topic_name), safe="")

    def _request(
        self, method: str, path: str, body: dict[str, Any] | None = None, *, timeout_s: float | None = None
    ) -> Any:
        """The answer as JSON; None when the registry says that there is no such thing."""
        bound_s = self._timeout_s if timeout_s is None else min(timeout_s, self._timeout_s)
        try:
            response = self._client.request(method, self.url + path, json=body, timeout=bound_s)
        except (httpx.HTTPError, RuntimeError) as exc:  # RuntimeError: the client was closed meanwhile
            reason = f"no answer within {bound_s:g} s" if isinstance(exc, httpx.TimeoutException) else str(exc)
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

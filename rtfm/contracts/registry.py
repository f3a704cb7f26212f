"""Cached look-ups in the schema registry. Only ``rtfm-cli schemas register`` registers schemas; services do not.

There are two look-ups: ``id_for`` finds the id of a schema, and ``schema`` finds the schema of an id.

- If several threads look something up, they make one request at a time. No request takes longer than the timeout.
- If the registry does not respond, no request is made during a pause: look-ups that need a request raise Unavailable
  at once. The pause grows with each failure and has jitter.
- If the registry does not know an id, that id is not requested again for half a minute.
- Responses are cached on disk, so that a service can start without the registry. The first look-up of a cached id asks
  the registry to confirm the id. If the registry does not respond, a thread asks again later. If the registry has
  another schema, or none, under a cached id, all later look-ups raise ConfigError.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

from rtfm.backoff import Backoff
from rtfm.contracts.catalogue import Schema
from rtfm.contracts.lock import fingerprint
from rtfm.contracts.registry_cache import RegistryCache
from rtfm.contracts.registry_client import RegistryClient
from rtfm.errors import ConfigError, RtfmError, Unavailable, UnknownSchema

Answer = TypeVar("Answer")

UNKNOWN_ID_TTL_S = 30.0
"""If the registry does not know an id, the id is not requested again for this many seconds."""

MAX_UNKNOWN_IDS = 10_000
"""Largest number of ids that are remembered as unknown. Without a limit, records with random ids could fill memory."""

FIRST_PAUSE_S, LONGEST_PAUSE_S = 0.25, 15.0
"""The first and the longest pause after a failed request, in seconds, before jitter."""

CONFIRM_TIMEOUT_S = 0.5
"""Longest time, in seconds, that the first look-up of a cached id waits for the registry to confirm the id.

If the registry has not responded by then, the look-up returns the id, and a thread confirms the id in the background.
"""

_REGISTER_HINT = "Run `rtfm-cli schemas register`."


class SchemaRegistry(RegistryClient):
    """A client of the registry at ``url``, with a cache. Threads may share an instance."""

    def __init__(
        self,
        url: str,
        *,
        timeout_s: float = 2.0,
        cache_dir: Path | None = None,
        prefix: str = "",
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """Build the client, without a request.

        ``timeout_s`` is the limit for each request. ``prefix`` is put before every subject. If ``cache_dir`` is None,
        nothing is cached on disk.
        """
        super().__init__(url, timeout_s=timeout_s, prefix=prefix)
        self._clock = clock
        self._cache = RegistryCache(cache_dir, self.url, prefix)
        self._lock = threading.Lock()  # held during a look-up, so that look-ups make one request at a time
        self._ids: dict[str, int] = {}
        self._schemas: dict[int, Schema] = {}
        self._unknown: dict[int, tuple[float, str]] = {}
        self._pause = Backoff(FIRST_PAUSE_S, LONGEST_PAUSE_S)
        self._not_before = 0.0
        self._last_failure: Unavailable | None = None
        self._trust_lock = threading.Lock()
        self._unconfirmed: dict[int, str] = {}
        self._confirming = False
        self._conflict: ConfigError | None = None
        self._on_conflict: list[Callable[[], None]] = []
        self._closed = threading.Event()

    def id_for(self, topic_name: str, schema: Schema) -> int:
        """Return the id of ``schema`` under the topic's subject, without registering it.

        Raises ConfigError if the schema is not registered or the registry has another schema under a cached id, and
        Unavailable if the registry does not respond.
        """
        if self._conflict is not None:
            raise self._conflict
        known = self._ids.get(topic_name)
        return known if known is not None else self._find_id(topic_name, schema)

    def schema(self, schema_id: int) -> Schema:
        """Return the schema of ``schema_id``.

        Raises UnknownSchema if the registry does not have the schema or the schema is not an Avro record, Unavailable
        if the registry does not respond, and ConfigError if the registry has another schema under a cached id than
        before.
        """
        if self._conflict is not None:
            raise self._conflict
        known = self._schemas.get(schema_id)
        return known if known is not None else self._find_schema(schema_id)

    def on_conflict(self, forget: Callable[[], None]) -> None:
        """Call ``forget``, on any thread, as soon as the registry is found to have another schema under a cached id."""
        self._on_conflict.append(forget)

    def cache_id(self, topic_name: str, schema: Schema, schema_id: int) -> None:
        """Cache the id of a schema, so that services on this machine can start without the registry."""
        self._cache.keep_id(self.subject(topic_name), fingerprint(schema), schema_id)
        self._cache.keep_schema(schema_id, schema)

    def check_cache(self) -> None:
        """Clear the disk cache if, for any cached id, the registry has another schema or no schema.

        This happens if the registry was rebuilt. Raises Unavailable if the registry does not respond; the cache is then
        kept.
        """
        for schema_id, schema in self._cache.schemas().items():
            if not self._is_unchanged(schema_id, fingerprint(schema)):
                self._cache.forget()
                return

    def close(self) -> None:
        """Close the connections and stop the thread that confirms cached ids."""
        self._closed.set()
        super().close()

    # Look-ups

    def _find_id(self, topic_name: str, schema: Schema) -> int:
        subject, expected = self.subject(topic_name), fingerprint(schema)
        with self._lock:
            if topic_name in self._ids:
                return self._ids[topic_name]
            found = self._cache.id_of(subject, expected)
            if found is not None:
                self._use_cached(found, expected)
            else:
                registered = self._request_with_backoff(lambda: self.lookup(topic_name, schema))
                if registered is None:
                    raise ConfigError(f"the schema of {subject} is not registered at {self.url}", hint=_REGISTER_HINT)
                found = registered[0]
                self.cache_id(topic_name, schema, found)
            self._ids[topic_name] = found
            return found

    def _find_schema(self, schema_id: int) -> Schema:
        with self._lock:
            if schema_id in self._schemas:
                return self._schemas[schema_id]
            until_s, why = self._unknown.get(schema_id, (0.0, ""))
            if self._clock() < until_s:
                raise UnknownSchema(why)
            found = self._cache.schema(schema_id)
            if found is not None:
                self._use_cached(schema_id, fingerprint(found))
            else:
                found = self._ask_for_schema(schema_id)
                self._cache.keep_schema(schema_id, found)
            self._schemas[schema_id] = found
            return found

    def _ask_for_schema(self, schema_id: int) -> Schema:
        try:
            return self._fetch_existing(schema_id)
        except UnknownSchema as exc:
            if len(self._unknown) >= MAX_UNKNOWN_IDS:
                self._unknown.clear()
            self._unknown[schema_id] = (self._clock() + UNKNOWN_ID_TTL_S, str(exc))
            raise

    def _fetch_existing(self, schema_id: int) -> Schema:
        found = self._request_with_backoff(lambda: self.fetch_schema(schema_id))
        if found is None:
            raise UnknownSchema(f"schema id {schema_id} does not exist at {self.url}")
        return found

    def _request_with_backoff(self, request: Callable[[], Answer]) -> Answer:
        """Call ``request`` and return its result.

        Raises Unavailable if the registry does not respond. During the pause after such a failure, raises Unavailable
        without calling ``request``.
        """
        if self._last_failure is not None and self._clock() < self._not_before:
            raise Unavailable(self._last_failure.dependency, str(self._last_failure), hint=self._last_failure.hint)
        try:
            answer = request()
        except Unavailable as exc:
            self._last_failure = exc
            self._not_before = self._clock() + self._pause.next_s()
            raise
        self._pause.reset()
        self._last_failure = None
        return answer

    # Confirming cached ids

    def _use_cached(self, schema_id: int, expected: str) -> None:
        """Accept a cached id, and confirm it now or in the background. The caller must hold ``_lock``."""
        with self._trust_lock:
            self._unconfirmed[schema_id] = expected
            if self._confirming:
                return
        try:
            self._confirm(CONFIRM_TIMEOUT_S)
        except Unavailable:
            self._confirming = True
            threading.Thread(target=self._keep_confirming, name="registry-ids", daemon=True).start()
        if self._conflict is not None:
            raise self._conflict

    def _confirm(self, timeout_s: float) -> None:
        for schema_id, expected in list(self._unconfirmed.items()):
            if not self._is_unchanged(schema_id, expected, timeout_s):
                self._conflict = ConfigError(
                    f"the registry at {self.url} has another schema under the id {schema_id} than when this service"
                    " last used it",
                    hint="If the registry was rebuilt, run `rtfm-cli schemas register` on this machine. It clears the"
                    " cached ids. Then start the service again.",
                )
                for forget in self._on_conflict:
                    forget()
                return
            self._unconfirmed.pop(schema_id, None)

    def _is_unchanged(self, schema_id: int, expected: str, timeout_s: float | None = None) -> bool:
        try:
            found = self.fetch_schema(schema_id, timeout_s)
        except UnknownSchema:
            return False
        return found is not None and fingerprint(found) == expected

    def _keep_confirming(self) -> None:
        pause = Backoff(FIRST_PAUSE_S, LONGEST_PAUSE_S)
        while not self._closed.wait(pause.next_s()):
            try:
                self._confirm(self._timeout_s)
            except RtfmError:
                continue  # the registry is unreachable or refuses the credentials; try again after the pause
            with self._trust_lock:
                if not self._unconfirmed or self._conflict is not None:
                    self._confirming = False
                    return

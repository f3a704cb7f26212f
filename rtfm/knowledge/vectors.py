"""The vectors in Chroma: writes them, and finds the entries that are nearest to a question.

There is a collection for each guild and generation, with cosine distance. A passage or message has an entry in it if it
has a vector; the metadata of an entry names the passage. A rebuild makes the next generation, and the archive records
which generation is in use. Everything in Chroma can be restored from the archive, which stores every vector.

This module does not check which channels are visible. The archive filters the result of a search, because a ``where``
condition would make Chroma scan the collection.
"""

from __future__ import annotations

import re
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from typing import Any
from urllib.parse import unquote, urlsplit

import httpx
from attrs import frozen

from rtfm.addresses import redact_address
from rtfm.deadline import run_within
from rtfm.errors import ConfigError, InvalidEvent, Unavailable
from rtfm.knowledge.float32 import Vectors

CONNECT_TIMEOUT_S = 3.0
REQUEST_TIMEOUT_S = 30.0
IDLE_S = 5.0
"""A connection is not used again after it was idle for this many seconds.

An idle connection may be broken without notice, and a new connection takes only 1 ms."""

_BATCH = 1000
"""Maximum number of entries of a request. Chroma's limit is 5,461 with SQLite. Larger requests take more memory."""

_REFUSES_CONTENT = frozenset({400, 413, 414, 422})
"""HTTP statuses that mean that Chroma can never store the content.

404 and 409 are not among them, because these two depend on Chroma's current state."""

_IDS_PER_PAGE = 10_000
"""Maximum number of ids that a request reads."""

_REBUILD = "Run `rtfm-cli rebuild`."
_NOT_PLAIN = re.compile(r"[^A-Za-z0-9]")
_MAX_LINE_CHARACTERS = 300


@frozen(kw_only=True)
class VectorEntry:
    """One vector in Chroma. ``vector`` is a one-dimensional array of float32 with unit length."""

    entry_id: str
    passage_id: str
    vector: Vectors


class WrongCollection(ConfigError):
    """The vectors to write or to search for are of another model or dimension than the vectors of the collection."""


class ChromaVectors:
    """The vectors on a Chroma server. Thread-safe.

    A method that makes requests raises Unavailable when Chroma does not respond, and InvalidEvent when Chroma can never
    store a value.
    """

    def __init__(self, url: str, prefix: str = "", *, request_timeout_s: float = REQUEST_TIMEOUT_S) -> None:
        """Prepare the connection, which is made at its first use. All names of collections begin with ``prefix``."""
        parts = urlsplit(url)
        self._url = redact_address(url).rstrip("/")
        self._credentials = (unquote(parts.username), unquote(parts.password or "")) if parts.username else None
        self._request_timeout_s = request_timeout_s
        # A collection's name must begin with a letter or digit. If the prefix does not, an x is put before it.
        self._prefix = prefix if prefix[:1].isalnum() else f"x{prefix}" if prefix else ""
        self._lock = threading.Lock()
        self._cached_client: Any = None
        self._collections: dict[str, Any] = {}

    def check(self) -> None:
        """Raise Unavailable unless Chroma responds."""
        try:
            run_within(
                CONNECT_TIMEOUT_S,
                lambda: httpx.get(f"{self._url}/api/v2/heartbeat", timeout=CONNECT_TIMEOUT_S, auth=self._credentials),
            ).raise_for_status()
        except (httpx.HTTPError, TimeoutError) as exc:
            raise self._unavailable(exc) from exc

    def upsert(self, guild_id: str, entries: Sequence[VectorEntry], *, generation: int = 0, model: str = "") -> None:
        """Write entries, whose vectors were made with ``model``. An entry replaces an entry with the same id.

        Raises WrongCollection when the collection's vectors are of another model or dimension.
        """
        for start in range(0, len(entries), _BATCH):
            batch = entries[start : start + _BATCH]
            with self._collection(guild_id, generation, model, entries[0].vector, create=True) as collection:
                collection.upsert(
                    ids=[entry.entry_id for entry in batch],
                    embeddings=[entry.vector for entry in batch],
                    metadatas=[{"passage_id": entry.passage_id} for entry in batch],
                )

    def delete(self, guild_id: str, entry_ids: Sequence[str], *, generation: int = 0) -> None:
        """Remove entries. A missing entry or collection is not an error."""
        for start in range(0, len(entry_ids), _BATCH):
            with self._collection(guild_id, generation) as collection:
                if collection is not None:
                    collection.delete(ids=list(entry_ids[start : start + _BATCH]))

    def nearest(
        self, guild_id: str, vector: Vectors, count: int, *, generation: int = 0, model: str = ""
    ) -> list[str] | None:
        """Return the ids of the ``count`` entries nearest to ``vector``, nearest first; None if there is no collection.

        Raises WrongCollection when the collection's vectors are of another model or dimension.
        """
        with self._collection(guild_id, generation, model, vector) as collection:
            if collection is None:
                return None
            # The metadata is not requested, because reading it would take as long as the search itself.
            found = collection.query(query_embeddings=[vector], n_results=count, include=[])
        return [str(entry_id) for entry_id in found["ids"][0]]

    def entry_ids(self, guild_id: str, *, generation: int = 0, model: str = "") -> set[str]:
        """Return the ids of all entries in a collection. The result is empty if its vectors are of another model."""
        found: set[str] = set()
        with self._collection(guild_id, generation) as collection:
            if collection is None or _differs(model, (collection.metadata or {}).get("model")):
                return found
            while True:
                page = collection.get(limit=_IDS_PER_PAGE, offset=len(found), include=[])["ids"]
                found.update(page)
                if len(page) < _IDS_PER_PAGE:
                    return found

    def count(self, guild_id: str, *, generation: int = 0) -> int:
        """Return the number of entries in a collection."""
        with self._collection(guild_id, generation) as collection:
            return 0 if collection is None else int(collection.count())

    def generations(self, guild_id: str) -> list[int]:
        """Return the generations for which a guild has a collection, including those that are not in use."""
        first = self._name(guild_id, 0)
        with self._translate_errors():
            names = [collection.name for collection in self._client().list_collections()]
        return sorted(
            0 if name == first else int(name[len(first) + 1 :])
            for name in names
            if name == first or (name.startswith(f"{first}-") and name[len(first) + 1 :].isdecimal())
        )

    def counts(self) -> Mapping[str, int]:
        """Return the number of entries of each collection with this prefix, by name."""
        with self._translate_errors():
            return {
                collection.name: collection.count()
                for collection in self._client().list_collections()
                if collection.name.startswith(f"{self._prefix}rtfm-")
            }

    def forget_guild(self, guild_id: str) -> None:
        """Remove all collections of a guild."""
        for generation in self.generations(guild_id):
            self.forget(guild_id, generation)

    def forget(self, guild_id: str, generation: int) -> None:
        """Remove the collection of a guild's generation. A missing collection is not an error."""
        from chromadb.errors import NotFoundError

        name = self._name(guild_id, generation)
        self._collections.pop(name, None)
        with self._translate_errors(), suppress(NotFoundError):
            self._client().delete_collection(name)

    def close(self) -> None:
        """Close the connection. The next use connects again."""
        with self._lock:
            self._cached_client = None
            self._collections.clear()

    def _name(self, guild_id: str, generation: int) -> str:
        name = f"{self._prefix}rtfm-{_encode_guild_id(guild_id)}"
        return f"{name}-{generation}" if generation else name

    @contextmanager
    def _collection(
        self,
        guild_id: str,
        generation: int,
        model: str = "",
        vector: Vectors | None = None,
        *,
        create: bool = False,
    ) -> Iterator[Any]:
        """Yield the collection; None if it is missing and not to be created.

        If ``vector`` is given, raises WrongCollection unless ``model`` and the dimension are those of the collection.
        """
        name = self._name(guild_id, generation)
        with self._translate_errors():
            collection = self._collections.get(name)
            if collection is None:
                collection = self._open_collection(name, model, vector, create=create)
            if collection is not None:
                if vector is not None:
                    _check_model(name, collection.metadata or {}, model, len(vector))
                self._collections[name] = collection
            try:
                yield collection
            except Exception:  # raised again
                # The collection may have been removed and created again, so that the cached id is outdated.
                self._collections.pop(name, None)
                raise

    def _open_collection(self, name: str, model: str, vector: Vectors | None, *, create: bool) -> Any:
        from chromadb.errors import NotFoundError

        if create and vector is not None:
            return self._client().get_or_create_collection(
                name,
                embedding_function=None,
                configuration={"hnsw": {"space": "cosine"}},
                metadata={"model": model, "dimension": len(vector)},
            )
        try:
            return self._client().get_collection(name, embedding_function=None)
        except NotFoundError:
            return None

    def _client(self) -> Any:
        with self._lock:
            if self._cached_client is None:
                # The constructor of Chroma's client makes requests without a timeout, so Chroma is checked first.
                self.check()
                self._cached_client = run_within(
                    self._request_timeout_s,
                    lambda: _connect(self._url, self._credentials, self._request_timeout_s, self._raise_refusal),
                )
            return self._cached_client

    @contextmanager
    def _translate_errors(self) -> Iterator[None]:
        from chromadb.errors import (
            BatchSizeExceededError,
            ChromaError,
            DuplicateIDError,
            InvalidArgumentError,
            InvalidDimensionException,
            InvalidUUIDError,
        )

        try:
            yield
        except (BatchSizeExceededError, DuplicateIDError, InvalidUUIDError) as exc:
            # Chroma's client raises these errors before it makes a request.
            raise InvalidEvent(f"Chroma cannot store a value: {_first_line(str(exc))}") from exc
        except (InvalidArgumentError, InvalidDimensionException) as exc:
            if "dimension" not in str(exc):
                raise self._unavailable(exc) from exc
            raise WrongCollection(f"Chroma at {self._url}: {str(exc).partition(chr(10))[0]}", hint=_REBUILD) from exc
        except (httpx.TransportError, TimeoutError) as exc:
            # If one connection of the client is broken, the others may be broken, too. Each would take as long to fail,
            # so all connections are closed.
            self.close()
            raise self._unavailable(exc) from exc
        except (ChromaError, httpx.HTTPError, ValueError, KeyError, IndexError, TypeError) as exc:
            # The client raises KeyError, IndexError and TypeError for a response that is not from Chroma.
            raise self._unavailable(exc) from exc

    def _raise_refusal(self, reply: httpx.Response) -> None:
        """Raise InvalidEvent if Chroma refuses the content, and Unavailable for an error that is not from Chroma.

        Chroma's client cannot tell these two cases apart. The client raises all other errors itself.
        """
        if not reply.is_error:
            return
        try:
            body = reply.json()
            kind, message = str(body["error"]), str(body["message"])
        except (ValueError, KeyError, TypeError):
            kind, message = "", reply.text
        line = _first_line(message) or f"status {reply.status_code}"
        # An error that names the dimension is about the collection, and a QuotaError is about the server. Neither is
        # about the content.
        if reply.status_code in _REFUSES_CONTENT and kind != "QuotaError" and "dimension" not in message.lower():
            raise InvalidEvent(f"Chroma cannot store a value: {line}")
        if not kind:
            raise self._unavailable(RuntimeError(line))

    def _unavailable(self, exc: Exception) -> Unavailable:
        line = str(exc).strip().partition("\n")[0] or type(exc).__name__
        return Unavailable(
            "Chroma", f"Chroma at {self._url}: {line}", hint="Start it with `rtfm-cli local up`, or set CHROMA_URL."
        )


def _check_model(name: str, recorded: Mapping[str, Any], model: str, dimension: int) -> None:
    recorded_model, recorded_dimension = recorded.get("model"), recorded.get("dimension")
    if _differs(model, recorded_model) or _differs(dimension, recorded_dimension):
        raise WrongCollection(
            f"Chroma's collection {name} has vectors of {recorded_model or 'another model'}"
            f" ({recorded_dimension} dimensions), not of {model or 'this model'} ({dimension})",
            hint=_REBUILD,
        )


def _differs(expected: object, recorded: object) -> bool:
    """Whether both values are known and different."""
    return bool(expected) and bool(recorded) and expected != recorded


def _first_line(text: str) -> str:
    return text.strip().partition("\n")[0][:_MAX_LINE_CHARACTERS]


def _encode_guild_id(guild_id: str) -> str:
    """Return a guild id in the form that a collection's name contains.

    ASCII letters and digits stay as they are, so Discord's ids do not change. Any other character becomes a dot and its
    hex code, because the name must not contain ``:`` or ``@``, and contains ``-`` only as a separator.
    """
    if not guild_id:
        return "direct"
    encoded = _NOT_PLAIN.sub(lambda sign: f".{ord(sign[0]):02x}", guild_id)
    return ".64irect" if encoded == "direct" else encoded


def _connect(
    url: str,
    credentials: tuple[str, str] | None,
    request_timeout_s: float,
    raise_refusal: Callable[[httpx.Response], None],
) -> Any:
    import chromadb
    from chromadb.config import Settings

    parts = urlsplit(url)
    if not parts.hostname:
        raise ConfigError(f"CHROMA_URL: {url} is not an address", hint="Write http://host:port.")
    is_https = parts.scheme == "https"
    client = chromadb.HttpClient(
        host=parts.hostname,
        port=parts.port or (443 if is_https else 80),
        ssl=is_https,
        settings=Settings(anonymized_telemetry=False, chroma_http_keepalive_secs=IDLE_S),
    )
    # The client has no setting for a timeout. Without the lines below, it would wait for a response without limit.
    session = client._server._session  # type: ignore[attr-defined]  # not public
    session.timeout = httpx.Timeout(request_timeout_s, connect=CONNECT_TIMEOUT_S)
    if credentials:
        session.auth = credentials
    request = session.request

    def request_with_limit(*args: Any, **options: Any) -> Any:
        reply = run_within(request_timeout_s, lambda: request(*args, **options))
        raise_refusal(reply)
        return reply

    session.request = request_with_limit
    return client

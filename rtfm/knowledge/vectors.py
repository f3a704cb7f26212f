"""Chroma: finds the passages nearest to a question.

Owns the collections: one per guild, cosine distance, an entry for each passage and each message with the passage that
it belongs to. Everything in it can be made again from the archive, which keeps every vector. Promises nothing about who
may see what: the archive filters what is found here (a ``where`` in Chroma is a scan).
"""

from __future__ import annotations

import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any
from urllib.parse import urlsplit

import httpx
from attrs import frozen

from rtfm.errors import ConfigError, Unavailable
from rtfm.knowledge.embedding import DIMENSION, MODEL_NAME, Vectors

CONNECT_TIMEOUT_S = 3.0
REQUEST_TIMEOUT_S = 30.0

_BATCH = 1000
"""Entries a request: Chroma's own limit is 5,461 with SQLite and larger requests only take more memory."""


_PAGE = 10_000
"""Ids that are read at once."""


@frozen(kw_only=True)
class Entry:
    """One vector in Chroma. ``vector`` is float32, shape (384,), of unit length."""

    entry_id: str
    passage_id: str
    vector: Vectors


def passage_entry(passage_id: str) -> str:
    """The id of a passage's own entry."""
    return f"p{passage_id}"


def message_entry(message_id: str) -> str:
    """The id of a message's entry."""
    return f"m{message_id}"


class ChromaVectors:
    """The Chroma server. Thread-safe. Every method raises Unavailable when it does not answer."""

    def __init__(self, url: str, prefix: str = "") -> None:
        """Prepare; the first use connects. ``prefix`` goes before every collection's name."""
        self._url = url.rstrip("/")
        # A collection's name begins with a letter or digit.
        self._prefix = prefix if prefix[:1].isalnum() else f"x{prefix}" if prefix else ""
        self._lock = threading.Lock()
        self._connected: Any = None
        self._collections: dict[str, Any] = {}

    def check(self) -> None:
        """Raise Unavailable unless Chroma answers."""
        try:
            httpx.get(f"{self._url}/api/v2/heartbeat", timeout=CONNECT_TIMEOUT_S).raise_for_status()
        except httpx.HTTPError as exc:
            raise self._unavailable(exc) from exc

    def upsert(self, guild_id: str, entries: Sequence[Entry]) -> None:
        """Write entries; those whose id is there already are replaced."""
        for start in range(0, len(entries), _BATCH):
            batch = entries[start : start + _BATCH]
            with self._collection(guild_id) as collection:
                collection.upsert(
                    ids=[entry.entry_id for entry in batch],
                    embeddings=[entry.vector for entry in batch],
                    metadatas=[{"passage_id": entry.passage_id} for entry in batch],
                )

    def delete(self, guild_id: str, entry_ids: Sequence[str]) -> None:
        """Remove entries; ids that are not there are no error."""
        for start in range(0, len(entry_ids), _BATCH):
            with self._collection(guild_id) as collection:
                collection.delete(ids=list(entry_ids[start : start + _BATCH]))

    def nearest(self, guild_id: str, vector: Vectors, count: int) -> list[str]:
        """Passage ids of the ``count`` nearest entries, nearest first, each passage once."""
        with self._collection(guild_id) as collection:
            found = collection.query(query_embeddings=[vector], n_results=count, include=["metadatas"])
        return list(dict.fromkeys(str(metadata["passage_id"]) for metadata in found["metadatas"][0]))

    def entry_ids(self, guild_id: str) -> set[str]:
        """The ids of all entries of a guild."""
        found: set[str] = set()
        with self._collection(guild_id) as collection:
            while True:
                page = collection.get(limit=_PAGE, offset=len(found), include=[])["ids"]
                found.update(page)
                if len(page) < _PAGE:
                    return found

    def count(self, guild_id: str) -> int:
        """Entries of a guild."""
        with self._collection(guild_id) as collection:
            return int(collection.count())

    def counts(self) -> Mapping[str, int]:
        """Entries of each collection under this prefix, by name."""
        with self._translated():
            return {
                collection.name: collection.count()
                for collection in self._client().list_collections()
                if collection.name.startswith(f"{self._prefix}rtfm-")
            }

    def forget_guild(self, guild_id: str) -> None:
        """Remove everything of a guild."""
        name = self._name(guild_id)
        with self._translated():
            if any(collection.name == name for collection in self._client().list_collections()):
                self._client().delete_collection(name)
        self._collections.pop(name, None)

    def close(self) -> None:
        """Forget the connection."""
        with self._lock:
            self._connected = None
            self._collections.clear()

    def _name(self, guild_id: str) -> str:
        return f"{self._prefix}rtfm-{guild_id or 'direct'}"

    @contextmanager
    def _collection(self, guild_id: str) -> Iterator[Any]:
        name = self._name(guild_id)
        with self._translated():
            collection = self._collections.get(name)
            if collection is None:
                collection = self._client().get_or_create_collection(
                    name,
                    embedding_function=None,
                    configuration={"hnsw": {"space": "cosine"}},
                    metadata={"model": MODEL_NAME, "dimension": DIMENSION},
                )
                _check_model(name, collection.metadata or {})
                self._collections[name] = collection
            try:
                yield collection
            except Exception:
                # It may have been removed and made again under another id.
                self._collections.pop(name, None)
                raise

    def _client(self) -> Any:
        with self._lock:
            if self._connected is None:
                # Chroma's client waits for ever while it connects: ask first.
                self.check()
                self._connected = _connect(self._url)
            return self._connected

    @contextmanager
    def _translated(self) -> Iterator[None]:
        from chromadb.errors import ChromaError

        try:
            yield
        except (ChromaError, httpx.HTTPError, ValueError, KeyError, IndexError, TypeError) as exc:
            # The last three are what the client makes of an answer that is none of Chroma's.
            raise self._unavailable(exc) from exc

    def _unavailable(self, exc: Exception) -> Unavailable:
        line = str(exc).strip().partition("\n")[0] or type(exc).__name__
        return Unavailable(
            "Chroma", f"Chroma at {self._url}: {line}", hint="Start it with `rtfm-cli local up`, or set CHROMA_URL."
        )


def _check_model(name: str, recorded: Mapping[str, Any]) -> None:
    """Raise ConfigError when the vectors of a collection are of another model than this one's."""
    model, dimension = recorded.get("model", MODEL_NAME), recorded.get("dimension", DIMENSION)
    if (model, dimension) != (MODEL_NAME, DIMENSION):
        raise ConfigError(
            f"the collection {name} in Chroma holds vectors of {model} ({dimension} dimensions), "
            f"not of {MODEL_NAME} ({DIMENSION})",
            hint="Remove the collection and run `rtfm-cli rebuild`.",
        )


def _connect(url: str) -> Any:
    import chromadb
    from chromadb.config import Settings

    parts = urlsplit(url)
    if not parts.hostname:
        raise ConfigError(f"CHROMA_URL: {url} is no address", hint="Write http://host:port.")
    secure = parts.scheme == "https"
    client = chromadb.HttpClient(
        host=parts.hostname,
        port=parts.port or (443 if secure else 80),
        ssl=secure,
        settings=Settings(anonymized_telemetry=False),
    )
    # The client has no setting for it and would wait for ever for an answer.
    client._server._session.timeout = httpx.Timeout(REQUEST_TIMEOUT_S, connect=CONNECT_TIMEOUT_S)  # type: ignore[attr-defined]
    return client

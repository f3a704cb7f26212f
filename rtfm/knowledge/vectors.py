"""Chroma: finds the passages nearest to a question.

Owns the collections: one per guild and generation, cosine distance, an entry for each passage and each message with the
passage that it belongs to. A rebuild makes the next generation; the archive says which one is in use. Everything in it
can be made again from the archive, which keeps every vector. Promises nothing about who may see what: the archive
filters what is found here (a ``where`` in Chroma is a scan).
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
"""A connection that was idle for longer is not used again: it may be dead without a word, and a new one costs 1 ms."""

_BATCH = 1000
"""Entries a request: Chroma's own limit is 5,461 with SQLite and larger requests only take more memory."""


_REFUSES_CONTENT = frozenset({400, 413, 414, 422})
"""Statuses with which Chroma refuses what it is given; 404 and 409 depend on what is there at the moment."""

_PAGE = 10_000
"""Ids that are read at once."""

_NOT_PLAIN = re.compile(r"[^A-Za-z0-9]")
_LONGEST_LINE = 300


@frozen(kw_only=True)
class Entry:
    """One vector in Chroma. ``vector`` is float32, of one dimension and unit length."""

    entry_id: str
    passage_id: str
    vector: Vectors


class WrongCollection(ConfigError):
    """A collection holds vectors of another model than those that it is asked about."""


class ChromaVectors:
    """The Chroma server. Thread-safe.

    Every method raises Unavailable when it does not answer, and InvalidEvent when it can never take what it is given.
    """

    def __init__(self, url: str, prefix: str = "", *, request_timeout_s: float = REQUEST_TIMEOUT_S) -> None:
        """Prepare; the first use connects. ``prefix`` goes before every collection's name."""
        parts = urlsplit(url)
        self._url = redact_address(url).rstrip("/")
        self._credentials = (unquote(parts.username), unquote(parts.password or "")) if parts.username else None
        self._request_timeout_s = request_timeout_s
        # A collection's name begins with a letter or digit.
        self._prefix = prefix if prefix[:1].isalnum() else f"x{prefix}" if prefix else ""
        self._lock = threading.Lock()
        self._connected: Any = None
        self._collections: dict[str, Any] = {}

    def check(self) -> None:
        """Raise Unavailable unless Chroma answers."""
        try:
            run_within(
                CONNECT_TIMEOUT_S,
                lambda: httpx.get(f"{self._url}/api/v2/heartbeat", timeout=CONNECT_TIMEOUT_S, auth=self._credentials),
            ).raise_for_status()
        except (httpx.HTTPError, TimeoutError) as exc:
            raise self._unavailable(exc) from exc

    def upsert(self, guild_id: str, entries: Sequence[Entry], *, generation: int = 0, model: str = "") -> None:
        """Write entries, whose vectors are of ``model``; those whose id is there already are replaced.

        Raises WrongCollection when those that are there are of another model or dimension.
        """
        for start in range(0, len(entries), _BATCH):
            batch = entries[start : start + _BATCH]
            with self._collection(guild_id, generation, model, entries[0].vector, make=True) as collection:
                collection.upsert(
                    ids=[entry.entry_id for entry in batch],
                    embeddings=[entry.vector for entry in batch],
                    metadatas=[{"passage_id": entry.passage_id} for entry in batch],
                )

    def delete(self, guild_id: str, entry_ids: Sequence[str], *, generation: int = 0) -> None:
        """Remove entries; ids that are not there are no error, nor is a collection that is not there."""
        for start in range(0, len(entry_ids), _BATCH):
            with self._collection(guild_id, generation) as collection:
                if collection is not None:
                    collection.delete(ids=list(entry_ids[start : start + _BATCH]))

    def nearest(
        self, guild_id: str, vector: Vectors, count: int, *, generation: int = 0, model: str = ""
    ) -> list[str] | None:
        """The ids of the ``count`` nearest entries, nearest first; None without a collection.

        Raises WrongCollection when ``vector`` cannot be compared with what is there.
        """
        with self._collection(guild_id, generation, model, vector) as collection:
            if collection is None:
                return None
            # Metadata would take as long again as the search.
            found = collection.query(query_embeddings=[vector], n_results=count, include=[])
        return [str(entry_id) for entry_id in found["ids"][0]]

    def entry_ids(self, guild_id: str, *, generation: int = 0, model: str = "") -> set[str]:
        """The ids of all entries of a guild; none where they are of another model."""
        found: set[str] = set()
        with self._collection(guild_id, generation) as collection:
            if collection is None or _differs(model, (collection.metadata or {}).get("model")):
                return found
            while True:
                page = collection.get(limit=_PAGE, offset=len(found), include=[])["ids"]
                found.update(page)
                if len(page) < _PAGE:
                    return found

    def count(self, guild_id: str, *, generation: int = 0) -> int:
        """Entries of a guild."""
        with self._collection(guild_id, generation) as collection:
            return 0 if collection is None else int(collection.count())

    def generations(self, guild_id: str) -> list[int]:
        """The generations of a guild's collection that are there, one of them in use."""
        first = self._name(guild_id, 0)
        with self._translated():
            names = [collection.name for collection in self._client().list_collections()]
        return sorted(
            0 if name == first else int(name[len(first) + 1 :])
            for name in names
            if name == first or (name.startswith(f"{first}-") and name[len(first) + 1 :].isdecimal())
        )

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
        for generation in self.generations(guild_id):
            self.forget(guild_id, generation)

    def forget(self, guild_id: str, generation: int) -> None:
        """Remove one generation of a guild's collection; one that is not there is no error."""
        from chromadb.errors import NotFoundError

        name = self._name(guild_id, generation)
        self._collections.pop(name, None)
        with self._translated(), suppress(NotFoundError):
            self._client().delete_collection(name)

    def close(self) -> None:
        """Forget the connection."""
        with self._lock:
            self._connected = None
            self._collections.clear()

    def _name(self, guild_id: str, generation: int) -> str:
        name = f"{self._prefix}rtfm-{_named(guild_id)}"
        return f"{name}-{generation}" if generation else name

    @contextmanager
    def _collection(
        self,
        guild_id: str,
        generation: int,
        model: str = "",
        vector: Vectors | None = None,
        *,
        make: bool = False,
    ) -> Iterator[Any]:
        """The collection, checked for ``model`` and ``vector``; None when it is not there and not to be made."""
        name = self._name(guild_id, generation)
        with self._translated():
            collection = self._collections.get(name)
            if collection is None:
                collection = self._opened(name, model, vector, make=make)
            if collection is not None:
                if vector is not None:
                    _check_model(name, collection.metadata or {}, model, len(vector))
                self._collections[name] = collection
            try:
                yield collection
            except Exception:  # raised again
                # It may have been removed and made again under another id.
                self._collections.pop(name, None)
                raise

    def _opened(self, name: str, model: str, vector: Vectors | None, *, make: bool) -> Any:
        from chromadb.errors import NotFoundError

        if make and vector is not None:
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
            if self._connected is None:
                # Chroma's client makes requests while it is made, and has no limit for them.
                self.check()
                self._connected = run_within(
                    self._request_timeout_s,
                    lambda: _connect(self._url, self._credentials, self._request_timeout_s, self._raise_refusal),
                )
            return self._connected

    @contextmanager
    def _translated(self) -> Iterator[None]:
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
            # Before it asks the server.
            raise InvalidEvent(f"Chroma cannot store a value: {_line(str(exc))}") from exc
        except (InvalidArgumentError, InvalidDimensionException) as exc:
            if "dimension" not in str(exc):
                raise self._unavailable(exc) from exc
            raise WrongCollection(
                f"Chroma at {self._url}: {str(exc).partition(chr(10))[0]}", hint="`rtfm-cli rebuild` makes it again."
            ) from exc
        except (httpx.TransportError, TimeoutError) as exc:
            # Others of its connections may be as dead, and each would cost as long.
            self.close()
            raise self._unavailable(exc) from exc
        except (ChromaError, httpx.HTTPError, ValueError, KeyError, IndexError, TypeError) as exc:
            # The last three are what the client makes of an answer that is none of Chroma's.
            raise self._unavailable(exc) from exc

    def _raise_refusal(self, reply: httpx.Response) -> None:
        """Raise what Chroma's client does not tell apart, by the status of a reply."""
        if not reply.is_error:
            return
        try:
            body = reply.json()
            kind, what = str(body["error"]), str(body["message"])
        except (ValueError, KeyError, TypeError):
            kind, what = "", reply.text
        line = _line(what) or f"status {reply.status_code}"
        # Another dimension is the collection's fault, a quota is the server's.
        if reply.status_code in _REFUSES_CONTENT and kind != "QuotaError" and "dimension" not in what.lower():
            raise InvalidEvent(f"Chroma cannot store a value: {line}")
        if not kind:
            raise self._unavailable(RuntimeError(line))

    def _unavailable(self, exc: Exception) -> Unavailable:
        line = str(exc).strip().partition("\n")[0] or type(exc).__name__
        return Unavailable(
            "Chroma", f"Chroma at {self._url}: {line}", hint="Start it with `rtfm-cli local up`, or set CHROMA_URL."
        )


def _check_model(name: str, recorded: Mapping[str, Any], model: str, dimension: int) -> None:
    there = (recorded.get("model"), recorded.get("dimension"))
    if _differs(model, there[0]) or _differs(dimension, there[1]):
        raise WrongCollection(
            f"the collection {name} in Chroma holds vectors of {there[0] or 'another model'} ({there[1]} dimensions), "
            f"not of {model or 'this model'} ({dimension})",
            hint="`rtfm-cli rebuild` makes it again.",
        )


def _differs(wanted: object, recorded: object) -> bool:
    """Whether both are known and not the same."""
    return bool(wanted) and bool(recorded) and wanted != recorded


def _line(text: str) -> str:
    return text.strip().partition("\n")[0][:_LONGEST_LINE]


def _named(guild_id: str) -> str:
    """A guild in the name of a collection, where ``-`` stands before its generation, and no ``:`` or ``@`` may stand.

    Letters and digits stand for themselves, so that Discord's ids do; other signs as a dot and two hexadecimal digits.
    """
    if not guild_id:
        return "direct"
    named = _NOT_PLAIN.sub(lambda sign: f".{ord(sign[0]):02x}", guild_id)
    return ".64irect" if named == "direct" else named


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
        raise ConfigError(f"CHROMA_URL: {url} is no address", hint="Write http://host:port.")
    secure = parts.scheme == "https"
    client = chromadb.HttpClient(
        host=parts.hostname,
        port=parts.port or (443 if secure else 80),
        ssl=secure,
        settings=Settings(anonymized_telemetry=False, chroma_http_keepalive_secs=IDLE_S),
    )
    # The client has no setting for it and would wait for ever for an answer.
    session = client._server._session  # type: ignore[attr-defined]  # not public
    session.timeout = httpx.Timeout(request_timeout_s, connect=CONNECT_TIMEOUT_S)
    if credentials:
        session.auth = credentials
    request = session.request

    def asked(*args: Any, **options: Any) -> Any:
        reply = run_within(request_timeout_s, lambda: request(*args, **options))
        raise_refusal(reply)
        return reply

    session.request = asked
    return client

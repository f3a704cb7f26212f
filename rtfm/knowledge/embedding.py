"""The embedding model: all-MiniLM-L6-v2 in ONNX, the model that Chroma uses by default.

Owns the model's files once they are there, and batching. Promises the vectors of Chroma's own embedding function (the
same files, 256 tokens, mean pooling, unit length), but pads a batch to its longest text only. Never downloads: the
model is fetched by `rtfm-cli local up`, `demo` or `doctor --fetch-model`.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from rtfm.errors import ConfigError
from rtfm.knowledge.archive.rows import GuildCollection
from rtfm.knowledge.float32 import Vectors
from rtfm.settings import Settings
from rtfm.telemetry import EMBEDDED, get_logger

MODEL_NAME = "all-MiniLM-L6-v2"
DIMENSION = 384
MAX_TOKENS = 256
"""What Chroma's embedding function and sentence-transformers cut texts at."""

_FILES = ("model.onnx", "tokenizer.json")
_TOKENS_PER_RUN = 1280
"""Tokens, padding included, that go through the model at once: more of them fall out of the processor's caches."""

_log = get_logger(__name__)


class Embedding(Protocol):
    """What turns texts into vectors, which compare with those of the same ``name`` and ``dimension`` only."""

    @property
    def name(self) -> str: ...

    @property
    def dimension(self) -> int: ...

    def embed(self, texts: Sequence[str]) -> Vectors:
        """One unit vector a text: float32, shape (len(texts), dimension)."""
        ...


def serves(collection: GuildCollection | None, embedding: Embedding | None) -> bool:
    """Whether ``embedding`` made the vectors of ``collection``, or will: it compares with no others."""
    if embedding is None or collection is None:
        return embedding is not None
    return same_model(collection.model, embedding.name) and collection.dimension == embedding.dimension


def same_model(one: str | None, other: str | None) -> bool:
    """Whether two recorded names are of one model: its files decide, not what their folder is called here."""
    return one == other or (one is not None and other is not None and _files_of(one) == _files_of(other))


def _files_of(name: str) -> str:
    return name.rpartition("@")[2]


class OnnxEmbedding:
    """The model, loaded. Thread-safe: onnxruntime's ``run`` and the tokenizer are.

    ``name`` is that of its folder with a digest of its files, ``folder@digest``; see ``same_model``.
    """

    def __init__(self, session: Any, tokenizer: Any, *, name: str) -> None:
        """Use ``load``."""
        self.name = name
        self.dimension = DIMENSION
        self._session = session
        self._tokenizer = tokenizer

    @classmethod
    def load(cls, directory: Path, threads: int) -> OnnxEmbedding:
        """Load from ``directory`` or its ``onnx`` child.

        Raises ConfigError that names the missing or unreadable file.
        """
        folder = model_folder(directory)
        if folder is None:
            raise ConfigError(
                f"{directory} is not a folder of {MODEL_NAME}: it needs {' and '.join(_FILES)}{_lacks(directory)}",
                hint="`rtfm-cli doctor --fetch-model` fetches it to RTFM_HOME, where it is found unless"
                " RTFM_EMBEDDING_MODEL_DIR says otherwise.",
            )
        import onnxruntime
        from tokenizers import Tokenizer

        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads
        options.inter_op_num_threads = 1
        options.log_severity_level = 3
        # The arena keeps the memory of the largest batch for ever.
        options.enable_cpu_mem_arena = False
        try:
            session = onnxruntime.InferenceSession(
                str(folder / "model.onnx"), sess_options=options, providers=["CPUExecutionProvider"]
            )
            tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
            tokenizer.enable_truncation(max_length=MAX_TOKENS)
            tokenizer.no_padding()
            model = cls(session, tokenizer, name=_identity(folder))
            # The session says nothing certain about its dimension, and a damaged model fails only when it is used.
            model.dimension = model._run([tokenizer.encode("a test").ids]).shape[1]
        except Exception as exc:  # both libraries raise their own untyped errors
            raise ConfigError(
                f"the embedding model in {folder} cannot be loaded: {str(exc).partition(chr(10))[0]}",
                hint="Delete the folder and run `rtfm-cli doctor --fetch-model`.",
            ) from exc
        return model

    def embed(self, texts: Sequence[str]) -> Vectors:
        """One unit vector a text: float32, shape (len(texts), dimension). An empty text has a vector, too."""
        vectors = np.empty((len(texts), self.dimension), dtype=np.float32)
        if not texts:
            return vectors
        encoded = self._tokenizer.encode_batch_fast(list(texts))
        tokens = [encoding.ids for encoding in encoded]
        # Texts of like length share a run, so that little of it is padding.
        order = sorted(range(len(texts)), key=lambda i: len(tokens[i]))
        start = 0
        while start < len(order):
            stop = _end_of_run(order, tokens, start)
            chosen = order[start:stop]
            vectors[chosen] = self._run([tokens[i] for i in chosen])
            start = stop
        EMBEDDED.inc(len(texts))
        return vectors

    def _run(self, tokens: list[list[int]]) -> Vectors:
        width = max(len(ids) for ids in tokens)
        input_ids = np.zeros((len(tokens), width), dtype=np.int64)
        mask = np.zeros((len(tokens), width), dtype=np.int64)
        for row, ids in enumerate(tokens):
            input_ids[row, : len(ids)] = ids
            mask[row, : len(ids)] = 1
        (states, *_) = self._session.run(
            None, {"input_ids": input_ids, "attention_mask": mask, "token_type_ids": np.zeros_like(input_ids)}
        )
        sums = np.einsum("btd,bt->bd", states, mask.astype(np.float32))
        vectors: Vectors = sums / np.maximum(np.linalg.norm(sums, axis=1, keepdims=True), 1e-12)
        return vectors.astype(np.float32)


def _end_of_run(order: list[int], tokens: list[list[int]], start: int) -> int:
    stop = start + 1
    while stop < len(order) and len(tokens[order[stop]]) * (stop + 1 - start) <= _TOKENS_PER_RUN:
        stop += 1
    return stop


def model_folder(directory: Path) -> Path | None:
    """Where the model's files stand: ``directory`` itself or its ``onnx`` child; None if in neither."""
    for folder in (directory, directory / "onnx"):
        if all((folder / name).is_file() for name in _FILES):
            return folder
    return None


def _lacks(directory: Path) -> str:
    folder = directory / "onnx" if (directory / "onnx").is_dir() else directory
    missing = [name for name in _FILES if not (folder / name).is_file()]
    return f"; {' and '.join(missing)} {'is' if len(missing) == 1 else 'are'} missing" if folder.is_dir() else ""


def _identity(folder: Path) -> str:
    """The folder's name, as people know the model, and a digest of the files that decide what its vectors are."""
    digest = hashlib.sha256()
    for name in _FILES:
        with (folder / name).open("rb") as file:
            digest.update(hashlib.file_digest(file, "sha256").digest())
    named = folder.resolve().parent if folder.name == "onnx" else folder.resolve()
    return f"{named.name}@{digest.hexdigest()[:12]}"


def default_model_dir(home: Path) -> Path:
    """Where the model is fetched to."""
    return home / "models" / MODEL_NAME


def find_model(settings: Settings) -> OnnxEmbedding | None:
    """The model of the settings, or the one that was fetched; None, with one line in the log, when there is none.

    Raises ConfigError when RTFM_EMBEDDING_MODEL_DIR is given and is no model folder, or a fetched model is damaged.
    """
    if settings.embedding_model_dir is not None:
        return OnnxEmbedding.load(settings.embedding_model_dir, settings.embedding_threads)
    directory = default_model_dir(settings.home)
    if not directory.exists():
        _log.warning(
            "search is lexical: no embedding model", looked_in=str(directory), mend="rtfm-cli doctor --fetch-model"
        )
        return None
    return OnnxEmbedding.load(directory, settings.embedding_threads)


def model_name(settings: Settings) -> str | None:
    """The name of the model that ``find_model`` would load, without loading it; None where there is none."""
    folder = model_folder(settings.embedding_model_dir or default_model_dir(settings.home))
    return None if folder is None else _identity(folder)

"""The embedding model: all-MiniLM-L6-v2 in ONNX, the model that Chroma uses by default.

Owns loading the model's files, and batching. Promises the vectors of Chroma's own embedding function (the same files,
256 tokens, mean pooling, unit length), but pads a batch to its longest text only. Never downloads: `rtfm-cli local up`,
`demo` and `doctor --fetch-model` fetch the model.
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
"""Tokens at which Chroma's embedding function and sentence-transformers truncate a text."""

_FILES = ("model.onnx", "tokenizer.json")
_TOKENS_PER_RUN = 1280
"""Tokens of one run of the model, padding included; more of them do not fit into the processor's caches."""

_log = get_logger(__name__)


class Embedding(Protocol):
    """Turns texts into vectors, which are comparable only with vectors of the same ``name`` and ``dimension``."""

    @property
    def name(self) -> str:
        """The model's name."""
        ...

    @property
    def dimension(self) -> int:
        """How many numbers a vector has."""
        ...

    def embed(self, texts: Sequence[str]) -> Vectors:
        """Return one unit vector for each text: float32, shape (len(texts), dimension)."""
        ...


def is_compatible(collection: GuildCollection | None, embedding: Embedding | None) -> bool:
    """Whether ``embedding`` made the vectors of ``collection``, or will make them if there is no collection yet."""
    if embedding is None or collection is None:
        return embedding is not None
    return is_same_model(collection.model, embedding.name) and collection.dimension == embedding.dimension


def is_same_model(first: str | None, second: str | None) -> bool:
    """Whether two recorded names are of the same model: the digest of its files decides, not the folder's name."""
    return first == second or (
        first is not None and second is not None and _files_digest(first) == _files_digest(second)
    )


def _files_digest(name: str) -> str:
    return name.rpartition("@")[2]


class OnnxEmbedding:
    """The model, loaded. Thread-safe: onnxruntime's ``run`` and the tokenizer are.

    ``name`` is the folder's name with a digest of the model's files, ``folder@digest``; see ``is_same_model``.
    """

    def __init__(self, session: Any, tokenizer: Any, *, name: str) -> None:
        """Use ``load`` instead."""
        self.name = name
        self.dimension = DIMENSION
        self._session = session
        self._tokenizer = tokenizer

    @classmethod
    def load(cls, directory: Path, threads: int) -> OnnxEmbedding:
        """Load the model from ``directory`` or its ``onnx`` child.

        Raises ConfigError with the name of the missing or unreadable file.
        """
        folder = model_folder(directory)
        if folder is None:
            raise ConfigError(
                f"{directory} does not contain {MODEL_NAME}, which needs {' and '.join(_FILES)}"
                f"{_describe_missing(directory)}",
                hint="`rtfm-cli doctor --fetch-model` fetches it to RTFM_HOME; it is found there unless"
                " RTFM_EMBEDDING_MODEL_DIR is set.",
            )
        import onnxruntime
        from tokenizers import Tokenizer

        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads
        options.inter_op_num_threads = 1
        options.log_severity_level = 3
        # The arena keeps the memory of the largest batch until the process ends.
        options.enable_cpu_mem_arena = False
        try:
            session = onnxruntime.InferenceSession(
                str(folder / "model.onnx"), sess_options=options, providers=["CPUExecutionProvider"]
            )
            tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
            tokenizer.enable_truncation(max_length=MAX_TOKENS)
            tokenizer.no_padding()
            model = cls(session, tokenizer, name=_model_identity(folder))
            # A session does not report its dimension reliably, and a damaged model fails only when it is used.
            model.dimension = model._run([tokenizer.encode("a test").ids]).shape[1]
        except Exception as exc:  # both libraries raise untyped errors of their own
            raise ConfigError(
                f"the embedding model in {folder} cannot be loaded: {str(exc).partition(chr(10))[0]}",
                hint="Delete the folder and run `rtfm-cli doctor --fetch-model`.",
            ) from exc
        return model

    def embed(self, texts: Sequence[str]) -> Vectors:
        """Return one unit vector for each text, also for an empty one: float32, shape (len(texts), dimension)."""
        vectors = np.empty((len(texts), self.dimension), dtype=np.float32)
        if not texts:
            return vectors
        encoded = self._tokenizer.encode_batch_fast(list(texts))
        tokens = [encoding.ids for encoding in encoded]
        # Texts of similar length share a run, so that little of it is padding.
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
    """Return the folder of the model's files: ``directory`` itself or its ``onnx`` child; None if neither has them."""
    for folder in (directory, directory / "onnx"):
        if all((folder / name).is_file() for name in _FILES):
            return folder
    return None


def _describe_missing(directory: Path) -> str:
    folder = directory / "onnx" if (directory / "onnx").is_dir() else directory
    missing = [name for name in _FILES if not (folder / name).is_file()]
    return f"; {' and '.join(missing)} {'is' if len(missing) == 1 else 'are'} missing" if folder.is_dir() else ""


def _model_identity(folder: Path) -> str:
    """Return the folder's name, by which people know the model, with a digest of the files that decide its vectors."""
    digest = hashlib.sha256()
    for name in _FILES:
        with (folder / name).open("rb") as file:
            digest.update(hashlib.file_digest(file, "sha256").digest())
    named = folder.resolve().parent if folder.name == "onnx" else folder.resolve()
    return f"{named.name}@{digest.hexdigest()[:12]}"


def default_model_dir(home: Path) -> Path:
    """Return the folder that the model is fetched to."""
    return home / "models" / MODEL_NAME


def find_model(settings: Settings) -> OnnxEmbedding | None:
    """Load the model of the settings or the fetched one; without either, log a warning and return None.

    Raises ConfigError when RTFM_EMBEDDING_MODEL_DIR is not a model folder, or when the fetched model is damaged.
    """
    if settings.embedding_model_dir is not None:
        return OnnxEmbedding.load(settings.embedding_model_dir, settings.embedding_threads)
    directory = default_model_dir(settings.home)
    if not directory.exists():
        _log.warning(
            "no embedding model, search is lexical", looked_in=str(directory), hint="rtfm-cli doctor --fetch-model"
        )
        return None
    return OnnxEmbedding.load(directory, settings.embedding_threads)


def model_name(settings: Settings) -> str | None:
    """Return the name of the model that ``find_model`` would load, without loading it; None if there is none."""
    folder = model_folder(settings.embedding_model_dir or default_model_dir(settings.home))
    return None if folder is None else _model_identity(folder)

"""The embedding model: all-MiniLM-L6-v2 in ONNX, the model that Chroma uses by default.

This module loads the model's files and embeds texts in batches. From the same files, it makes the same vectors as
Chroma's embedding function (256 tokens, mean pooling, unit length). This module is faster because it pads texts
only to the length of the longest text in the same run of the model. The model is downloaded by `rtfm-cli local up`,
`rtfm-cli demo`, `rtfm-cli doctor --fetch-model` and Compose's `init` service, not by this module.
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
"""Maximum number of tokens of a text that are embedded.

Chroma's embedding function and sentence-transformers have the same limit."""

_FILES = ("model.onnx", "tokenizer.json")
_TOKENS_PER_RUN = 1280
"""Maximum number of tokens in a run of the model, including padding. More do not fit into the CPU's caches."""

_log = get_logger(__name__)


class Embedding(Protocol):
    """An embedding model. Only vectors of models with the same ``name`` and ``dimension`` can be compared."""

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
    """Whether vectors of ``embedding`` can be compared with those of ``collection``.

    The result is False if ``embedding`` is None. Otherwise it is True if ``collection`` is None.
    """
    if embedding is None or collection is None:
        return embedding is not None
    return is_same_model(collection.model, embedding.name) and collection.dimension == embedding.dimension


def is_same_model(first: str | None, second: str | None) -> bool:
    """Whether two model names have the same digest of the model's files. The names of the folders may differ."""
    return first == second or (
        first is not None and second is not None and _files_digest(first) == _files_digest(second)
    )


def _files_digest(name: str) -> str:
    return name.rpartition("@")[2]


class OnnxEmbedding:
    """The loaded model. Thread-safe, because onnxruntime's ``run`` and the tokenizer are.

    ``name`` is ``folder@digest``, with a digest of the model's files; see ``is_same_model``.
    """

    def __init__(self, session: Any, tokenizer: Any, *, name: str) -> None:
        """Use ``load`` instead."""
        self.name = name
        self.dimension = DIMENSION
        self._session = session
        self._tokenizer = tokenizer

    @classmethod
    def load(cls, directory: Path, threads: int) -> OnnxEmbedding:
        """Load the model from ``directory`` or its subfolder ``onnx``.

        Raises ConfigError if a file is missing, or if the model cannot be loaded.
        """
        folder = model_folder(directory)
        if folder is None:
            raise ConfigError(
                f"{directory} does not contain {MODEL_NAME}, which needs {' and '.join(_FILES)}"
                f"{_describe_missing(directory)}",
                hint="`rtfm-cli doctor --fetch-model` fetches the model to RTFM_HOME. To use it from there, do not set"
                " RTFM_EMBEDDING_MODEL_DIR.",
            )
        import onnxruntime
        from tokenizers import Tokenizer

        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads
        options.inter_op_num_threads = 1
        options.log_severity_level = 3
        # With onnxruntime's memory arena, the process would never release the memory of its largest batch.
        options.enable_cpu_mem_arena = False
        try:
            session = onnxruntime.InferenceSession(
                str(folder / "model.onnx"), sess_options=options, providers=["CPUExecutionProvider"]
            )
            tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
            tokenizer.enable_truncation(max_length=MAX_TOKENS)
            tokenizer.no_padding()
            model = cls(session, tokenizer, name=_model_identity(folder))
            # One text is embedded as a test: a session does not report its dimension reliably, and a damaged model may
            # load and fail only when it is used.
            model.dimension = model._run([tokenizer.encode("a test").ids]).shape[1]
        except Exception as exc:  # both libraries raise untyped errors of their own
            raise ConfigError(
                f"the embedding model in {folder} cannot be loaded: {str(exc).partition(chr(10))[0]}",
                hint="Delete the folder and run `rtfm-cli doctor --fetch-model`.",
            ) from exc
        return model

    def embed(self, texts: Sequence[str]) -> Vectors:
        """Return one unit vector for each text, even for an empty text: float32, shape (len(texts), dimension)."""
        vectors = np.empty((len(texts), self.dimension), dtype=np.float32)
        if not texts:
            return vectors
        encoded = self._tokenizer.encode_batch_fast(list(texts))
        tokens = [encoding.ids for encoding in encoded]
        # Texts of similar length are put into the same run, so that the run contains little padding.
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
    """Return the folder of the model's files: ``directory`` or its subfolder ``onnx``; None if neither has them."""
    for folder in (directory, directory / "onnx"):
        if all((folder / name).is_file() for name in _FILES):
            return folder
    return None


def _describe_missing(directory: Path) -> str:
    folder = directory / "onnx" if (directory / "onnx").is_dir() else directory
    missing = [name for name in _FILES if not (folder / name).is_file()]
    return f"; {' and '.join(missing)} {'is' if len(missing) == 1 else 'are'} missing" if folder.is_dir() else ""


def _model_identity(folder: Path) -> str:
    """Return the model's name: the name of its folder, and a digest of the model's files."""
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
    """Load the model from RTFM_EMBEDDING_MODEL_DIR or, if that is not set, the model that was fetched to RTFM_HOME.

    Logs a warning and returns None if there is no model. Raises ConfigError when RTFM_EMBEDDING_MODEL_DIR does not
    contain a model, or when the fetched model is incomplete or damaged.
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

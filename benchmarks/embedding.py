"""Embedding: texts per second, against Chroma's default embedding function with the same model files.

``python -m benchmarks.embedding [--json]`` runs it, with the model in RTFM_EMBEDDING_MODEL_DIR or, if that is not set,
the model that was fetched to RTFM_HOME.
"""

from __future__ import annotations

import random
import shutil
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.report import figure, interleave, report
from rtfm import settings
from rtfm.knowledge.embedding import OnnxEmbedding, default_model_dir, model_folder

SPEED_TARGET = 6.0
COSINE_TARGET = 0.999
TEXTS = 128
TOKENS = 40

# Each word is one token of the model's vocabulary.
_WORDS = (
    "disk",
    "driver",
    "kernel",
    "update",
    "package",
    "server",
    "screen",
    "sound",
    "error",
    "file",
    "network",
    "key",
)


def build_texts(tokens: int, count: int, seed: int) -> list[str]:
    """Build texts of ``tokens`` tokens each, including the two tokens that mark start and end."""
    rng = random.Random(seed)
    return [" ".join(rng.choices(_WORDS, k=tokens - 2)) for _ in range(count)]


def main() -> int:
    """Run the benchmark. Return 1 if a target is missed, and 2 if there is no model."""
    loaded = settings.load()
    folder = model_folder(loaded.embedding_model_dir or default_model_dir(loaded.home))
    if folder is None:
        print(
            "no embedding model: set RTFM_EMBEDDING_MODEL_DIR or run `rtfm-cli doctor --fetch-model`", file=sys.stderr
        )
        return 2
    ours = OnnxEmbedding.load(folder, loaded.embedding_threads)
    texts = build_texts(TOKENS, TEXTS, seed=1)
    with tempfile.TemporaryDirectory() as scratch:
        peer = load_chroma_default(folder, Path(scratch))
        compared = [*texts[:16], "Short.", "word " * 300]
        cosines = np.sum(np.asarray(peer(compared)) * ours.embed(compared), axis=1)
        rates = interleave(
            {"ours": lambda: _measure_rate(ours.embed, texts), "peer": lambda: _measure_rate(peer, texts)}
        )
    figures = [
        figure(f"texts at {TOKENS} tokens", rates["ours"], rates["peer"], SPEED_TARGET, unit="texts/s"),
        figure("least cosine to Chroma's vector", float(np.min(cosines)), 1.0, COSINE_TARGET),
    ]
    return 0 if report(figures) else 1


def _measure_rate(embed: Callable[[list[str]], Any], texts: list[str]) -> float:
    start = time.perf_counter()
    embed(texts)
    return len(texts) / (time.perf_counter() - start)


def load_chroma_default(folder: Path, scratch: Path) -> Callable[[list[str]], Any]:
    """Load Chroma's default embedding function with a copy of the model files in ``folder``.

    The copy is made in ``scratch``, where the function is told to look for the files.
    """
    from chromadb.utils.embedding_functions.onnx_mini_lm_l6_v2 import ONNXMiniLM_L6_V2

    function = ONNXMiniLM_L6_V2()
    function.DOWNLOAD_PATH = scratch
    shutil.copytree(folder, scratch / function.EXTRACTED_FOLDER_NAME)
    return function


if __name__ == "__main__":
    sys.exit(main())

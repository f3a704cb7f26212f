"""The embedding model: its files, its vectors, and what happens without it."""

from __future__ import annotations

import random
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from attrs import evolve

from rtfm.errors import ConfigError
from rtfm.knowledge.embedding import (
    DIMENSION,
    OnnxEmbedding,
    default_model_dir,
    find_model,
    is_same_model,
    model_folder,
)
from rtfm.knowledge.float32 import from_bytes, to_bytes
from rtfm.settings import Settings


def test_a_folder_with_a_file_missing_is_named(tmp_path: Path) -> None:
    """If a file of the model is missing, the error names the folder and both required files."""
    (tmp_path / "model.onnx").write_bytes(b"x")
    with pytest.raises(ConfigError, match=r"model\.onnx and tokenizer\.json") as caught:
        OnnxEmbedding.load(tmp_path, 1)
    assert str(tmp_path) in str(caught.value)


def test_a_corrupted_model_is_one_line_with_the_fix(tmp_path: Path) -> None:
    """If the model is corrupted, as after an interrupted copy, the error is one line, and its hint names the fix."""
    (tmp_path / "model.onnx").write_bytes(b"no model")
    (tmp_path / "tokenizer.json").write_text("{}")
    with pytest.raises(ConfigError, match="cannot be loaded") as caught:
        OnnxEmbedding.load(tmp_path, 1)
    assert "\n" not in str(caught.value)
    assert "fetch-model" in str(caught.value.hint)


def test_without_a_model_search_is_lexical_unless_one_was_asked_for(tmp_path: Path) -> None:
    """If no folder is configured, there is no model; if the configured folder has no model, an error is raised."""
    settings = evolve(Settings(), home=tmp_path)
    assert find_model(settings) is None
    with pytest.raises(ConfigError):
        find_model(evolve(settings, embedding_model_dir=tmp_path / "none"))


def test_the_folder_or_its_onnx_child_is_accepted(tmp_path: Path) -> None:
    """The configured folder may be "onnx", to which the model's archive unpacks, or the parent of that folder."""
    child = default_model_dir(tmp_path) / "onnx"
    child.mkdir(parents=True)
    for name in ("model.onnx", "tokenizer.json"):
        (child / name).touch()
    assert model_folder(default_model_dir(tmp_path)) == model_folder(child) == child


def test_a_model_is_the_same_in_a_folder_of_another_name_and_another_with_other_files() -> None:
    """The identity of a model depends on its files and not on its folder.

    Otherwise moving the folder would make all vectors obsolete.
    """
    assert is_same_model("all-MiniLM-L6-v2@af46d50b108c", "model@af46d50b108c")
    assert not is_same_model("all-MiniLM-L6-v2@af46d50b108c", "all-MiniLM-L6-v2@000000000000")
    assert not is_same_model(None, "all-MiniLM-L6-v2@af46d50b108c")
    assert is_same_model(None, None)


def test_vectors_come_back_from_the_archive_as_they_were() -> None:
    """Vectors come back unchanged from the bytes that the archive stores."""
    vectors = np.random.default_rng(1).standard_normal((3, DIMENSION), dtype=np.float32)
    assert np.array_equal(from_bytes([to_bytes(vector) for vector in vectors]), vectors)
    assert len(from_bytes([])) == 0


def test_the_real_model_gives_the_same_vector_in_any_batch(model_dir: Path) -> None:
    """The real model gives a text the same vector in any batch, and gives texts of similar meaning similar vectors.

    In a batch, each text is padded to the length of the longest text, which must not change its vector.
    """
    model = OnnxEmbedding.load(model_dir, 1)
    texts = ["how do I mount a disk?", "word " * 1000, "", "mounting a hard drive", "roses need compost"]
    together = model.embed(texts)
    alone = np.concatenate([model.embed([text]) for text in texts])
    assert together.shape == (5, DIMENSION)
    assert together.dtype == np.float32
    assert np.allclose(np.linalg.norm(together, axis=1), 1, atol=1e-5)
    assert np.all(np.sum(together * alone, axis=1) > 0.999)
    assert together[0] @ together[3] > together[0] @ together[4] + 0.3
    assert model.embed([]).shape == (0, DIMENSION)


def test_two_models_count_as_one_only_if_their_vectors_agree(
    model_dir: Path, fetched_model: Callable[[], Path]
) -> None:
    """Two models count as the same if, for each of 1,000 texts, the cosine of their vectors is at least .9999.

    Otherwise the vectors of one model cannot be used with the other one, and a rebuild is due.
    """
    one, other = OnnxEmbedding.load(model_dir, 2), OnnxEmbedding.load(fetched_model(), 2)
    chance = random.Random(7)
    words = [
        "mount",
        "disk",
        "why",
        "how",
        "the",
        "server",
        "backup",
        "token",
        "kernel",
        "my",
        "café",
        "东京",
        "42",
        "?",
    ]
    texts = [" ".join(chance.choices(words, k=chance.randrange(1, 12))) for _ in range(1000)]
    cosines = np.sum(one.embed(texts) * other.embed(texts), axis=1)
    assert cosines.min() > 0.98, "both are all-MiniLM-L6-v2"
    assert is_same_model(one.name, other.name) is bool(cosines.min() >= 0.9999)

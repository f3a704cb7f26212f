"""`rtfm-cli demo` on a machine without a running Kafka: its five answers, and what still runs at its end."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import CACHE_DIR, inherited_environment, run_cli, stack_home

TIMEOUT_S = 240.0


@pytest.fixture(scope="module")
def home() -> Iterator[Path]:
    """A home that uses the shared cache of downloads, and whose dependencies are stopped at the end."""
    with stack_home() as folder:
        (folder / "cache").symlink_to(CACHE_DIR)
        yield folder
        run_cli(["local", "down"], environment(folder))


def environment(home: Path, **more: str) -> dict[str, str]:
    """Return the environment of a user whose own settings name a Kafka and a PostgreSQL that do not exist."""
    elsewhere = {"KAFKA_BOOTSTRAP_SERVERS": "localhost:1", "DATABASE_URL": "postgresql://nobody@localhost:1/none"}
    return inherited_environment() | elsewhere | {"RTFM_HOME": str(home)} | more


def states(home: Path) -> dict[str, str]:
    """Return the state of each local dependency by its name."""
    done = run_cli(["local", "status", "--json"], environment(home), check=False)
    return {service["name"]: service["state"] for service in json.loads(done.stdout)["services"]}


def summary(done: subprocess.CompletedProcess[str]) -> dict[str, Any]:
    """Return the last line of the demo's output, parsed."""
    parsed: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return parsed


def test_demo_answers_from_nothing_and_again(home: Path) -> None:
    """The first demo answers at least four of five questions with keyword search; the second demo uses hybrid search.

    The first run cannot download the embedding model, and its dependencies keep running. The second run uses these
    dependencies, downloads the embedding model, and does not stop the dependencies.
    """
    nowhere = {"RTFM_EMBEDDING_MODEL_URL": "http://127.0.0.1:9/onnx.tar.gz"}
    first = run_cli(["demo", "--json", "--keep"], environment(home, **nowhere), timeout_s=TIMEOUT_S)
    assert summary(first)["mode"] == "lexical"
    assert summary(first)["questions"] == 5
    assert summary(first)["right"] >= 4
    assert summary(first)["dead_letters"] == 0
    assert set(states(home).values()) == {"running"}

    second = run_cli(["demo"], environment(home), timeout_s=TIMEOUT_S)
    said = " ".join(second.stdout.split())
    assert "of 5 answers link to the right conversation, 0 dead letters" in said
    assert "hybrid search" in said
    assert set(states(home).values()) == {"running"}
    run_cli(["local", "down"], environment(home))


def test_demo_says_why_the_processor_ended(home: Path) -> None:
    """If no embedding model exists, the demo names the log of the ended processor and stops all dependencies."""
    folder = home / "no-model-here"
    folder.mkdir()
    done = run_cli(
        ["demo", "--json"],
        environment(home, RTFM_EMBEDDING_MODEL_DIR=str(folder)),
        check=False,
        timeout_s=TIMEOUT_S,
    )
    assert done.returncode == 1
    assert "Error: the processor ended with 2" in done.stderr
    assert "demo-processor.log" in done.stderr
    assert set(states(home).values()) == {"stopped"}

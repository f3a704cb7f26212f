"""Markers and fixtures of the integration tests."""

from __future__ import annotations

import fcntl
import hashlib
import shutil
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from rtfm.contracts import Contracts, open_contracts
from rtfm.settings import Settings
from tests.conftest import CACHE_DIR, CHECKOUT
from tests.fakes.discord import FakeDiscord, FakeGuild, FakeMessage

NODE = CHECKOUT / "tests" / "node"


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line("markers", "debian: needs the Debian packages kcat, nodejs and npm; left out without them")


@pytest.fixture
def contracts(settings: Settings) -> Iterator[Contracts]:
    """Open the contracts of ``settings``, and close their registry at the end."""
    opened = open_contracts(settings)
    yield opened
    opened.registry.close()


@pytest.fixture
def asked(fake: FakeDiscord, guild: FakeGuild) -> FakeMessage:
    """A question in an open channel, posted before the bot connects to Discord."""
    return fake.says(guild.channel("general"), fake.person("ada", guild), "!rtfm how?", announce=False)


@pytest.fixture(scope="session")
def node_modules() -> Callable[[], Path]:
    """Return a function that installs the packages of tests/node/package-lock.json once and returns their folder."""

    def install() -> Path:
        folder = CACHE_DIR / f"node-{hashlib.sha256((NODE / 'package-lock.json').read_bytes()).hexdigest()[:16]}"
        CACHE_DIR.mkdir(parents=True, exist_ok=True)
        with (CACHE_DIR / "node.lock").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            if not folder.is_dir():
                partial = folder.with_name(f"{folder.name}.partial")
                shutil.rmtree(partial, ignore_errors=True)
                partial.mkdir()
                for name in ("package.json", "package-lock.json"):
                    shutil.copy(NODE / name, partial)
                command = ["npm", "ci", "--ignore-scripts", "--no-audit", "--no-fund"]
                subprocess.run(command, cwd=partial, check=True, capture_output=True, timeout=200)
                partial.rename(folder)
        return folder / "node_modules"

    return install

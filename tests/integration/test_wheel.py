"""The wheel works where there is no checkout."""

from __future__ import annotations

import subprocess
import sys
import sysconfig
import venv
import zipfile
from pathlib import Path

import pytest

CHECKOUT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The project's wheel, built without a network."""
    folder = tmp_path_factory.mktemp("wheel")
    command = [sys.executable, "-m", "build", "--no-isolation", "--wheel", "--outdir", str(folder), str(CHECKOUT)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    (built,) = folder.glob("*.whl")
    return built


def test_wheel_carries_contracts_migrations_and_the_sample(wheel: Path) -> None:
    """What is no Python is in the wheel as well, and nothing of the tests."""
    names = set(zipfile.ZipFile(wheel).namelist())
    assert {
        "rtfm/schemas/contracts.toml",
        "rtfm/schemas/released/discord-messages-value/1.avsc",
        "rtfm/local/artifacts.lock",
        "rtfm_cli/sample/questions.jsonl",
    } <= names
    assert any(name.startswith("rtfm/knowledge/archive/migrations/versions/") for name in names)
    assert not any(name.startswith("tests/") for name in names)


def test_installed_wheel_lists_the_contracts(wheel: Path, tmp_path: Path) -> None:
    """In a fresh environment, outside the checkout, the command finds the schemas inside its own package."""
    environment = tmp_path / "venv"
    venv.create(environment, with_pip=False)
    install = [sys.executable, "-m", "pip", "--python", str(environment / "bin" / "python"), "install", "--quiet"]
    subprocess.run([*install, "--no-index", "--no-deps", str(wheel)], check=True)
    # The dependencies come from here; a path in a .pth file does not bring this project's editable install along.
    site_packages = Path(sysconfig.get_path("purelib", vars={"base": str(environment)}))
    (site_packages / "dependencies.pth").write_text(sysconfig.get_path("purelib"), encoding="utf-8")
    done = subprocess.run(
        [str(environment / "bin" / "rtfm-cli"), "schemas", "list"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert "discord-messages-value" in done.stdout

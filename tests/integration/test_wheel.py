"""The built wheel works without a checkout."""

from __future__ import annotations

import subprocess
import sys
import sysconfig
import venv
import zipfile
from importlib import metadata
from pathlib import Path

import pytest
from packaging.requirements import Requirement

from rtfm.settings import Settings
from tests.conftest import environment_of

MAX_BASE_BYTES = 80_000_000
"""Largest allowed size of site-packages without pip, including compiled code, in bytes."""

CHECKOUT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The project's wheel, built without network access."""
    folder = tmp_path_factory.mktemp("wheel")
    command = [sys.executable, "-m", "build", "--no-isolation", "--wheel", "--outdir", str(folder), str(CHECKOUT)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    (built,) = folder.glob("*.whl")
    return built


def test_wheel_carries_contracts_migrations_and_the_sample(wheel: Path) -> None:
    """The wheel contains the contracts, the migrations and the sample, and no tests."""
    names = set(zipfile.ZipFile(wheel).namelist())
    assert {
        "rtfm/schemas/contracts.toml",
        "rtfm/schemas/released/discord-messages-value/1.avsc",
        "rtfm/local/artifacts.lock",
        "rtfm_cli/sample/questions.jsonl",
        "rtfm/py.typed",
    } <= names
    assert any(name.startswith("rtfm/knowledge/archive/migrations/versions/") for name in names)
    assert not any(name.startswith("tests/") for name in names)


def test_installed_wheel_lists_the_contracts(wheel: Path, tmp_path: Path) -> None:
    """In a new environment outside the checkout, `schemas list` finds the schemas of the installed wheel."""
    environment = tmp_path / "venv"
    venv.create(environment, with_pip=False)
    install = [sys.executable, "-m", "pip", "--python", str(environment / "bin" / "python"), "install", "--quiet"]
    subprocess.run([*install, "--no-index", "--no-deps", str(wheel)], check=True)
    # A .pth file adds the folder with the packages of the tests' environment, because the wheel requires them. Python
    # ignores other .pth files in an added folder, so the editable install of the project there is not imported.
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


def required_packages(wheel: Path) -> set[str]:
    """Return the packages that `pip install` of the wheel installs without an extra."""
    (entry,) = (name for name in zipfile.ZipFile(wheel).namelist() if name.endswith(".dist-info/METADATA"))
    text = zipfile.ZipFile(wheel).read(entry).decode()
    left = [Requirement(line.partition(": ")[2]) for line in text.splitlines() if line.startswith("Requires-Dist: ")]
    found: set[str] = set()
    while left:
        requirement = left.pop()
        if requirement.name in found or (requirement.marker and not requirement.marker.evaluate({"extra": ""})):
            continue
        found.add(requirement.name)
        left += map(Requirement, metadata.requires(requirement.name) or [])
    return found


@pytest.fixture(scope="module")
def base_scripts(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of scripts of an environment that contains only the wheel and the packages that it requires."""
    environment = tmp_path_factory.mktemp("base") / "venv"
    venv.create(environment, with_pip=False)
    site_packages = Path(sysconfig.get_path("purelib", vars={"base": str(environment)}))
    here = Path(sysconfig.get_path("purelib"))
    for name in required_packages(wheel):
        files = metadata.files(name) or []
        for top in {file.parts[0] for file in files if file.parts[0] not in ("..", "__pycache__")}:
            (site_packages / top).symlink_to(here / top)
    install = [sys.executable, "-m", "pip", "--python", str(environment / "bin" / "python"), "install", "--quiet"]
    subprocess.run([*install, "--no-index", "--no-deps", str(wheel)], check=True)
    return environment / "bin"


def test_base_install_is_small(base_scripts: Path) -> None:
    """An installation without extras is not larger than ``MAX_BASE_BYTES``."""
    site_packages = Path(sysconfig.get_path("purelib", vars={"base": str(base_scripts.parent)}))
    files = [path for top in site_packages.iterdir() for path in ([top] if top.is_file() else top.resolve().rglob("*"))]
    assert sum(path.stat().st_size for path in files if path.is_file()) <= MAX_BASE_BYTES


def test_base_install_works_with_topics_contracts_and_dead_letters(
    base_scripts: Path, settings: Settings, tmp_path: Path
) -> None:
    """Without extras, commands for topics, contracts and dead letters work; they need no archive and no model."""
    for arguments in (
        ["--help"],
        ["topics", "list"],
        ["schemas", "check"],
        ["schemas", "register"],
        ["dlq", "list"],
        ["dlq", "replay", "--all"],
        ["selftest"],
    ):
        done = subprocess.run(
            [base_scripts / "rtfm-cli", *arguments],
            cwd=tmp_path,
            env=environment_of(settings),
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 0, (arguments, done.stdout, done.stderr)


@pytest.mark.parametrize(
    ("arguments", "extra"),
    [
        (["run", "processor"], "processor"),
        (["run", "bot"], "bot"),
        (["search", "mounting"], "processor"),
        (["ask", "--guild", "1", "how?"], "processor"),
        (["local", "up"], "local"),
        (["demo"], "local"),
    ],
)
def test_base_install_names_the_extra_that_a_command_needs(
    base_scripts: Path, arguments: list[str], extra: str, tmp_path: Path
) -> None:
    """If a command needs an extra that is missing, its last line names the extra, and the exit code is 2."""
    done = subprocess.run(
        [base_scripts / "rtfm-cli", *arguments],
        cwd=tmp_path,
        env={"RTFM_HOME": str(tmp_path), "DISCORD_TOKEN": "none"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 2, done.stderr
    assert done.stderr.splitlines()[-1].endswith(f"are missing: pip install 'rtfm-events[{extra}]'")

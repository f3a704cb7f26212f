"""The files around the code agree with the code: generated pages, locks, the compose file, documented commands."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import click
import pytest
import yaml
from rtfm_cli.main import COMMANDS, LazyGroup, cli

from rtfm import settings

CHECKOUT = Path(__file__).parents[2]
PAGES = [
    *(CHECKOUT / name for name in ("README.md", "CONTRIBUTING.md", "SECURITY.md", "examples/README.md")),
    CHECKOUT / ".github" / "pull_request_template.md",
    *sorted((CHECKOUT / "docs").rglob("*.md")),
]


def pins(name: str) -> dict[str, str]:
    """Return the version and the marker of each package in the lock ``name``."""
    text = (CHECKOUT / name).read_text(encoding="utf-8")
    return dict(re.findall(r"^([a-z0-9._-]+)==(\S+(?: ; [^\\\n]+)?)", text, re.MULTILINE))


def compose() -> dict[str, Any]:
    """The parsed docker-compose.yml."""
    document: dict[str, Any] = yaml.safe_load((CHECKOUT / "docker-compose.yml").read_text(encoding="utf-8"))
    return document


def test_generated_pages_are_fresh() -> None:
    """docs/configuration.md, .env.example and docs/contracts/ are up to date with the settings and the contracts."""
    done = subprocess.run(
        [sys.executable, "docs/generate.py", "--check"], cwd=CHECKOUT, capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stderr) == (0, "")


def test_example_environment_changes_nothing(tmp_path: Path) -> None:
    """A copy of .env.example as .env leaves every setting at its default."""
    (tmp_path / ".env").write_text((CHECKOUT / ".env.example").read_text(encoding="utf-8"), encoding="utf-8")
    assert settings.load({"RTFM_HOME": str(tmp_path)}, dotenv=tmp_path / ".env") == settings.load(
        {"RTFM_HOME": str(tmp_path)}, dotenv=None
    )


def test_image_lock_is_a_part_of_the_lock() -> None:
    """Each package in the image's lock has the same version as in the lock with which the tests run."""
    everything, part = pins("requirements.lock"), pins("requirements-services.lock")
    # Instead of chromadb, the image has chromadb-client of the same release. Both packages install the folder chromadb,
    # so they cannot be installed together.
    everything["chromadb-client"] = everything["chromadb"]
    differing = {name for name, pin in part.items() if everything.get(name, "").split()[:1] != pin.split()[:1]}
    assert part
    assert differing == set()


@pytest.mark.parametrize("name", ["requirements.lock", "requirements-services.lock"])
def test_locks_pin_hashes_and_name_no_index(name: str) -> None:
    """A lock contains a hash of every package, and names no index, so that any mirror works."""
    text = (CHECKOUT / name).read_text(encoding="utf-8")
    blocks = re.split(r"^(?=[a-z0-9])", text, flags=re.MULTILINE)[1:]
    without = [block.split("==")[0] for block in blocks if "--hash=sha256:" not in block]
    assert without == []
    assert "://" not in text


def test_compose_images_are_pinned_and_ports_local() -> None:
    """No image of the compose file is `latest`, and no port is open to other machines."""
    services = compose()["services"]
    for name, service in services.items():
        if "build" not in service:
            assert re.search(r":v?\d", service["image"]), name
        for port in service.get("ports", []):
            assert port.startswith("127.0.0.1:"), name


def test_compose_runs_the_chroma_that_the_client_was_tested_with() -> None:
    """The compose file runs the version of Chroma that requirements.lock pins for the client."""
    assert compose()["services"]["chromadb"]["image"] == f"chromadb/chroma:{pins('requirements.lock')['chromadb']}"


def test_compose_gives_only_settings_that_exist() -> None:
    """The compose file sets only variables that exist, because a misspelled variable would be ignored."""
    known = {variable for _, variable, _, _, _ in settings.describe()}
    for name in ("init", "message-processor", "bot"):
        assert set(compose()["services"][name]["environment"]) <= known


def test_compose_passes_every_setting_to_the_service_that_reads_it() -> None:
    """The compose file passes each setting of .env to the processor or the bot, except those named in the test."""
    # These settings belong to one replica or to the image.
    own = {"RTFM_HOME", "RTFM_INSTANCE_ID", "RTFM_SCHEMAS_DIR", "RTFM_EMBEDDING_MODEL_DIR"}
    own |= {"METRICS_HOST", "METRICS_PORT"}
    services = compose()["services"]
    passed = set(services["message-processor"]["environment"]) | set(services["bot"]["environment"])
    missing = {variable for _, variable, _, _, _ in settings.describe()} - own - passed
    assert missing == set(), "add these to docker-compose.yml, at the service that reads them"


def test_compose_gives_each_secret_only_to_the_service_that_needs_it() -> None:
    """The compose file gives each secret only to the service that needs it.

    The processor cannot post as the bot, and the bot cannot use the Gemini key.
    """
    services = compose()["services"]
    holders = {
        secret: {name for name, service in services.items() if secret in service.get("environment", {})}
        for secret in ("DISCORD_TOKEN", "GEMINI_API_KEY", "OPENAI_API_KEY")
    }
    assert holders.pop("DISCORD_TOKEN") == {"bot"}
    assert all(held_by == {"message-processor"} for held_by in holders.values())


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(CHECKOUT)))
def test_documented_commands_exist(page: Path) -> None:
    """Each `rtfm-cli …` and each `make …` in the documentation exists."""
    text = page.read_text(encoding="utf-8")
    targets = set(re.findall(r"^([a-z%-]+):", (CHECKOUT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE))
    for target in re.findall(r"(?:^|`)make ([a-z-]+)", text, re.MULTILINE):
        assert target in targets
    assert isinstance(cli, LazyGroup)
    context = click.Context(cli)
    for name, follows in re.findall(r"rtfm-cli ([a-z]+)(?: ([a-z]+))?", text):
        assert name in COMMANDS
        command = cli.get_command(context, name)
        if follows and isinstance(command, click.Group):
            assert follows in command.commands, f"rtfm-cli {name} {follows}"


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(CHECKOUT)))
def test_links_lead_somewhere(page: Path) -> None:
    """Every relative link of a page leads to a file that exists."""
    links = re.findall(r"\]\(([^)#:]+)(?:#[^)]*)?\)", page.read_text(encoding="utf-8"))
    assert [link for link in links if not (page.parent / link).exists()] == []

"""The findings of `rtfm-cli doctor` and the fixes that the findings name."""

from __future__ import annotations

import json
import socket
import subprocess
from collections.abc import Callable

from attrs import evolve

from rtfm.settings import Settings

Cli = Callable[..., subprocess.CompletedProcess[str]]


def _findings(done: subprocess.CompletedProcess[str]) -> dict[str, dict[str, str]]:
    return {finding["check"]: finding for finding in json.loads(done.stdout)["findings"]}


def test_an_unprepared_system_gets_the_commands_that_prepare_it(unmigrated_settings: Settings, cli: Cli) -> None:
    """If topics, contracts and tables are missing, the exit code is 1, and each finding about them names a fix."""
    done = cli(unmigrated_settings, "doctor", "--json", check=False)
    assert done.returncode == 1
    findings = _findings(done)
    assert findings["kafka"]["state"] == findings["schema registry"]["state"] == findings["archive"]["state"] == "wrong"
    assert findings["kafka"]["fix"] == "rtfm-cli topics init"
    assert findings["schema registry"]["fix"] == "rtfm-cli schemas register"
    assert findings["archive"]["fix"]
    assert findings["chroma"]["state"] == "ok"


def test_the_report_is_complete_even_if_no_service_answers(bare_settings: Settings, cli: Cli) -> None:
    """If Kafka, the registry, PostgreSQL and Chroma do not respond, the report contains a finding about each."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        dead = f"127.0.0.1:{probe.getsockname()[1]}"
        nowhere = evolve(
            bare_settings,
            kafka_bootstrap_servers=dead,
            schema_registry_url=f"http://{dead}",
            chroma_url=f"http://{dead}",
            database_url=f"postgresql://rtfm@{dead}/rtfm",
        )
        done = cli(nowhere, "doctor", "--json", check=False)
    assert done.returncode == 1
    findings = _findings(done)
    wrong = {check for check, finding in findings.items() if finding["state"] == "wrong"}
    assert wrong == {"kafka", "schema registry", "archive", "chroma"}
    assert findings["clock"]["state"] == "note"
    assert "Traceback" not in done.stdout + done.stderr


def test_a_model_that_cannot_be_fetched_is_one_line_and_exit_3(bare_settings: Settings, cli: Cli) -> None:
    """If `--fetch-model` cannot download the embedding model, the error says so, and the exit code is 3."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{probe.getsockname()[1]}/onnx.tar.gz"
        done = cli(bare_settings, "doctor", "--fetch-model", check=False, RTFM_EMBEDDING_MODEL_URL=url)
    assert done.returncode == 3
    assert done.stderr.startswith("Error: the embedding model cannot be fetched")


def test_a_prepared_system_has_no_problems(settings: Settings, cli: Cli) -> None:
    """On a prepared system the exit code is 0, and a missing API key or embedding model is only a note."""
    done = cli(settings, "doctor", "--json")
    report = json.loads(done.stdout)
    assert report["ok"] is True
    findings = _findings(done)
    assert findings["model provider"]["state"] == findings["embedding model"]["state"] == "note"
    assert "4 topics" in findings["kafka"]["detail"]
    text = cli(settings, "doctor").stdout
    assert "→ rtfm-cli doctor --fetch-model" in text

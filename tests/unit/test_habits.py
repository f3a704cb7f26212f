"""Workflows, commit hooks and .ci/run call the same targets of the Makefile."""

from __future__ import annotations

import ast
import re
from pathlib import Path
from typing import Any

import pytest
import yaml

CHECKOUT = Path(__file__).parents[2]
WORKFLOWS = sorted((CHECKOUT / ".github" / "workflows").glob("*.yml"))

APT = "sudo apt-get update -q && sudo apt-get install "
"""The beginning of a step that installs Debian packages; a job may have such a step beside its make target."""

IN_ONE_RUN = {"test": {"test-unit", "test-integration"}}
"""Targets that do the work of several other targets in one run of pytest."""


def targets() -> dict[str, set[str]]:
    """Each target of the Makefile, with the targets that it makes first."""
    lines = re.findall(r"^([a-z%-]+):(?!=)([^#\n]*)", (CHECKOUT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE)
    return {name: {word for word in needed.split() if word[0].isalpha()} for name, needed in lines}


def called(command: str) -> set[str]:
    """The targets that a make command names."""
    _, *words = re.sub(r"^timeout\b.*?\bmake\b", "make", command).split()
    return {word for word in words if not word.startswith("-") and "=" not in word}


def covered(names: set[str]) -> set[str]:
    """Return ``names`` and every target whose work these targets do."""
    known = targets()
    parts = set().union(*(known.get(name, set()) | IN_ONE_RUN.get(name, set()) for name in names))
    return names | (covered(parts) if parts - names else parts)


def document(path: Path) -> dict[str, Any]:
    parsed: dict[str, Any] = yaml.safe_load(path.read_text(encoding="utf-8"))
    return parsed


def jobs() -> dict[str, dict[str, Any]]:
    """All jobs of all workflows, by file and name."""
    return {f"{path.name}: {name}": job for path in WORKFLOWS for name, job in document(path)["jobs"].items()}


def commands_of(job: dict[str, Any]) -> list[str]:
    return [step["run"].strip() for step in job["steps"] if "run" in step]


def ci_commands() -> list[str]:
    """The lines of .ci/run that call make."""
    text = (CHECKOUT / ".ci" / "run").read_text(encoding="utf-8")
    return re.findall(r"^timeout .*\bmake .*$", text, re.MULTILINE)


def hooks() -> list[dict[str, Any]]:
    repositories = document(CHECKOUT / ".pre-commit-config.yaml")["repos"]
    assert {repository["repo"] for repository in repositories} == {"local"}
    return [hook for repository in repositories for hook in repository["hooks"]]


@pytest.mark.parametrize("name", jobs())
def test_a_job_runs_one_make_target(name: str) -> None:
    """A job runs one make target, so that what fails in CI can be run with the same command on any machine."""
    commands = [command for command in commands_of(jobs()[name]) if not command.startswith(APT)]
    assert len(commands) == 1
    assert commands[0].startswith("make ")
    (target,) = called(commands[0])
    assert target in targets()


@pytest.mark.parametrize("name", jobs())
def test_a_job_has_a_limit_and_pinned_actions(name: str) -> None:
    """A job has a time limit of at most an hour, and its actions are pinned to commits."""
    job = jobs()[name]
    assert 0 < job["timeout-minutes"] <= 60
    for step in job["steps"]:
        assert "uses" not in step or re.fullmatch(r"[\w-]+/[\w-]+@[0-9a-f]{40}", step["uses"])


@pytest.mark.parametrize("path", WORKFLOWS, ids=lambda path: path.name)
def test_workflows_may_only_read(path: Path) -> None:
    """A workflow's token can only read, so that the code of a pull request cannot write to the repository."""
    workflow = document(path)
    assert workflow["permissions"] == {"contents": "read"}
    assert not any("permissions" in job for job in workflow["jobs"].values())
    assert "group" in workflow["concurrency"]


def test_hooks_call_make() -> None:
    """Commit hooks only call targets of the Makefile."""
    for hook in hooks():
        assert hook["language"] == "system"
        assert called(hook["entry"]) <= set(targets())


def test_ci_run_calls_every_target_of_the_workflows() -> None:
    """.ci/run calls every make target that the workflows call."""
    ours = covered(set().union(*map(called, ci_commands())))
    theirs = set().union(*(called(command) for job in jobs().values() for command in commands_of(job)[-1:]))
    assert ours <= set(targets())
    assert theirs <= ours


def test_every_test_says_what_it_is_about() -> None:
    """Every test has a docstring."""
    silent = [
        f"{path.relative_to(CHECKOUT)}: {node.name}"
        for path in (CHECKOUT / "tests").rglob("test_*.py")
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
        if node.name.startswith("test_") and not ast.get_docstring(node)
    ]
    assert silent == []

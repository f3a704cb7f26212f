"""What all commands have in common: exit codes, one-line errors, and help without heavy imports."""

import importlib
import subprocess
import sys

import click
import pytest
from rtfm_cli import exit_codes, main

from rtfm import errors


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (errors.ConfigError("x"), 2),
        (errors.Unavailable("kafka", "x"), 3),
        (errors.Throttled("x", retry_after_s=1), 3),
        (errors.UndecodableRecord("x"), 1),
    ],
)
def test_the_exit_code_says_who_must_act(error: errors.RtfmError, code: int) -> None:
    """The exit code is 2 if the operator must act, 3 if a dependency cannot serve, and 1 for any other error."""
    assert exit_codes.of(error) == code


def test_an_error_is_one_line_and_a_hint(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """An error is printed as one line, and its hint as a second one, without a traceback."""

    @click.command()
    def broken() -> None:
        raise errors.Unavailable("kafka", "localhost:1 does not answer", hint="start it")

    monkeypatch.setitem(main.COMMANDS, "broken", (__name__, "BROKEN", ""))
    monkeypatch.setattr(sys.modules[__name__], "BROKEN", broken, raising=False)
    assert main.run(["broken"]) == 3
    assert capsys.readouterr().err == "Error: localhost:1 does not answer\nHint: start it\n"


def test_an_unknown_command_is_a_usage_error(capsys: pytest.CaptureFixture[str]) -> None:
    """The error for an unknown command names the command, with the exit code of a usage error."""
    assert main.run(["explode"]) == 2
    assert "explode" in capsys.readouterr().err


@pytest.mark.parametrize("name", list(main.COMMANDS))
def test_every_listed_command_exists_and_helps(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    """Every command in the table has a module and a help text."""
    module, attribute, _ = main.COMMANDS[name]
    assert isinstance(getattr(importlib.import_module(module), attribute), click.Command)
    assert main.run([name, "--help"]) == 0
    assert "Usage:" in capsys.readouterr().out


def test_help_imports_no_third_party_client() -> None:
    """Help imports no package that takes long to import, such as confluent_kafka or numpy."""
    script = (
        "import sys; from rtfm_cli.main import run; run(['--help']);"
        "print([m for m in ('confluent_kafka', 'chromadb', 'sqlalchemy', 'discord', 'google.generativeai', 'numpy',"
        " 'prometheus_client', 'structlog') if m in sys.modules], file=sys.stderr)"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stderr.strip() == "[]"

"""The entry point of `rtfm-cli`.

A command is imported only when it is called. An error of a command becomes a line on standard error and an exit code.
"""

from __future__ import annotations

import importlib
import io
import sys
import traceback
from typing import Any

import click

from rtfm import errors
from rtfm_cli import exit_codes
from rtfm_cli.printing import echo, escape_unprintable

# Command: (module, attribute, help text). The help texts are here, so that --help need not import the commands.
COMMANDS: dict[str, tuple[str, str, str]] = {
    "local": ("rtfm_cli.local", "local", "Run Kafka, the registry, Chroma and PostgreSQL on this machine."),
    "topics": ("rtfm_cli.topics", "topics", "Create, list and check the Kafka topics."),
    "schemas": ("rtfm_cli.schemas", "schemas", "Register, check and release the Avro contracts."),
    "run": ("rtfm_cli.run", "run", "Run one of the two services: the bot or the processor."),
    "import": ("rtfm_cli.import_", "import_", "Import chat exports through discord-messages."),
    "search": ("rtfm_cli.search", "search", "Show which passages a question finds, with scores."),
    "ask": ("rtfm_cli.ask", "ask", "Ask a question through Kafka and print the answer."),
    "rebuild": ("rtfm_cli.rebuild", "rebuild", "Restore the vectors from the archive, or compute them again."),
    "eval": ("rtfm_cli.eval", "eval_", "Measure search with questions whose answers are known."),
    "dlq": ("rtfm_cli.dlq.commands", "dlq", "List, inspect, replay and discard dead letters."),
    "forget": ("rtfm_cli.forget", "forget", "Erase a person, a channel or a guild."),
    "selftest": ("rtfm_cli.selftest", "selftest", "Send a message and a question through the running system."),
    "status": ("rtfm_cli.status", "status", "Show topics, consumer groups with their lag, contracts and stores."),
    "doctor": ("rtfm_cli.doctor", "doctor", "Check the configuration and the dependencies, and name fixes."),
    "demo": ("rtfm_cli.demo", "demo", "Show the whole journey on this machine, with sample data."),
}


class LazyGroup(click.Group):
    """A click group that imports a command when it is called."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        """Return the names in the order of ``COMMANDS``."""
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """Import and return the command. Return None for an unknown name."""
        if cmd_name not in COMMANDS:
            return None
        module, attribute, _ = COMMANDS[cmd_name]
        command: click.Command = getattr(importlib.import_module(module), attribute)
        return command

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Write the list of commands without importing them."""
        with formatter.section("Commands"):
            formatter.write_dl([(name, text) for name, (_, _, text) in COMMANDS.items()])


_HELP = """Answers questions from your community's past messages, over Kafka with Avro contracts.

\b
rtfm-cli demo                          show the whole journey on this machine
rtfm-cli local up                      start Kafka, the registry, Chroma and PostgreSQL
rtfm-cli topics init                   create the topics
rtfm-cli schemas register              register the contracts
rtfm-cli run processor                 archive messages and answer questions
rtfm-cli ask "how do I mount NTFS?"    ask through Kafka
"""


@click.command(
    cls=LazyGroup,
    help=_HELP,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
    epilog="Start with `rtfm-cli demo`. Settings come from flags, the environment and .env; see docs/configuration.md.",
)
@click.version_option(package_name="rtfm-events", prog_name="rtfm-cli")
@click.option("--debug", is_flag=True, help="Log everything and show tracebacks.")
@click.pass_context
def cli(ctx: click.Context, debug: bool) -> None:
    """The root command."""
    ctx.ensure_object(dict)["debug"] = debug


def main(args: list[str] | None = None) -> None:
    """Run the command line and exit."""
    sys.exit(run(args))


def run(args: list[str] | None = None) -> int:
    """Run the command line and return its exit code."""
    arguments = sys.argv[1:] if args is None else args
    debug = "--debug" in arguments
    try:
        result: Any = cli.main(args=arguments, prog_name="rtfm-cli", standalone_mode=False)
    except click.ClickException as exc:
        shown = io.StringIO()  # the message may contain a file's name, from which echo removes escape sequences
        exc.show(shown)
        echo(shown.getvalue(), err=True, nl=False)
        return exc.exit_code
    except click.exceptions.Exit as exc:
        return exc.exit_code
    except click.Abort:
        echo("Stopped.", err=True)
        return exit_codes.INTERRUPTED
    except errors.RtfmError as exc:
        _print_error(str(exc), exc.hint, debug)
        return exit_codes.of(exc)
    except BrokenPipeError:
        return exit_codes.DONE
    except Exception as exc:  # a defect, or a package of an extra is missing
        if isinstance(exc, ModuleNotFoundError) and exc.name and not exc.name.startswith("rtfm"):
            command, extra = _command_and_extra(arguments)
            _print_error(f"{command} needs packages that are missing: pip install 'rtfm-events[{extra}]'", None, debug)
            return exit_codes.USAGE
        hint = "this is a defect, please report it" + ("" if debug else "; run again with --debug for the traceback")
        _print_error(f"{type(exc).__name__}: {exc}", hint, debug)
        return exit_codes.CHECK_FAILED
    return result if isinstance(result, int) else exit_codes.DONE


def _command_and_extra(arguments: list[str]) -> tuple[str, str]:
    """Return the command that ``arguments`` name, and the extra that installs its packages."""
    words = [word for word in arguments if not word.startswith("-")]
    extra = "local" if words[0] in ("local", "demo") else "bot" if words[:2] == ["run", "bot"] else "processor"
    return " ".join(words[: 2 if words[0] in ("local", "run") else 1]), extra


def _print_error(message: str, hint: str | None, debug: bool) -> None:
    """Print an error and its hint on standard error. With ``debug``, print the traceback first."""
    if debug:
        echo(traceback.format_exc(), err=True)
    echo(escape_unprintable(f"Error: {message}"), err=True)
    if hint:
        echo(f"Hint: {hint}", err=True)

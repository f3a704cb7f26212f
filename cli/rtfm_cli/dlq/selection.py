"""Options that select dead letters, and the filter that is built from them."""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Mapping
from datetime import UTC, datetime, timedelta
from typing import Any

import click

from rtfm.streams.dead_letters.letters import STATES
from rtfm.streams.dead_letters.store import LetterFilter

_AGO = re.compile(r"(\d{1,6})([smhd])")
_UNITS = {"s": "seconds", "m": "minutes", "h": "hours", "d": "days"}
_STAGES = ("DECODE", "HANDLE", "PRODUCE", "CRASH")


class TimeParam(click.ParamType[int]):
    """The type of an option whose value is a date, or an age such as 2h. The result is milliseconds since the epoch."""

    name = "TIME"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> int:
        """Convert ``value``. Raises BadParameter if it is neither a date nor an age."""
        if isinstance(value, int):
            return value
        if ago := _AGO.fullmatch(value):
            time = datetime.now(UTC) - timedelta(**{_UNITS[ago[2]]: int(ago[1])})
        else:
            try:
                time = datetime.fromisoformat(value)
            except ValueError:
                self.fail(f"{value!r} is neither like 2h, 30m or 7d nor like 2026-11-24T10:00 (UTC)", param, ctx)
            time = time if time.tzinfo else time.replace(tzinfo=UTC)
        return int(time.timestamp() * 1000)


def filter_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """Add the options that select dead letters. ``build_filter`` takes their values as ``given``."""
    time_param = TimeParam()
    for option in (
        click.option(
            "--until",
            "until_ms",
            type=time_param,
            help="Only dead letters written before this time: 2026-11-24T10:00, or 1d for one day ago.",
        ),
        click.option(
            "--since",
            "since_ms",
            type=time_param,
            help="Only dead letters written since this time: 2026-11-24T10:00, or 2h for two hours ago.",
        ),
        click.option("--key", help="Only records with this key."),
        click.option("--stage", type=click.Choice(_STAGES, case_sensitive=False), help="Only failures of this stage."),
        click.option("--error-class", help="Only this error, such as UnknownSchema; `dlq stats` lists them."),
        click.option("--topic", help="Only records of this topic."),
    ):
        command = option(command)
    return command


def has_filter(given: Mapping[str, Any]) -> bool:
    """Return whether at least one of the filter options was given."""
    return any(value is not None for value in given.values())


def build_filter(given: Mapping[str, Any], ids: Collection[str], *, state: str) -> LetterFilter:
    """Build the filter that the options ask for. If IDs are given, dead letters in every state are selected."""
    states = STATES if state == "all" or ids else (state.upper(),)
    key = given.get("key")
    return LetterFilter(
        **{**given, "key": None if key is None else key.encode()},
        ids=frozenset(ids) or None,
        states=frozenset(states),
    )


def build_change_filter(given: Mapping[str, Any], ids: Collection[str], all_: bool) -> LetterFilter:
    """Build the filter for a command that changes dead letters.

    Raises UsageError if nothing is selected, or if both IDs and --all are given.
    """
    if not (all_ or ids or has_filter(given)):
        raise click.UsageError("Name dead letters by ID, by an option such as --topic, or with --all.")
    if all_ and ids:
        raise click.UsageError("Give either IDs or --all.")
    return build_filter(given, ids, state="open")

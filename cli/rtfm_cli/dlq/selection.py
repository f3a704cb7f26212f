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
    """An option's time, given as a date or as an age such as 2h; becomes milliseconds since the epoch."""

    name = "TIME"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> int:
        """Convert ``value``; fails if it is neither a date nor an age."""
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
    """Add the options that select letters; they become the dictionary ``given`` of ``build_filter``."""
    time_param = TimeParam()
    for option in (
        click.option(
            "--until", "until_ms", type=time_param, help="Dead before this time or age: 2026-11-24T10:00, 1d."
        ),
        click.option("--since", "since_ms", type=time_param, help="Dead since this time or age: 2h, 7d."),
        click.option("--key", help="Only records with this key."),
        click.option("--stage", type=click.Choice(_STAGES, case_sensitive=False), help="Only failures of this stage."),
        click.option("--error-class", help="Only this error, as `dlq stats` names it."),
        click.option("--topic", help="Only records of this topic."),
    ):
        command = option(command)
    return command


def has_filter(given: Mapping[str, Any]) -> bool:
    """Whether one of the filter options was given."""
    return any(value is not None for value in given.values())


def build_filter(given: Mapping[str, Any], ids: Collection[str], *, state: str) -> LetterFilter:
    """Build the filter of the options. Letters named by id are found in every state."""
    states = STATES if state == "all" or ids else (state.upper(),)
    key = given.get("key")
    return LetterFilter(
        **{**given, "key": None if key is None else key.encode()},
        ids=frozenset(ids) or None,
        states=frozenset(states),
    )


def build_change_filter(given: Mapping[str, Any], ids: Collection[str], all_: bool) -> LetterFilter:
    """Build the filter of a command that changes letters. Raises UsageError unless it selects them in one way."""
    if not (all_ or ids or has_filter(given)):
        raise click.UsageError("Say which: IDs, a filter such as --topic, or --all.")
    if all_ and ids:
        raise click.UsageError("Either IDs or --all.")
    return build_filter(given, ids, state="open")

"""Which dead letters a command is about: its options, and the filter that they become."""

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


class Moment(click.ParamType[int]):
    """A time, given as itself or as how long ago it is; milliseconds since the epoch."""

    name = "TIME"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> int:
        """Fails for what is neither."""
        if isinstance(value, int):
            return value
        if ago := _AGO.fullmatch(value):
            at = datetime.now(UTC) - timedelta(**{_UNITS[ago[2]]: int(ago[1])})
        else:
            try:
                at = datetime.fromisoformat(value)
            except ValueError:
                self.fail(f"{value!r} is neither like 2h, 30m or 7d ago nor like 2026-11-24T10:00 (UTC)", param, ctx)
            at = at if at.tzinfo else at.replace(tzinfo=UTC)
        return int(at.timestamp() * 1000)


def filter_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """The options that say which letters; they become the dictionary ``given`` of ``letter_filter``."""
    moment = Moment()
    for option in (
        click.option("--until", "until_ms", type=moment, help="Dead before this time, or this long ago."),
        click.option("--since", "since_ms", type=moment, help="Dead since this time, or this long: 2h, 7d."),
        click.option("--key", help="Those with this key."),
        click.option("--stage", type=click.Choice(_STAGES, case_sensitive=False), help="Those that failed there."),
        click.option("--error-class", help="Those of this error, as `dlq stats` names it."),
        click.option("--topic", help="Those that came from this topic."),
    ):
        command = option(command)
    return command


def given_any(given: Mapping[str, Any]) -> bool:
    """Whether one of the filter options was given."""
    return any(value is not None for value in given.values())


def letter_filter(given: Mapping[str, Any], ids: Collection[str], *, state: str) -> LetterFilter:
    """The filter that the options mean; letters named by id are found in every state."""
    states = STATES if state == "all" or ids else (state.upper(),)
    key = given.get("key")
    return LetterFilter(
        **{**given, "key": None if key is None else key.encode()},
        ids=frozenset(ids) or None,
        states=frozenset(states),
    )


def chosen_filter(given: Mapping[str, Any], ids: Collection[str], all_: bool) -> LetterFilter:
    """The filter for what is to be changed. Raises UsageError where nothing, or too much, was said."""
    if not (all_ or ids or given_any(given)):
        raise click.UsageError("Say which: IDs, a filter such as --topic, or --all.")
    if all_ and ids:
        raise click.UsageError("Either IDs or --all.")
    return letter_filter(given, ids, state="open")

"""The figures of a benchmark. They are shown as a table, or for scripts as one JSON object per line."""

from __future__ import annotations

import json
import statistics
import sys
from collections.abc import Callable, Sequence

from attrs import field, frozen


@frozen(kw_only=True)
class Figure:
    """A measured figure: the values of this project and of the peer, their ratio and its target.

    ``ours`` and ``peer`` are medians in ``unit``. ``ratio`` says how many times better ``ours`` is, so a higher ratio
    is always better. A figure without a ``target`` is only reported.
    """

    name: str
    ours: float
    peer: float | None
    ratio: float | None
    target: float | None
    met: bool
    samples: dict[str, list[float]] = field(factory=dict)
    unit: str = ""


def figure(
    name: str,
    ours: Sequence[float] | float,
    peer: Sequence[float] | float | None,
    target: float | None,
    samples: dict[str, list[float]] | None = None,
    higher_is_better: bool = True,
    *,
    unit: str = "",
) -> Figure:
    """Build a figure. ``ours`` and ``peer`` are each a value, or samples of which the median is taken.

    ``samples`` are the raw values of "ours" and "peer". By default, they are taken from ``ours`` and ``peer``.
    """
    if samples is None:
        samples = {
            side: list(values)
            for side, values in (("ours", ours), ("peer", peer))
            if values is not None and not isinstance(values, (int, float))
        }
    mine, other = _median(ours), None if peer is None else _median(peer)
    ratio = None if not other or not mine else (mine / other if higher_is_better else other / mine)
    met = target is None or (ratio is not None and ratio >= target)
    return Figure(name=name, ours=mine, peer=other, ratio=ratio, target=target, met=met, samples=samples, unit=unit)


def interleave(paths: dict[str, Callable[[], float]], *, rounds: int = 5, warm_up: int = 1) -> dict[str, list[float]]:
    """Take ``rounds`` samples of each path in turn, so that other load on the machine affects all paths."""
    samples: dict[str, list[float]] = {name: [] for name in paths}
    for turn in range(warm_up + rounds):
        for name, measure in paths.items():
            value = measure()
            if turn >= warm_up:
                samples[name].append(value)
    return samples


def report(figures: Sequence[Figure], as_json: bool | None = None) -> bool:
    """Print the figures and return whether all targets were met. By default, --json on the command line decides."""
    if "--json" in sys.argv[1:] if as_json is None else as_json:
        for entry in figures:
            row = {
                "name": entry.name,
                "ours": entry.ours,
                "peer": entry.peer,
                "ratio": entry.ratio,
                "target": entry.target,
                "met": entry.met,
                "samples": entry.samples,
                "unit": entry.unit,
            }
            print(json.dumps(row))
    else:
        _print_table(figures)
    return all(entry.met for entry in figures)


def _print_table(figures: Sequence[Figure]) -> None:
    from rich.console import Console
    from rich.table import Table

    table = Table(header_style="bold")
    table.add_column("figure")
    for column in ("ours", "peer", "ratio", "target"):
        table.add_column(column, justify="right")
    table.add_column("met")
    for entry in figures:
        met = "" if entry.target is None else "[green]yes[/green]" if entry.met else "[red]no[/red]"
        unit = f" {entry.unit}" if entry.unit else ""
        table.add_row(
            entry.name,
            _format_number(entry.ours) + unit,
            "" if entry.peer is None else _format_number(entry.peer) + unit,
            "" if entry.ratio is None else f"{entry.ratio:.2f}",
            "" if entry.target is None else f"{entry.target:.2f}",
            met,
        )
    Console().print(table)


def _median(values: Sequence[float] | float) -> float:
    return float(values) if isinstance(values, (int, float)) else statistics.median(values)


def _format_number(value: float) -> str:
    return f"{value:,.0f}" if abs(value) >= 100 else f"{value:.3g}"

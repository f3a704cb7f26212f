"""The report of a soak: one self-contained HTML page with charts as inline SVG."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from html import escape
from itertools import pairwise

from attrs import frozen

from tests.chaos.samples import Growth, Sample

COLOURS = ("#3366cc", "#dc3912", "#ff9900", "#109618", "#990099", "#0099c6", "#dd4477", "#66aa00", "#b82e2e", "#316395")
WIDTH, HEIGHT = 960, 240
_LEFT, _RIGHT, _TOP, _BOTTOM = 64, 8, 10, 26
MOST_POINTS = 600
"""Each piece of a line in a chart has at most this many points.

More points would not be visible and would make the page larger.
"""

Point = tuple[float, float]

_STYLE = """
body { font: 15px/1.5 system-ui, sans-serif; max-width: 1000px; margin: 2em auto; padding: 0 1em; color: #222; }
table { border-collapse: collapse; } td, th { padding: .2em .8em; border-bottom: 1px solid #ddd; text-align: right; }
td:first-child, th:first-child { text-align: left; } h2 { margin-top: 2em; }
svg { width: 100%; height: auto; } svg text { font: 11px system-ui, sans-serif; fill: #555; }
.right { color: #107010; } .wrong { color: #b01010; } .key { margin-right: 1.2em; white-space: nowrap; }
"""


@frozen
class Series:
    """A line of a chart. It consists of pieces, because the line is interrupted where a process was restarted."""

    name: str
    pieces: list[list[Point]]


def page(title: str, line: Mapping[str, object], samples: Sequence[Sample], grown: Mapping[str, Growth]) -> str:
    """Return the HTML page for a soak.

    ``line`` is the account of the soak. ``grown`` is the growth of each process.
    """
    verdict = str(line["verdict"])
    parts = [
        f"<h1>{escape(title)}</h1>",
        f'<p>Verdict: <strong class="{"right" if verdict == "right" else "wrong"}">{escape(verdict)}</strong></p>',
        "<h2>Growth</h2>",
        "<p>Change per hour, over the longest life of each process, without its warm-up.</p>",
        _growth(grown),
        _chart("Memory (MB)", _process_series(samples, lambda use: use.memory_mb)),
        _chart("Threads", _process_series(samples, lambda use: use.threads)),
        _chart("Open file handles", _process_series(samples, lambda use: use.handles)),
        _chart("Lag (records)", _named_series(samples, lambda sample: sample.lag)),
        _chart("Data on disk (MB)", _named_series(samples, lambda sample: sample.disk_mb)),
        _chart("Load average", _named_series(samples, lambda sample: {"1 minute": sample.load_average})),
        _chart("Load as a share of its full rates", _named_series(samples, lambda sample: {"share": sample.share})),
        "<h2>Account</h2>",
        _table(("", ""), [(name, _text(value)) for name, value in line.items()]),
    ]
    head = f'<meta charset="utf-8"><title>{escape(title)}</title><style>{_STYLE}</style>'
    return f"<!doctype html><html lang=en><head>{head}</head><body>\n" + "\n".join(parts) + "\n</body></html>\n"


def _growth(grown: Mapping[str, Growth]) -> str:
    rows = [
        (
            name,
            f"{growth.lived_s / 60:.0f}",
            f"{growth.memory_mb:.0f}",
            f"{growth.memory_mb_per_h:+.1f}",
            f"{growth.threads_per_h:+.1f}",
            f"{growth.handles_per_h:+.1f}",
        )
        for name, growth in grown.items()
    ]
    return _table(("process", "minutes", "MB at the end", "MB per hour", "threads per hour", "handles per hour"), rows)


def _process_series(samples: Sequence[Sample], value: Callable[..., float]) -> list[Series]:
    found: dict[str, list[list[Point]]] = {}
    pids: dict[str, int] = {}
    for sample in samples:
        for name, use in sample.processes.items():
            pieces = found.setdefault(name, [])
            if pids.get(name) != use.pid:
                pieces.append([])
                pids[name] = use.pid
            pieces[-1].append((sample.at_s, value(use)))
    return [Series(name, pieces) for name, pieces in sorted(found.items())]


def _named_series(samples: Sequence[Sample], values: Callable[[Sample], Mapping[str, float]]) -> list[Series]:
    found: dict[str, list[Point]] = {}
    for sample in samples:
        for name, value in values(sample).items():
            found.setdefault(name, []).append((sample.at_s, value))
    return [Series(name, [points]) for name, points in sorted(found.items())]


def _chart(title: str, series: Sequence[Series]) -> str:
    points = [point for line_series in series for piece in line_series.pieces for point in piece]
    if not points:
        return f"<h2>{escape(title)}</h2><p>no samples</p>"
    end_s = max(at_s for at_s, _ in points) or 1.0
    step = round_step(max(value for _, value in points) / 4)
    top = step * 4
    while top < max(value for _, value in points):
        top += step

    def across(at_s: float) -> float:
        return _LEFT + at_s / end_s * (WIDTH - _LEFT - _RIGHT)

    def down(value: float) -> float:
        return HEIGHT - _BOTTOM - value / top * (HEIGHT - _TOP - _BOTTOM)

    drawn = []
    for number in range(round(top / step) + 1):
        at = down(number * step)
        drawn.append(f'<path d="M{_LEFT} {at:.1f}H{WIDTH - _RIGHT}" stroke="#e4e4e4"/>')
        drawn.append(f'<text x="{_LEFT - 6}" y="{at + 4:.1f}" text-anchor="end">{number * step:g}</text>')
    for number in range(7):
        at_s = end_s * number / 6
        anchor = ("start", "middle", "end")[(number > 0) + (number == 6)]
        drawn.append(
            f'<text x="{across(at_s):.0f}" y="{HEIGHT - 8}" text-anchor="{anchor}">{_duration(at_s, end_s)}</text>'
        )
    keys = []
    for number, line_series in enumerate(series):
        colour = COLOURS[number % len(COLOURS)]
        keys.append(f'<span class="key"><span style="color:{colour}">&#9632;</span> {escape(line_series.name)}</span>')
        for piece in line_series.pieces:
            path = " ".join(f"{across(at_s):.1f},{down(value):.1f}" for at_s, value in thinned(piece))
            drawn.append(f'<polyline points="{path}" fill="none" stroke="{colour}" stroke-width="1.5"/>')
    box = f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="{escape(title)}">{"".join(drawn)}</svg>'
    return f"<h2>{escape(title)}</h2>{box}<p>{''.join(keys)}</p>"


def thinned(points: Sequence[Point], most: int = MOST_POINTS) -> list[Point]:
    """Return at most ``most`` of ``points``: the highest of each group of neighbours, so that peaks stay visible."""
    if len(points) <= most:
        return list(points)
    edges = [round(number * len(points) / most) for number in range(most + 1)]
    return [max(points[start:end], key=lambda point: point[1]) for start, end in pairwise(edges)]


def round_step(least: float) -> float:
    """Return the smallest of 0.1, 0.2, 0.5, 1, 2, 5, 10, … that is at least ``least``."""
    step = 0.1
    while True:
        for factor in (1, 2, 5):
            if step * factor >= least:
                return step * factor
        step *= 10


def _duration(at_s: float, end_s: float) -> str:
    return f"{at_s:.0f} s" if end_s < 600 else f"{at_s / 60:.0f} min"


def _text(value: object) -> str:
    return value if isinstance(value, str) else json.dumps(value)


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    top = "".join(f"<th>{escape(cell)}</th>" for cell in head)
    body = "".join("<tr>" + "".join(f"<td>{escape(cell)}</td>" for cell in row) + "</tr>" for row in rows)
    return f"<table><tr>{top}</tr>{body}</table>"

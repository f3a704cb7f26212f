"""Adds rows to docs/chaos-runs.md, the table of runs. The file is in Git, so that it collects the runs of many days."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from tests.conftest import CHECKOUT

TABLE = CHECKOUT / "docs" / "chaos-runs.md"
COLUMNS = ("date", "commit", "seed", "seconds", "load", "actions", "asked", "verdict")
_NO_ACTION = "revived"


def row(line: Mapping[str, Any], date: str) -> str:
    """Return the row for the run with the account ``line``, with ``date`` in its first column."""
    actions = sum(count for name, count in line.get("actions", {}).items() if name != _NO_ACTION)
    slow = ", slow" if line.get("slow") else ""
    values = {
        "date": date,
        "commit": line["commit"],
        "seed": line["seed"],
        "seconds": f"{line['seconds']:g}",
        "load": line["load"],
        "actions": actions,
        "asked": line.get("asked", 0),
        "verdict": f"{line['verdict']}{slow}",
    }
    return "| " + " | ".join(str(values[column]) for column in COLUMNS) + " |"


def add(line: Mapping[str, Any], path: Path = TABLE) -> None:
    """Append a row with today's date for the run with the account ``line``."""
    with path.open("a", encoding="utf-8") as table:
        table.write(row(line, datetime.now(UTC).date().isoformat()) + "\n")

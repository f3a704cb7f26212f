"""The command-line options that `make chaos` and `make soak` have in common."""

from __future__ import annotations

import argparse
import random
from pathlib import Path


def add_options(parser: argparse.ArgumentParser) -> None:
    """Add the common options to ``parser``."""
    parser.add_argument("--seed", type=int, default=random.SystemRandom().randrange(10**6), help="seed of the run")
    parser.add_argument("--workers", type=int, default=2, help="number of processors at the start")
    parser.add_argument(
        "--rate", type=float, default=20.0, help="messages per second; questions are sent at half this rate"
    )
    parser.add_argument("--load", type=int, default=0, help="number of busy processes alongside the run")
    parser.add_argument("--keep", type=Path, help="keep the files of the run in this folder, even if the run is right")
    parser.add_argument("--record", action="store_true", help="add a row to docs/chaos-runs.md")

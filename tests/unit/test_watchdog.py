"""The watchdog: a loop that hangs ends its process, with the stacks of all threads."""

from __future__ import annotations

import subprocess
import sys

import pytest

SCRIPT = """
import re, threading, time
from rtfm.telemetry import Health
from rtfm.watchdog import Watchdog

health = Health()

def waits():
    threading.Event().wait()

def holds_the_interpreter():
    re.match(r"(a+)+$", "a" * 64 + "b")

def loop():
    health.beat("loop")
    HANGS()

def rests():
    health.beat("other")
    health.rest("other")

rests()
with Watchdog(health, 1.0):
    threading.Thread(target=loop, daemon=True).start()
    time.sleep(LIMIT)
print("ended by itself")
"""


def run(hangs: str, limit: str) -> subprocess.CompletedProcess[str]:
    script = SCRIPT.replace("HANGS", hangs).replace("LIMIT", limit)
    return subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=60, check=False)


@pytest.mark.parametrize("hangs", ["waits", "holds_the_interpreter"])
def test_a_loop_that_hangs_ends_the_process_and_shows_where(hangs: str) -> None:
    """R6: also where nothing of Python's can run any more."""
    done = run(hangs, "40")
    assert done.returncode == 1
    assert f"in {hangs}" in done.stderr
    assert "ended by itself" not in done.stdout


def test_a_loop_that_has_ended_is_not_missed() -> None:
    """Only loops that were left in the middle of something are."""
    done = run("(lambda: health.rest('loop'))", "2")
    assert done.returncode == 0, done.stderr
    assert "ended by itself" in done.stdout

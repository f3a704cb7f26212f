"""The parts that both services share: the watchdog, signals, and waiting for dependencies at the start."""

from __future__ import annotations

import socket
import subprocess
import sys
import threading
from collections.abc import Callable

import httpx
import pytest
from attrs import evolve
from prometheus_client import REGISTRY

from rtfm import __version__
from rtfm.errors import ConfigError, Unavailable
from rtfm.service import Stop, open_monitoring, retry_until_available
from rtfm.settings import Settings
from tests.streams import eventually

THREADS = """
import re, threading, time
from rtfm.telemetry import Health
from rtfm.service import Watchdog

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
    health.end("other")

rests()
with Watchdog(health, 1.0):
    threading.Thread(target=loop, daemon=True).start()
    time.sleep(LIMIT)
print("ended by itself")
"""

EVENT_LOOP = """
import asyncio, time
from attrs import evolve
from rtfm.bot.service import beat
from rtfm.service import open_monitoring
from rtfm.settings import Settings

def hangs():
    time.sleep(60)

async def serve():
    with open_monitoring(evolve(Settings(), watchdog_s=2.0), {}) as health:
        beating = asyncio.create_task(beat(health))
        await asyncio.sleep(4)
        print("passed for longer than the limit", flush=True)
        hangs()

asyncio.run(serve())
"""


def run(script: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=90, check=False)


@pytest.mark.parametrize("hangs", ["waits", "holds_the_interpreter"])
def test_a_loop_that_hangs_ends_the_process_and_shows_where(hangs: str) -> None:
    """R6: If a loop hangs, the watchdog ends the process and prints where, even if no Python code can run."""
    done = run(THREADS.replace("HANGS", hangs).replace("LIMIT", "40"))
    assert done.returncode == 1
    assert f"in {hangs}" in done.stderr
    assert "ended by itself" not in done.stdout


def test_a_loop_that_has_ended_is_not_missed() -> None:
    """The watchdog ignores a loop that has ended."""
    done = run(THREADS.replace("HANGS", "(lambda: health.end('loop'))").replace("LIMIT", "2"))
    assert done.returncode == 0, done.stderr
    assert "ended by itself" in done.stdout


def test_an_event_loop_of_the_bot_that_hangs_ends_its_process() -> None:
    """R6: The watchdog ends the bot if its event loop hangs.

    Otherwise the bot would neither post nor receive, and would keep its partitions.
    """
    done = run(EVENT_LOOP)
    assert "passed for longer than the limit" in done.stdout
    assert done.returncode == 1
    assert "in hangs" in done.stderr


def test_the_metrics_port_shows_the_version_that_runs() -> None:
    """The metrics show the version of the process."""
    with open_monitoring(Settings(), {}):
        assert REGISTRY.get_sample_value("rtfm_build_info", {"version": __version__}) == 1


def test_a_service_that_has_just_begun_is_not_ready() -> None:
    """A service that has just started is not ready until its dependencies have been checked."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    with open_monitoring(evolve(Settings(), metrics_port=port), {"start": lambda: "the service is starting"}):
        answer = httpx.get(f"http://127.0.0.1:{port}/readyz")
    assert (answer.status_code, answer.json()["wrong"]) == (503, {"start": "the service is starting"})


def test_a_dependency_that_is_down_at_the_start_is_named_and_waited_for() -> None:
    """A dependency that is down at the start is named and waited for; a configuration error is raised at once."""
    answers: list[Callable[[], str]] = [lambda: raised(Unavailable("archive", "no answer")), lambda: "there"]
    noted: list[str] = []
    assert retry_until_available(lambda: answers.pop(0)(), Stop(), lambda error: noted.append(str(error))) == "there"
    assert noted == ["no answer"]
    with pytest.raises(ConfigError):
        retry_until_available(lambda: raised(ConfigError("no such topic")), Stop())


def test_a_service_that_is_asked_to_end_waits_for_nothing() -> None:
    """A service that is asked to stop ends even while it waits for a dependency."""
    stop = Stop(threading.Event())
    waiting = threading.Thread(
        target=retry_until_available, args=(lambda: raised(Unavailable("kafka", "no answer")), stop)
    )
    waiting.start()
    stop.set()
    eventually(lambda: not waiting.is_alive())


def raised(error: Exception) -> str:
    raise error

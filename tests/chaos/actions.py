"""The actions of a chaos run: faults of its workers and of their dependencies, in random order.

Each kind of action is done once before any kind is repeated.
"""

from __future__ import annotations

import os
import random
import signal
import time
from collections import Counter
from collections.abc import Callable, Collection, Mapping
from functools import partial
from types import MappingProxyType

from attrs import frozen
from confluent_kafka import KafkaException

from rtfm.contracts import catalogue
from rtfm.errors import Unavailable
from rtfm.local.stack import LocalStack
from rtfm.settings import Settings
from tests.chaos.fleet import Fleet
from tests.chaos.history import History
from tests.chaos.transactions import OpenTransactions
from tests.streams import QUERIES, RESPONSES

MAX_WORKERS = 4
STARTS = 3
"""The largest number of attempts to restart a dependency that was killed."""

SERVICES = ("kafka", "schema-registry", "postgres", "chroma")


@frozen
class Action:
    """A kind of action.

    ``target`` chooses the worker or dependency to act on. It returns None if the action is impossible now, and an empty
    text if ``do`` chooses the target. ``do`` acts on the target, and returns a description of what it did, or None
    if it did nothing.
    """

    target: Callable[[], str | None]
    do: Callable[[str], str | None]


class Chaos:
    """Performs the actions of one run. The history records when each action began and ended."""

    def __init__(
        self,
        settings: Settings,
        stack: LocalStack,
        fleet: Fleet,
        history: History,
        chance: random.Random,
        *,
        pause_s: tuple[float, float] = (0.5, 2.0),
        spared: Collection[str] = (),
        faults: Mapping[str, Action] = MappingProxyType({}),
    ) -> None:
        """Configure the actions.

        ``pause_s`` is the shortest and the longest pause between two actions, in seconds. ``spared`` are the names of
        workers that are never chosen for an action. ``faults`` are additional actions.
        """
        self._settings = settings
        self._stack = stack
        self._fleet = fleet
        self._history = history
        self._random = chance
        self._pause_s = pause_s
        self._spared = spared
        self._started_s = time.monotonic()
        self._next_worker = 0
        self.actions: dict[str, Action] = {
            "kill": Action(self._victim, self._kill),
            "kill in transaction": Action(lambda: "", self._kill_in_transaction),
            "freeze": Action(self._victim, self._freeze),
            **{f"kill {service}": Action(partial(str, service), self._outage) for service in SERVICES},
            "add worker": Action(self._newcomer, self._add),
            "remove worker": Action(lambda: self._victim() if len(self._fleet.names) > 1 else None, self._remove),
            **faults,
        }
        self.done: Counter[str] = Counter(dict.fromkeys(self.actions, 0))

    def begin(self, workers: int) -> None:
        """Start workers. ``workers`` is their number."""
        for _ in range(workers):
            self.print_progress(self._add(self._newcomer() or ""))

    def run(self, seconds: float, *, latest_s: float) -> None:
        """Perform actions for ``seconds``, and longer if some kind of action has not been done yet.

        After the time ``latest_s`` of the monotonic clock, no further action begins.
        """
        deck = self._random.sample(sorted(self.actions), len(self.actions))
        until_s = time.monotonic() + seconds
        while (now_s := time.monotonic()) < latest_s and (now_s < until_s or deck):
            self.revive()
            name = deck.pop() if deck else self._random.choice(sorted(self.actions))
            if self._do(name):
                self.done[name] += 1
            elif not self.done[name]:
                deck.insert(0, name)
            pause_s = self._random.uniform(*self._pause_s)
            time.sleep(max(0.0, min(pause_s, latest_s - time.monotonic())))

    def revive(self) -> None:
        """Restart the workers that ended by themselves."""
        for name in self._fleet.revive():
            self.done["revived"] += 1
            self.print_progress(f"{name} ended with exit code {self._fleet.codes[-1]}, restarted")

    def print_progress(self, text: str) -> None:
        """Print a line of progress with the time since the start."""
        print(f"{time.monotonic() - self._started_s:6.1f} s  {text}", flush=True)  # noqa: T201 - for people

    def _do(self, name: str) -> bool:
        """Perform the action ``name``. Return False if it was impossible or did nothing."""
        target = self.actions[name].target()
        if target is None:
            return False
        began_s = time.monotonic()
        known = {"target": target} if target else {}
        self._history.write("action", name=name, phase="begin", **known)
        what = self.actions[name].do(target)
        seconds = round(time.monotonic() - began_s, 3)
        self._history.write("action", name=name, phase="end", **known, seconds=seconds, detail=what or "not done")
        if what is not None:
            self.print_progress(what)
        return what is not None

    def _victim(self) -> str | None:
        names = [name for name in self._fleet.names if name not in self._spared]
        return self._random.choice(names) if names else None

    def _kill(self, name: str) -> str:
        self._fleet.kill(name)
        time.sleep(self._random.uniform(0, 1))
        self._fleet.start(name)
        return f"killed {name}"

    def _kill_in_transaction(self, _: str) -> str | None:
        peek = OpenTransactions(self._settings, group=catalogue.load().group(QUERIES), read=QUERIES, written=RESPONSES)
        try:
            name = self._freeze_in_transaction(peek)
            self._fleet.kill(name)
        except (AssertionError, KafkaException) as exc:
            for frozen_one in self._fleet.names:
                self._fleet.send(frozen_one, signal.SIGCONT)
            self.print_progress(str(exc))
            return None
        finally:
            peek.close()
        self._fleet.start(name)
        return f"killed {name} inside an open transaction"

    def _freeze_in_transaction(self, peek: OpenTransactions) -> str:
        name = peek.freeze_one(self._fleet, timeout_s=15)
        if name in self._spared:
            raise AssertionError(f"only the spared worker {name} was inside an open transaction")
        return name

    def _freeze(self, name: str) -> str:
        seconds = self._random.uniform(2, 13)  # some freezes are longer than the transaction timeout
        self._fleet.send(name, signal.SIGSTOP)
        time.sleep(seconds)
        self._fleet.send(name, signal.SIGCONT)
        return f"froze {name} for {seconds:.1f} s"

    def _outage(self, service: str) -> str:
        pid = next(status.pid for status in self._stack.status() if status.name == service)
        if pid is not None:
            os.kill(pid, signal.SIGKILL)
        seconds = self._random.uniform(0, 3)
        time.sleep(seconds)
        for attempt in range(1, STARTS + 1):
            try:
                self._stack.up([service])
                break
            except Unavailable as exc:  # a slow machine may need more than one attempt
                self.print_progress(f"start {service}, attempt {attempt} of {STARTS}: {exc}")
        else:
            return f"killed {service}; it did not start again in {STARTS} attempts"
        return f"killed {service}, restarted after {seconds:.1f} s"

    def _newcomer(self) -> str | None:
        return f"w{self._next_worker + 1}" if len(self._fleet.names) < MAX_WORKERS else None

    def _add(self, name: str) -> str:
        self._next_worker += 1
        self._fleet.start(name)
        return f"added {name}"

    def _remove(self, name: str) -> str:
        return f"removed {name}, exit code {self._fleet.end(name)}"

"""The actions of a run against its processors and services, drawn from a shuffled deck."""

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
SERVICES = ("kafka", "schema-registry", "postgres", "chroma")


@frozen
class Action:
    """One action: ``target`` chooses what it acts on, or None if it is impossible now; ``do`` returns what it did."""

    target: Callable[[], str | None]
    do: Callable[[str], str | None]


class Chaos:
    """One run's actions. The history records the begin and the end of each."""

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

        ``pause_s`` is the shortest and the longest pause between two actions. ``spared`` are workers that no action
        touches. ``faults`` are additional actions.
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
        """Start the first workers."""
        for _ in range(workers):
            self.print_progress(self._add(self._newcomer() or ""))

    def run(self, seconds: float, *, latest_s: float) -> None:
        """Act for ``seconds`` in random order, and until each action has been done once.

        Ends at ``latest_s`` of the monotonic clock even if some actions have not been done.
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
        """Restart every worker that ended by itself."""
        for name in self._fleet.revive():
            self.done["revived"] += 1
            self.print_progress(f"{name} ended with exit code {self._fleet.codes[-1]}, restarted")

    def print_progress(self, text: str) -> None:
        """Print a line of progress."""
        print(f"{time.monotonic() - self._started_s:6.1f} s  {text}", flush=True)  # noqa: T201 - for people

    def _do(self, name: str) -> bool:
        """Return whether the action was possible."""
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
            raise AssertionError(f"only {name} was inside an open transaction, and it is spared")
        return name

    def _freeze(self, name: str) -> str:
        seconds = self._random.uniform(2, 13)  # some freezes outlast the transaction timeout
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
            except Unavailable as exc:  # on a slow machine; without the service the run proves nothing
                self.print_progress(f"start {service}, attempt {attempt} of {STARTS}: {exc}")
        else:
            return f"killed {service}, and it did not start in {STARTS} attempts"
        return f"killed {service}, restarted after {seconds:.1f} s"

    def _newcomer(self) -> str | None:
        return f"w{self._next_worker + 1}" if len(self._fleet.names) < MAX_WORKERS else None

    def _add(self, name: str) -> str:
        self._next_worker += 1
        self._fleet.start(name)
        return f"added {name}"

    def _remove(self, name: str) -> str:
        return f"removed {name}, exit code {self._fleet.end(name)}"

"""``make chaos SECONDS=… SEED=…``: the proof that nothing is lost and nothing is done twice.

Real processors answer real questions and archive real messages on services of this machine, with a stand-in only for
Gemini. They are killed, also inside open transactions, and frozen; the broker, the registry, PostgreSQL and Chroma are
killed and started again; processors come and go. At the end everything is accounted for: the last line is the account
as JSON, and the exit code 1 if anything is missing, twice, out of order or a dead letter.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import signal
import sys
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path

from attrs import evolve

from rtfm.contracts import catalogue as catalogues
from rtfm.contracts import open_contracts, open_registry, registration
from rtfm.errors import RtfmError
from rtfm.knowledge.archive import SqlArchive
from rtfm.local.services import DEFAULT_PORTS, free_ports
from rtfm.local.stack import LocalStack
from rtfm.processor.service import ANSWER_GROUP, INGEST_GROUP
from rtfm.settings import Settings
from rtfm.streams.progress import GroupProgress
from rtfm.streams.topics import TopicAdmin
from rtfm.telemetry import configure_logging
from tests.chaos.fleet import Fleet
from tests.chaos.load import Load, account
from tests.chaos.transactions import OpenTransactions
from tests.conftest import CACHE_DIR, CHECKOUT, stack_home
from tests.fakes import gemini as fakes
from tests.fakes.gemini import FakeGemini
from tests.streams import MESSAGES, QUERIES, RESPONSES

SETTLE_S = 240.0
MAX_WORKERS = 4
FIRST_ROUND_S = 180.0
"""How much longer than was asked a run may take to do everything once."""


class Chaos:
    """One run: what is done to the processors and to what they need, from a shuffled deck of actions."""

    def __init__(self, settings: Settings, stack: LocalStack, fleet: Fleet, chance: random.Random) -> None:
        self._settings = settings
        self._stack = stack
        self._fleet = fleet
        self._random = chance
        self._started_s = time.monotonic()
        self._next_worker = 0
        self.done: Counter[str] = Counter()
        self._actions: dict[str, Callable[[], str | None]] = {
            "kill": self._kill,
            "kill in transaction": self._kill_in_transaction,
            "freeze": self._freeze,
            "kill kafka": lambda: self._outage("kafka"),
            "kill schema-registry": lambda: self._outage("schema-registry"),
            "kill postgres": lambda: self._outage("postgres"),
            "kill chroma": lambda: self._outage("chroma"),
            "add worker": self._add,
            "remove worker": self._remove,
        }
        self.done.update(dict.fromkeys(self._actions, 0))

    def begin(self, workers: int) -> None:
        """Start the first workers."""
        for _ in range(workers):
            self.say(self._add() or "")

    def run(self, seconds: float) -> None:
        """Do one thing after another for ``seconds``, in an order of chance; in any case each of them once."""
        deck = self._random.sample(sorted(self._actions), len(self._actions))
        until_s = time.monotonic() + seconds
        while (now_s := time.monotonic()) < until_s or (deck and now_s < until_s + FIRST_ROUND_S):
            self.revive()
            name = deck.pop() if deck else self._random.choice(sorted(self._actions))
            if (what := self._actions[name]()) is not None:
                self.done[name] += 1
                self.say(what)
            elif not self.done[name]:
                deck.insert(0, name)
            time.sleep(self._random.uniform(0.5, 2.0))

    def revive(self) -> None:
        """Start again in place whoever ended by itself."""
        for name in self._fleet.revive():
            self.done["revived"] += 1
            self.say(f"{name} had ended with {self._fleet.codes[-1]}, started again")

    def say(self, text: str) -> None:
        """A line of progress."""
        print(f"{time.monotonic() - self._started_s:6.1f} s  {text}", flush=True)  # noqa: T201 - for people

    def _victim(self) -> str:
        return self._random.choice(self._fleet.names)

    def _kill(self) -> str:
        name = self._victim()
        self._fleet.kill(name)
        time.sleep(self._random.uniform(0, 1))
        self._fleet.start(name)
        return f"killed {name}"

    def _kill_in_transaction(self) -> str | None:
        peek = OpenTransactions(self._settings, group=ANSWER_GROUP, read=QUERIES, written=RESPONSES)
        try:
            name = peek.kill_one(self._fleet, timeout_s=15)
        except AssertionError as exc:
            self.say(str(exc))
            return None
        finally:
            peek.close()
        self._fleet.start(name)
        return f"killed {name} inside an open transaction"

    def _freeze(self) -> str:
        name, seconds = self._victim(), self._random.uniform(2, 13)  # also past the end of a transaction
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
        self._stack.up([service])
        return f"killed {service}, started again after {seconds:.1f} s"

    def _add(self) -> str | None:
        if len(self._fleet.names) >= MAX_WORKERS:
            return None
        self._next_worker += 1
        self._fleet.start(f"w{self._next_worker}")
        return f"added w{self._next_worker}"

    def _remove(self) -> str | None:
        if len(self._fleet.names) < 2:
            return None
        name = self._victim()
        return f"removed {name}, exit code {self._fleet.end(name)}"


def main() -> int:
    """Run; 1 when the account is not right."""
    parser = argparse.ArgumentParser(prog="make chaos", description=__doc__.partition("\n")[0] if __doc__ else None)
    parser.add_argument("--seconds", type=float, default=60.0)
    parser.add_argument("--seed", type=int, default=random.SystemRandom().randrange(10**6))
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--questions", type=float, default=10.0, help="questions a second")
    parser.add_argument("--messages", type=float, default=20.0, help="messages a second")
    options = parser.parse_args()
    print(f"seed {options.seed}", flush=True)  # noqa: T201 - for people
    configure_logging("WARNING")
    with stack_home() as home, FakeGemini() as gemini:
        stack = LocalStack(home, cache_dir=CACHE_DIR)
        try:
            addresses = {service.name: service.address for service in stack.up(ports=free_ports(DEFAULT_PORTS))}
            settings = _prepared(addresses, home)
            return _run(settings, stack, gemini, options)
        finally:
            stack.down()


def _prepared(addresses: dict[str, str], home: Path) -> Settings:
    """Topics, contracts and archive."""
    given = os.environ.get("RTFM_EMBEDDING_MODEL_DIR")
    model = Path(given) if given else CHECKOUT.parent / "shared" / "models" / "all-MiniLM-L6-v2"
    settings = evolve(
        Settings(),
        home=home / "processor",
        kafka_bootstrap_servers=addresses["kafka"],
        schema_registry_url=addresses["schema-registry"],
        chroma_url=addresses["chroma"],
        database_url=addresses["postgres"],
        embedding_model_dir=model if model.is_dir() else None,
        embedding_threads=1,
        log_format="json",
    )
    catalogue = catalogues.load()
    topics = TopicAdmin(settings, catalogue)
    topics.apply(topics.plan())
    registry = open_registry(settings)
    registration.apply(catalogue, registry, registration.plan(catalogue, registry))
    registry.close()
    archive = SqlArchive(settings.database_url)
    archive.migrate()
    archive.close()
    return settings


def _run(settings: Settings, stack: LocalStack, gemini: FakeGemini, options: argparse.Namespace) -> int:
    contracts = open_contracts(settings)
    program = str(Path(sys.executable).with_name("rtfm-cli"))
    model = {"GEMINI_API_KEY": fakes.KEY, "GEMINI_API_ENDPOINT": gemini.address}
    fleet = Fleet(settings, command=[program, "run", "processor"], environment=model)
    load = Load(
        settings,
        contracts,
        seed=options.seed,
        questions_per_s=options.questions,
        messages_per_s=options.messages,
    )
    chaos = Chaos(settings, stack, fleet, random.Random(options.seed))
    try:
        load.start()
        chaos.begin(options.workers)
        # Kills meet calls of the model that are under way.
        gemini.faults = [fakes.slow(3) if number % 20 == 0 else fakes.Fault() for number in range(10_000)]
        chaos.run(options.seconds)
        load.stop()
        stack.up()
        settled = _settled(settings, chaos)
        for name in fleet.names:
            chaos.say(f"{name} ended with {fleet.end(name)}")
        found = account(settings, contracts, load)
        right = found.right and settled
        if not right:
            sys.stderr.write(fleet.log.read_text(encoding="utf-8", errors="replace")[-20_000:])
    finally:
        fleet.close()
    line = {**found.as_dict(), "seed": options.seed, "seconds": options.seconds, "actions": dict(chaos.done)}
    print(json.dumps(line), flush=True)  # noqa: T201 - the result
    return 0 if right else 1


def _settled(settings: Settings, chaos: Chaos) -> bool:
    """Wait until both groups are through with everything; False when they do not come to an end."""
    topics = TopicAdmin(settings, catalogues.load())
    until_s = time.monotonic() + SETTLE_S
    said_s = 0.0
    while time.monotonic() < until_s:
        chaos.revive()
        try:
            ends = {state.topic: state.offsets for state in topics.states()}
            done = {
                topic: sum(GroupProgress(settings, group).committed(topic, range(3)).values())
                for topic, group in ((MESSAGES, INGEST_GROUP), (QUERIES, ANSWER_GROUP))
            }
        except RtfmError as exc:
            chaos.say(str(exc))
            continue
        if all(ends[topic] == count for topic, count in done.items()):
            return True
        if time.monotonic() - said_s > 5:
            said_s = time.monotonic()
            chaos.say(", ".join(f"{topic}: {count} of {ends[topic]}" for topic, count in done.items()))
        time.sleep(0.5)
    chaos.say(f"not done after {SETTLE_S:.0f} s: {done} of {ends}")
    return False


if __name__ == "__main__":
    try:
        sys.exit(main())
    except RtfmError as exc:
        sys.exit(f"Error: {exc}" + (f"\nHint: {exc.hint}" if exc.hint else ""))

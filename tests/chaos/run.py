"""One run of ``make chaos``, from the start of the services to the verdict.

The module decides the order of the phases and the time limit of each phase. If a run has not finished shortly before
``Plan.limit_s``, an exception ends it. An interrupted run leaves no process and no folder behind, except a folder given
by ``Plan.keep``.
"""

from __future__ import annotations

import os
import random
import subprocess
import sys
import time
import traceback
import uuid
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path

from attrs import evolve, field, frozen

from rtfm.contracts import COMMAND_TIMEOUT_S, Contracts, open_registry, registration
from rtfm.contracts import catalogue as catalogues
from rtfm.errors import RtfmError
from rtfm.knowledge.archive import SqlArchive
from rtfm.local.stack import LocalStack
from rtfm.settings import Settings
from rtfm.streams.connection import KafkaConfig
from rtfm.streams.dead_letters.letters import TOPIC as DEAD_LETTERS
from rtfm.streams.topics import TopicAdmin
from rtfm.telemetry import configure_logging
from tests.chaos import evidence
from tests.chaos.actions import Chaos
from tests.chaos.burners import burning
from tests.chaos.diagnosis import diagnosis
from tests.chaos.endings import Interrupted, OutOfTime, end_limit, endings
from tests.chaos.faults import Faults, Network
from tests.chaos.fleet import Fleet
from tests.chaos.guard import guard_folder
from tests.chaos.history import FORMAT, History
from tests.chaos.load import FIRST_MESSAGES, Load, account
from tests.chaos.pace import PARTITIONS, SETTLE_S, Follower, Pace, settle_limit_s
from tests.chaos.ticker import Ticker
from tests.conftest import CACHE_DIR, CHECKOUT, stack_home
from tests.fakes import gemini as fakes
from tests.fakes.gemini import FakeGemini
from tests.streams import MESSAGES, QUERIES, RESPONSES

INGEST_GROUP, ANSWER_GROUP = catalogues.load().group(MESSAGES), catalogues.load().group(QUERIES)

ENDING_S = 35.0
"""This many seconds are reserved for the phases after settling.

These phases end the workers, compare the results with what was sent, stop the dependencies, and judge the run.
"""

TEARDOWN_S = 15.0
"""This many seconds before ``Plan.limit_s``, the run is ended, so that its processes and folders can be removed."""

SETTLE_SHARE, SETTLE_KEPT_S = 0.4, 90.0
"""A run reserves the share SETTLE_SHARE of its time limit for settling, but at most SETTLE_KEPT_S.

If an action still runs when the reserved time begins, less time is left for settling.
"""

SLOW_SHARE = 0.5
"""A run is marked as slow if the average rates of its load were below this share of the full rates."""


@frozen(kw_only=True)
class Plan:
    """The parameters of a run.

    If ``keep`` is given, the files of the run are kept in this folder. Otherwise they are kept below ``kept_in``,
    unless the verdict is right. ``load`` is the number of busy processes. ``pause_s`` and ``spared`` are passed to
    ``Chaos``.
    """

    seed: int
    seconds: float
    workers: int = 2
    questions_per_s: float = 10.0
    messages_per_s: float = 20.0
    load: int = 0
    keep: Path | None = None
    kept_in: Path = CHECKOUT / ".rtfm" / "chaos"
    pause_s: tuple[float, float] = (0.5, 2.0)
    spared: tuple[str, ...] = ()
    run: str = field(factory=lambda: uuid.uuid4().hex)

    @property
    def name(self) -> str:
        """The name of the run's folder below ``kept_in``."""
        return f"{self.run[:8]}-seed-{self.seed}"

    @property
    def limit_s(self) -> float:
        """The run must end within this number of seconds."""
        return self.seconds * 2 + 120


@frozen(kw_only=True)
class Scene:
    """The parts of a run that an observer can use while the run lasts."""

    home: Path
    settings: Settings
    stack: LocalStack
    fleet: Fleet
    pace: Pace
    history: History


Beside = Callable[[Scene], Ticker]
"""A function that builds an observer, which runs from the start of the load to the end of settling."""


def commit() -> str:
    """Return the checked-out commit, followed by ``-dirty`` if tracked files differ from it."""
    described = subprocess.run(
        ["git", "describe", "--always", "--dirty", "--abbrev=10", "--exclude=*"],
        cwd=CHECKOUT,
        capture_output=True,
        text=True,
        check=False,
    )
    return described.stdout.strip() or "unknown"


def run(plan: Plan, beside: Beside | None = None) -> dict[str, object]:
    """Run ``plan`` and return its account, as the fields of a JSON line.

    The field ``verdict`` is a key of ``evidence.EXIT_CODES``. ``beside`` builds an observer. Raises Interrupted after a
    signal, and ConfigError if the folder ``plan.keep`` is not empty.
    """
    began_s = time.monotonic()
    configure_logging("WARNING")
    line: dict[str, object] = {"run": plan.run, "commit": commit(), "seed": plan.seed, "seconds": plan.seconds}
    with stack_home() as home, guard_folder(home), endings(home, plan.limit_s - TEARDOWN_S):
        history = History(plan.keep or home / "run")
        chaos_run = _ChaosRun(plan, home, history, until_s=began_s + plan.limit_s - TEARDOWN_S)
        failure, verdict = None, "failed"
        try:
            chaos_run.do(beside)
        except OutOfTime:
            failure, verdict = f"did not finish within {plan.limit_s - TEARDOWN_S:.0f} s", "out of time"
        except Interrupted:
            chaos_run.close()
            history.close()
            if plan.keep:
                evidence.keep_services(home, history)
            raise
        except Exception as exc:
            failure = f"{type(exc).__name__}: {exc}"
            traceback.print_exc()
        # From here on, the time limit would only lose the evidence. The steps that follow have limits of their own.
        end_limit()
        chaos_run.close()
        line = chaos_run.line | line | {"load": plan.load}
        history.write("end", ok=failure is None and chaos_run.right, **({"failure": failure} if failure else {}))
        history.close()
        evidence.keep_services(home, history)
        judged = None if failure else evidence.judge(history.folder, max(10.0, chaos_run.left_s))
        for words in chaos_run.diagnosis:
            print(words, flush=True)  # noqa: T201 - for people
        verdict = verdict if judged is None else chaos_run.verdict(judged)
        if plan.keep is None and verdict != "right":
            history.move_to(plan.kept_in / plan.name)
        kept = str(history.folder) if plan.keep is not None or verdict != "right" else None
        if verdict == "out of time":
            line["slow"] = True
        line |= {"judge": judged, "verdict": verdict, "failure": failure, "kept": kept}
    line["took_s"] = round(time.monotonic() - began_s, 1)
    return line


class _ChaosRun:
    """A run in progress: its parts, and what is known about it so far."""

    def __init__(self, plan: Plan, home: Path, history: History, *, until_s: float) -> None:
        self._plan = plan
        self._home = home
        self._history = history
        self._until_s = until_s
        self._open = ExitStack()
        self._network = self._open.enter_context(Network.plan())
        broker_settings = {**self._network.broker_settings, "log.cleaner.enable": "false"}
        self._stack = LocalStack(home, cache_dir=CACHE_DIR, broker_settings=broker_settings)
        self._open.callback(self._stack.down)
        self._averages: list[float] = []
        self._settled = False
        self._settle_s = self._acted_s = 0.0
        self.line: dict[str, object] = {}
        self.diagnosis: list[str] = []
        """Lines that help to find why the run did not settle. Empty if it settled."""
        self.right = False
        self._wrong = True

    @property
    def left_s(self) -> float:
        """The number of seconds until the time limit."""
        return self._until_s - time.monotonic()

    def verdict(self, judged: int) -> str:
        """Return the verdict that follows from the account and from the judge's exit code."""
        return evidence.verdict(wrong=self._wrong, settled=self._settled, judged=judged)

    def close(self) -> None:
        """End all processes and connections of the run."""
        self._open.close()

    def do(self, beside: Beside | None) -> None:
        """Run all phases from the start of the dependencies to the account, and put the account into ``line``.

        Only the verdict is missing then.
        """
        plan = self._plan
        gemini = self._open.enter_context(FakeGemini(keep_requests=False))
        # Some responses of the model are slow, so that some workers are killed while they wait for a response.
        late, prompt = fakes.slow(3), fakes.Fault()
        calls = round(plan.questions_per_s * plan.limit_s)
        gemini.faults = [late if number % 20 == 0 else prompt for number in range(calls)]
        started = self._stack.up(ports=self._network.ports)
        settings = self._prepare({service.name: service.address for service in started})
        contracts = Contracts(catalogues.load(), open_registry(settings, timeout_s=COMMAND_TIMEOUT_S))
        self._begin(settings, contracts)
        load = Load(
            settings,
            contracts,
            self._history,
            seed=plan.seed,
            questions_per_s=plan.questions_per_s,
            messages_per_s=plan.messages_per_s,
        )
        self._open.callback(load.close)
        fleet = self._fleet(self._network.through(settings), gemini)
        self._open.callback(fleet.close)
        pace = Pace(
            load, Follower(settings, MESSAGES, INGEST_GROUP), Follower(settings, QUERIES, ANSWER_GROUP), self._history
        )
        chance = random.Random(plan.seed)
        chaos = Chaos(
            settings,
            self._stack,
            fleet,
            self._history,
            chance,
            pause_s=plan.pause_s,
            spared=plan.spared,
            faults=Faults(self._network, self._stack, chance).actions,
        )
        scene = Scene(
            home=self._home, settings=settings, stack=self._stack, fleet=fleet, pace=pace, history=self._history
        )
        with burning(plan.load, self._home), ExitStack() as aside:
            for ticker in [Ticker(1, self._note_load_average), *([beside(scene)] if beside else [])]:
                aside.callback(ticker.stop)
                ticker.start()
            self._act(scene, load, chaos)
            self._settle(scene, chaos, settle_limit_s(pace.readings))
        for name in fleet.names:
            chaos.print_progress(f"{name} ended with exit code {fleet.end(name)}")
        self._account(scene, contracts, load, chaos)

    def _act(self, scene: Scene, load: Load, chaos: Chaos) -> None:
        """Send the load and perform the actions. At the end, all records are sent and all dependencies run."""
        load.say(FIRST_MESSAGES)
        chaos.begin(self._plan.workers)
        load.start()
        scene.pace.start()
        self._open.callback(scene.pace.stop)
        began_s = time.monotonic()
        settling_s = min(SETTLE_KEPT_S, SETTLE_SHARE * self._plan.limit_s)
        chaos.run(self._plan.seconds, latest_s=self._until_s - settling_s - ENDING_S)
        self._acted_s = time.monotonic() - began_s
        self._stack.up()
        load.stop(max(10.0, self.left_s - ENDING_S))
        scene.pace.stop()

    def _account(self, scene: Scene, contracts: Contracts, load: Load, chaos: Chaos) -> None:
        found = account(scene.settings, contracts, load)
        evidence.write_seen(scene.settings, self._history, [RESPONSES, DEAD_LETTERS])
        evidence.write_archived(scene.settings, self._history)
        self.right = found.right and self._settled
        # If the run did not settle, missing results may only be late.
        self._wrong = bool(found.duplicated or found.dead_letters or (self._settled and not found.right))
        share = scene.pace.share
        self.line = {
            **found.as_dict(),
            "actions": dict(chaos.done),
            "slow": share < SLOW_SHARE or self._settle_s > SETTLE_S or self._acted_s < self._plan.seconds,
            "measured_per_s": scene.pace.measured_per_s,
            "share": round(share, 2),
            "acted_s": round(self._acted_s, 1),
            "settled": self._settled,
            "settle_s": round(self._settle_s, 1),
            "load_average": round(sum(self._averages) / max(1, len(self._averages)), 1),
        }

    def _note_load_average(self) -> None:
        average = os.getloadavg()[0]
        self._averages.append(average)
        self._history.write("load", average=round(average, 2))

    def _prepare(self, addresses: dict[str, str]) -> Settings:
        """Create the topics, register the schemas, migrate the archive, and return the settings."""
        given = os.environ.get("RTFM_EMBEDDING_MODEL_DIR")
        model = Path(given) if given else CHECKOUT.parent / "shared" / "models" / "all-MiniLM-L6-v2"
        settings = evolve(
            Settings(),
            home=self._home / "processor",
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
        registry = open_registry(settings, timeout_s=COMMAND_TIMEOUT_S)
        registration.apply(catalogue, registry, registration.plan(catalogue, registry))
        registry.close()
        archive = SqlArchive(settings.database_url)
        archive.migrate()
        archive.close()
        return settings

    def _begin(self, settings: Settings, contracts: Contracts) -> None:
        topics = {"messages": MESSAGES, "queries": QUERIES, "responses": RESPONSES, "dead_letters": DEAD_LETTERS}
        schemas = {
            contracts.registry.id_for(topic, codec.schema): codec.schema
            for topic in (MESSAGES, QUERIES, RESPONSES)
            for codec in (contracts.codec(topic),)
        }
        self._history.write(
            "begin",
            format=FORMAT,
            run=self._plan.run,
            commit=commit(),
            seed=self._plan.seed,
            seconds=self._plan.seconds,
            load=self._plan.load,
            topics={what: KafkaConfig.of(settings).topic(topic) for what, topic in topics.items()},
            groups={
                "answer": KafkaConfig.of(settings).group(ANSWER_GROUP),
                "ingest": KafkaConfig.of(settings).group(INGEST_GROUP),
            },
            partitions=PARTITIONS,
            ordered_by_key=[KafkaConfig.of(settings).topic(RESPONSES)],
            schemas={str(number): schema for number, schema in schemas.items()},
        )

    def _fleet(self, settings: Settings, gemini: FakeGemini) -> Fleet:
        def note(name: str, pid: int, code: int | None) -> None:
            ended = {} if code is None else {"code": code}
            self._history.write("worker", name=name, pid=pid, phase="exit" if ended else "start", **ended)

        return Fleet(
            settings,
            command=[str(Path(sys.executable).with_name("rtfm-cli")), "run", "processor"],
            environment={"GEMINI_API_KEY": fakes.KEY, "GEMINI_API_ENDPOINT": gemini.address},
            folder=self._home,
            logs=self._history.logs,
            note=note,
        )

    def _settle(self, scene: Scene, chaos: Chaos, limit_s: float) -> None:
        """Wait until both groups have committed all records, and note whether they did within ``limit_s``."""
        began_s = time.monotonic()
        limit_s = min(limit_s, self.left_s - ENDING_S)
        self._settled = _settled(scene, chaos, limit_s)
        self._settle_s = time.monotonic() - began_s
        self._history.write("settled", ok=self._settled, after_s=round(self._settle_s, 1), limit_s=round(limit_s, 1))
        if not self._settled:
            groups, kafka = {MESSAGES: INGEST_GROUP, QUERIES: ANSWER_GROUP}, KafkaConfig.of(scene.settings)
            self.diagnosis = diagnosis(
                scene.settings.kafka_bootstrap_servers,
                {kafka.topic(topic): kafka.group(group) for topic, group in groups.items()},
                PARTITIONS,
                [*self._history.logs.glob("*.log"), *(self._home / "log").glob("*.log")],
            )


def _settled(scene: Scene, chaos: Chaos, limit_s: float) -> bool:
    topics = TopicAdmin(scene.settings, catalogues.load())
    until_s = time.monotonic() + limit_s
    printed_s = 0.0
    state = "Kafka did not respond"
    while time.monotonic() < until_s:
        chaos.revive()
        try:
            ends = {state.topic: state.offsets for state in topics.states()}
            done = {follower.topic: follower.committed() for follower in scene.pace.followers}
        except RtfmError as exc:
            chaos.print_progress(str(exc))
            continue
        if all(ends[topic] == count for topic, count in done.items()):
            return True
        state = ", ".join(f"{topic}: {count} of {ends[topic]} committed" for topic, count in done.items())
        if time.monotonic() - printed_s > 5:
            printed_s = time.monotonic()
            chaos.print_progress(state)
        time.sleep(0.5)
    chaos.print_progress(f"not settled after {limit_s:.0f} s: {state}")
    return False

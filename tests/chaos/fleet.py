"""Runs and kills worker processes, and counts missing, duplicated and out-of-order answers to a test's messages."""

from __future__ import annotations

import signal
import subprocess
import sys
import tempfile
import threading
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Self

from attrs import evolve, frozen

from rtfm.contracts import open_contracts
from rtfm.events import DiscordMessage
from rtfm.settings import Settings
from rtfm.streams.producer import EventProducer
from tests.conftest import CHECKOUT, environment_of
from tests.streams import MESSAGES, RESPONSES, build_message, eventually, produce, records

CHANNELS = 60
WORKER = (sys.executable, "-m", "tests.chaos.worker")


Note = Callable[[str, int, int | None], None]
"""A function that is called at each start and end of a worker.

The function gets the name, the process id and the exit code of the worker. At a start, the exit code is None.
"""


@frozen
class _RunningWorker:
    """A worker process, and the thread that waits until it ends."""

    process: subprocess.Popen[bytes]
    waiting: threading.Thread


class Fleet:
    """A set of worker processes. The name of a worker is its RTFM_INSTANCE_ID.

    A worker runs ``command`` with ``arguments`` in the working folder ``folder``. The default command is
    tests.chaos.worker. The standard error of all workers is appended to the file ``log``. If ``logs`` is given, each
    start of a worker has its own file in that folder instead. ``note`` is called at each start and end of a worker.
    """

    def __init__(
        self,
        settings: Settings,
        *arguments: object,
        command: Sequence[str] = WORKER,
        environment: Mapping[str, str] | None = None,
        folder: Path = CHECKOUT,
        logs: Path | None = None,
        note: Note = lambda *_: None,
    ) -> None:
        self._settings = settings
        self._command = [*command, *map(str, arguments)]
        self._environment = dict(environment or {})
        self._folder = folder
        self._logs = logs
        self._note = note
        self._starts: Counter[str] = Counter()
        self._workers: dict[str, _RunningWorker] = {}
        self._listening_before: dict[str, int] = {}
        self._is_worker = tuple(command) == WORKER
        self.log = logs / "fleet.log" if logs else Path(tempfile.mkstemp(suffix=".log")[1])
        self.codes: list[int] = []

    def start(self, name: str) -> None:
        """Start a worker, or restart it under the same name."""
        settings = evolve(self._settings, instance_id=name)
        if self._is_worker:
            self._listening_before[name] = self._count_listening(name)
        self._starts[name] += 1
        path = self._logs / f"{name}-{self._starts[name]}.log" if self._logs else self.log
        with path.open("ab") as log:
            process = subprocess.Popen(
                self._command,
                env=environment_of(settings) | self._environment,
                cwd=self._folder,
                stdout=subprocess.DEVNULL,
                stderr=log,
            )
        self._note(name, process.pid, None)

        def wait() -> None:
            self._note(name, process.pid, process.wait())

        waiting = threading.Thread(target=wait, name=f"wait-{name}", daemon=True)
        waiting.start()
        self._workers[name] = _RunningWorker(process, waiting)

    def send(self, name: str, number: signal.Signals) -> None:
        """Send a signal to a worker."""
        self._workers[name].process.send_signal(number)

    @property
    def pids(self) -> dict[str, int]:
        """The process id of each worker."""
        return {name: worker.process.pid for name, worker in list(self._workers.items())}

    def kill(self, name: str) -> None:
        """End a worker with ``kill -9``."""
        worker = self._workers.pop(name)
        worker.process.kill()
        worker.process.wait(20)
        worker.waiting.join()

    def end(self, name: str) -> int:
        """End a worker with SIGTERM and return its exit code.

        If the worker runs tests.chaos.worker and was just started, first wait until it handles SIGTERM.
        """
        if self._is_worker:
            eventually(lambda: self.has_ended(name) or self._count_listening(name) > self._listening_before[name])
        worker = self._workers[name]
        worker.process.terminate()
        self.codes.append(worker.process.wait(60))
        worker.waiting.join()
        del self._workers[name]
        return self.codes[-1]

    def has_ended(self, name: str) -> bool:
        """Return whether the worker ended by itself."""
        return self._workers[name].process.poll() is not None

    def revive(self) -> list[str]:
        """Restart the workers that ended by themselves, like a supervisor, and return their names."""
        ended = [name for name in self._workers if self.has_ended(name)]
        for name in ended:
            self.codes.append(self._workers[name].process.returncode)
            self.start(name)
        return ended

    def _count_listening(self, name: str) -> int:
        """Return how often workers of this name have logged that they handle signals."""
        return self.log.read_text(encoding="utf-8", errors="replace").count(f"{name}: listening\n")

    def close(self) -> None:
        """Kill the workers that still run."""
        for name in list(self._workers):
            self.kill(name)
        self.log.unlink(missing_ok=True)

    @property
    def names(self) -> list[str]:
        """The names of the workers that run or have ended by themselves."""
        return list(self._workers)

    @property
    def status(self) -> str:
        """Which workers run, and the exit codes of those that ended, as text for a failed test."""
        now = ", ".join(
            f"{name} {'runs' if (code := worker.process.poll()) is None else f'ended by itself with exit code {code}'}"
            for name, worker in self._workers.items()
        )
        return f"{now or 'no worker runs'}; earlier exit codes {self.codes}"


@frozen(kw_only=True)
class AnswerAccount:
    """The numbers of missing, duplicated and out-of-order answers to a test's messages.

    All numbers are zero if nothing is wrong.
    """

    missing: int
    duplicated: int
    out_of_order: int


def account(settings: Settings, messages: Sequence[DiscordMessage]) -> AnswerAccount:
    """Compare the committed records of bot-responses with the messages that were produced."""
    found = [
        (record.event.query_id, int(record.event.answer.split("|")[0]))
        for record in records(settings, open_contracts(settings), RESPONSES)
    ]
    counts = Counter(number for _, number in found)
    last: dict[str, int] = {}
    inversions = 0
    for channel, number in found:
        inversions += last.get(channel, -1) >= number
        last[channel] = max(number, last.get(channel, -1))
    return AnswerAccount(
        missing=len({int(message.message_id) for message in messages} - counts.keys()),
        duplicated=sum(count - 1 for count in counts.values()),
        out_of_order=inversions,
    )


NOTHING_WRONG = AnswerAccount(missing=0, duplicated=0, out_of_order=0)


def messages_for(settings: Settings, count: int, first: int = 0) -> list[DiscordMessage]:
    """Produce ``count`` messages in many channels and return them. ``first`` is the number of the first message."""
    messages = [build_message(number, channel=str(number % CHANNELS)) for number in range(first, first + count)]
    produce(settings, open_contracts(settings), MESSAGES, *messages)
    return messages


class Feed:
    """Sends records continuously, in its own thread, while it is entered as a context manager.

    So a test can wait for a state that only occurs while records are processed. ``send`` is called with the number of
    each record, counted from 0. ``count`` is how many records were sent. The feed sends at most 250 records a second,
    so that workers can keep up.
    """

    def __init__(self, settings: Settings, send: Callable[[EventProducer, int], None]) -> None:
        self._settings = settings
        self._send = send
        self._left = threading.Event()
        self._thread = threading.Thread(target=self._run, name="feed")
        self._errors: list[BaseException] = []
        self.count = 0

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._left.set()
        self._thread.join()
        if self._errors:
            raise self._errors[0]

    def _run(self) -> None:
        patient = evolve(self._settings, kafka_delivery_timeout_s=120.0)
        try:
            with EventProducer(patient, open_contracts(patient)) as producer:
                while not self._left.wait(0.02):
                    for _ in range(5):
                        self._send(producer, self.count)
                        self.count += 1
                producer.flush()
        except Exception as exc:  # raised in the test's thread by __exit__
            self._errors.append(exc)


@contextmanager
def messages_all_the_time(settings: Settings) -> Iterator[list[DiscordMessage]]:
    """Produce messages in many channels until the block ends. The yielded list contains the messages sent so far."""
    messages: list[DiscordMessage] = []

    def send(producer: EventProducer, number: int) -> None:
        messages.append(build_message(number, channel=str(number % CHANNELS)))
        producer.send(MESSAGES, messages[-1])

    with Feed(settings, send):
        yield messages

"""Records that end the process: found by what a process was handling when it died, and kept from ending it for ever.

A record may end the process before any except clause runs, and would do so again at every start. So threads write down
which records they handle, in a small file that is mapped into memory: a store is no system call, and the page cache
outlives the process (not the machine, which no record ends). What stands there after a death is suspected, and as long
as a suspect is unfinished in a partition of this process, the whole process handles one record at a time. Only a death
while a suspect alone was handled counts against it, so that an innocent record beside a deadly one is never blamed.
docs/dead-letters.md has the whole story, docs/decisions/0010-limits-and-deaths.md the reasons.
"""

from __future__ import annotations

import itertools
import json
import mmap
import threading
from collections.abc import Iterable
from pathlib import Path
from urllib.parse import quote

from rtfm.errors import PermanentError
from rtfm.settings import Settings
from rtfm.streams.position import PartitionState
from rtfm.telemetry import get_logger

FATAL_DEATHS = 3
"""Deaths of the process while a suspect alone was handled, after which it is a dead letter."""

FOLDER = "in-hand"

_RUNNING, _ENDED = b"R", b"E"
_SLOTS, _SLOT_BYTES = 256, 128
"""Threads that can write down what they handle, one more takes the last one's slot; bytes of a line."""

_SLOTS_END = 1 + _SLOTS * _SLOT_BYTES
_FREE = 0
_TURN_CHECK_S = 0.05

_MAX_SUSPECTS = 100_000
"""Offsets of one batch that are suspected; a batch has 500 records, but gaps lie between them."""

_log = get_logger(__name__)

_Suspect = tuple[str, int, int]
"""Group, partition, offset."""


class KilledProcess(PermanentError):
    """The record ended the process again and again, with nothing else being handled."""


class Quarantine:
    """What a pipeline asks and tells about records that may end the process. Groups are named without prefix.

    This one watches nothing and writes nothing: a record that ends the process ends it at every start.
    """

    is_active = False
    """Whether records are to be handled one by one, because some of them are suspected."""

    def begin(self, group: str, partition: int, first: int, last: int) -> bool:
        """This thread handles these records from now on; may wait for its turn. False: do not, the process ends."""
        return True

    def finish(self) -> None:
        """This thread handles nothing any more."""

    def deaths(self, group: str, partition: int, offset: int) -> int:
        """How often the process died while it handled nothing but this record."""
        return 0

    def blame(self, group: str, partition: int, first: int, last: int) -> bool:
        """Count an unforeseen error of a handler as a death; whether the record is to be given up now."""
        return False

    def review(self, group: str, partitions: Iterable[PartitionState]) -> None:
        """Suspect no longer what is finished; ``partitions`` are all that the group's pipeline has."""

    def note_shutdown(self) -> None:
        """From now on the process ends by itself: a death is no record's doing."""


class CrashJournal(Quarantine):
    """The quarantine of one process, for all of its pipelines. ``with CrashJournal(path) as quarantine: …``.

    The file holds whether the process runs, a line for each thread (group, partition, first and last offset), and the
    suspects of earlier runs.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._memory = mmap.mmap(-1, _SLOTS_END)
        self._local = threading.local()
        self._slots = itertools.chain(range(1, _SLOTS_END, _SLOT_BYTES), itertools.repeat(_SLOTS_END - _SLOT_BYTES))
        self._turn = threading.Lock()
        self._ended = False
        self._unfinished: dict[str, int] = {}
        """Suspects that each group's pipeline has still to handle."""
        self.suspects: dict[_Suspect, int] = {}
        """Deaths while the record alone was handled. Changed by single operations of dict only: threads share it."""

    @classmethod
    def of(cls, settings: Settings, name: str) -> CrashJournal:
        """The journal of the service ``name``, in RTFM_HOME; two processes must not have the same one."""
        file = f"{settings.kafka_topic_prefix}{name}@{settings.instance_id}"
        return cls(settings.home / FOLDER / quote(file, safe=""))

    def __enter__(self) -> CrashJournal:
        """Suspect what the last run died with, and begin a file of this run.

        Without a file, because the folder cannot be written, records are handled all the same.
        """
        self.suspects = _read_suspects(self._path)
        try:
            self._path.parent.mkdir(parents=True, exist_ok=True)
            self._memory = self._write(_RUNNING)
        except OSError as exc:
            _log.warning("deaths are not counted", path=str(self._path), reason=str(exc))
        if self.suspects:
            _log.warning("after a death, records are tried one by one", records=len(self.suspects))
        return self

    def __exit__(self, *_: object) -> None:
        self.note_shutdown()
        try:
            self._write(_ENDED).close()
        except OSError as exc:
            _log.warning("deaths are not counted", path=str(self._path), reason=str(exc))

    def begin(self, group: str, partition: int, first: int, last: int) -> bool:
        """Write down that this thread handles these records; while a suspect is unfinished, when its turn comes."""
        local = self._local
        try:
            slot: int = local.slot
        except AttributeError:
            local.slot = slot = next(self._slots)
        local.has_turn = self.is_active
        if local.has_turn:
            while not self._turn.acquire(timeout=_TURN_CHECK_S):
                if self._ended:
                    return False
            if self._ended:
                self._turn.release()
                return False
        line = b"%b %d %d %d\n" % (group.encode(), partition, first, last)
        self._memory[slot : slot + _SLOT_BYTES] = line.ljust(_SLOT_BYTES)
        return True

    def finish(self) -> None:
        """This thread handles nothing any more."""
        self._memory[self._local.slot] = _FREE
        if self._local.has_turn:
            self._turn.release()

    def deaths(self, group: str, partition: int, offset: int) -> int:
        """How often the process died while it handled nothing but this record."""
        return self.suspects.get((group, partition, offset), 0)

    def blame(self, group: str, partition: int, first: int, last: int) -> bool:
        """Count an error that nobody foresaw; of several records, which one is to be found out. True: give it up."""
        if first != last:
            for offset in range(first, min(last + 1, first + _MAX_SUSPECTS)):
                self.suspects.setdefault((group, partition, offset), 0)
            return False
        suspect = group, partition, first
        if self.deaths(*suspect) >= FATAL_DEATHS - 1:
            return True
        self.suspects[suspect] = self.suspects.get(suspect, -1) + 1
        return False

    def review(self, group: str, partitions: Iterable[PartitionState]) -> None:
        """Suspect no longer what is finished, here or by another process, and see whether that was all."""
        if not self.suspects:
            return
        by_number, unfinished = {partition.number: partition for partition in partitions}, 0
        for suspect, deaths in list(self.suspects.items()):
            owner, number, offset = suspect
            if owner != group or (partition := by_number.get(number)) is None:
                continue
            if not partition.is_finished(offset):
                unfinished += 1
            elif (
                deaths < FATAL_DEATHS or offset < partition.committed
            ):  # the process may die before a letter is committed
                self.suspects.pop(suspect, None)
        self._unfinished[group] = unfinished
        was_active, self.is_active = self.is_active, any(self._unfinished.values())
        if was_active and not self.is_active:
            _log.info("no record is tried alone any more")

    def note_shutdown(self) -> None:
        """From now on the process ends by itself: a death is no record's doing."""
        self._ended = True
        self._memory[:1] = _ENDED

    def _write(self, state: bytes) -> mmap.mmap:
        """Put a new file in the old one's place; to cut the old one short would end a process that has it mapped."""
        listed = json.dumps([[*suspect, deaths] for suspect, deaths in self.suspects.items()]).encode()
        new = self._path.with_name(self._path.name + ".new")
        with new.open("w+b") as file:
            # Written rather than extended: a full disk shows here, not at a store into memory.
            file.write(state.ljust(_SLOTS_END, b"\0") + listed)
            file.flush()
            memory = mmap.mmap(file.fileno(), _SLOTS_END)
        new.replace(self._path)
        return memory


def _read_suspects(path: Path) -> dict[_Suspect, int]:
    """Who is suspected after the run that left ``path``: of earlier deaths, and what it handled if it died."""
    try:
        data = path.read_bytes()
        listed = json.loads(data[_SLOTS_END:])
        known: dict[_Suspect, int] = {(str(g), int(p), int(offset)): int(deaths) for g, p, offset, deaths in listed}
    except (OSError, ValueError, TypeError):
        return {}
    if data[:1] != _RUNNING:
        return known
    lines = [data[start : start + _SLOT_BYTES] for start in range(1, _SLOTS_END, _SLOT_BYTES)]
    handled = [place for line in lines if (place := _parse_line(line)) is not None]
    suspects = dict(known)
    for group, partition, first, last in handled:
        for offset in range(first, min(last + 1, first + _MAX_SUSPECTS)):
            suspects.setdefault((group, partition, offset), 0)
    match handled:
        case [(group, partition, first, last)] if first == last and (group, partition, first) in known:
            suspects[group, partition, first] += 1
    return suspects


def _parse_line(line: bytes) -> tuple[str, int, int, int] | None:
    """Group, partition, first and last offset of a thread's line; None for one that was finished, or cut short."""
    text, end, _ = line.partition(b"\n")
    fields = text.decode("utf-8", "replace").rsplit(" ", 3)
    if line[0] == _FREE or not end or len(fields) != 4 or not all(field.isdecimal() for field in fields[1:]):
        return None
    return fields[0], int(fields[1]), int(fields[2]), int(fields[3])

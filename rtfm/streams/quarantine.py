"""Quarantine: finds records that kill the process, and stops them from killing it at every start.

Each thread notes the records that it handles in a small file, the crash journal. It is mapped into memory, so that a
note costs no system call, and it outlives the process (not the machine, which no record kills). Records that the
journal holds after a crash are suspects. While a partition of this process has an unfinished suspect, the whole process
handles one record at a time. Only a crash while a suspect was handled alone counts against it, so that an innocent
record next to a deadly one is never blamed. docs/dead-letters.md describes the behaviour,
docs/decisions/0010-limits-and-deaths.md gives the reasons.
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

FATAL_CRASHES = 3
"""Deaths of the process while a suspect was handled alone, after which the suspect becomes a dead letter."""

FOLDER = "in-hand"
"""The folder of the journals in RTFM_HOME."""

_RUNNING, _ENDED = b"R", b"E"
_SLOTS, _SLOT_BYTES = 256, 128
"""Threads with a slot of their own in the journal (any more share the last slot), and the bytes of a slot."""

_SLOTS_END = 1 + _SLOTS * _SLOT_BYTES
_FREE = 0
_TURN_CHECK_S = 0.05
"""How often a thread that waits for its turn checks whether the process is stopping."""

_MAX_SUSPECTS = 100_000
"""Offsets of one batch that become suspects; a batch has 500 records, but there are gaps between them."""

_log = get_logger(__name__)

_Suspect = tuple[str, int, int]
"""Group, partition, offset."""


class KilledProcess(PermanentError):
    """The record killed the process repeatedly while nothing else was handled."""


class Quarantine:
    """The interface of a quarantine, and one that does nothing. Groups are named without prefix.

    With this class, a record that kills the process kills it at every start.
    """

    is_active = False
    """Whether the process must handle one record at a time, because a suspect is unfinished."""

    def begin(self, group: str, partition: int, first: int, last: int) -> bool:
        """Note that this thread handles the records from offset ``first`` to ``last``; may wait for its turn.

        Return False if it must not handle them, because the process is stopping.
        """
        return True

    def finish(self) -> None:
        """Note that this thread no longer handles anything."""

    def count_crashes(self, group: str, partition: int, offset: int) -> int:
        """Return how often the process died while it handled only this record."""
        return 0

    def count_defect(self, group: str, partition: int, first: int, last: int) -> bool:
        """Count a defect of a handler as a death. Return whether the record must become a dead letter now."""
        return False

    def review(self, group: str, partitions: Iterable[PartitionState]) -> None:
        """Clear suspects that are finished. ``partitions`` are all partitions of the group's pipeline."""

    def note_shutdown(self) -> None:
        """Note that the process is stopping, so that its end is not blamed on a record."""


class CrashJournal(Quarantine):
    """The quarantine of one process, shared by its pipelines. ``with CrashJournal(path) as quarantine: …``.

    The file holds whether the process is running, a line for each thread (group, partition, first and last offset), and
    the suspects of earlier runs.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._memory = mmap.mmap(-1, _SLOTS_END)
        self._local = threading.local()
        self._slots = itertools.chain(range(1, _SLOTS_END, _SLOT_BYTES), itertools.repeat(_SLOTS_END - _SLOT_BYTES))
        self._turn = threading.Lock()
        self._is_stopping = False
        self._unfinished: dict[str, int] = {}
        """The number of unfinished suspects in the partitions of each group's pipeline."""
        self.suspects: dict[_Suspect, int] = {}
        """Deaths while each suspect was handled alone. Threads share it, so only single dict operations change it."""

    @classmethod
    def of(cls, settings: Settings, name: str) -> CrashJournal:
        """Return the journal of service ``name`` in RTFM_HOME. Two processes must not share one."""
        file = f"{settings.kafka_topic_prefix}{name}@{settings.instance_id}"
        return cls(settings.home / FOLDER / quote(file, safe=""))

    def __enter__(self) -> CrashJournal:
        """Read the suspects of the last run and start the journal of this one.

        If the folder cannot be written, records are handled without a journal.
        """
        self.suspects = _read_suspects(self._path)
        try:
            self._path.parent.mkdir(parents=True, exist_ok=True)
            self._memory = self._write(_RUNNING)
        except OSError as exc:
            _log.warning(
                "cannot write the crash journal, crashes are not counted", path=str(self._path), reason=str(exc)
            )
        if self.suspects:
            _log.warning("crashed before, suspected records are handled one at a time", records=len(self.suspects))
        return self

    def __exit__(self, *_: object) -> None:
        self.note_shutdown()
        try:
            self._write(_ENDED).close()
        except OSError as exc:
            _log.warning(
                "cannot write the crash journal, crashes are not counted", path=str(self._path), reason=str(exc)
            )

    def begin(self, group: str, partition: int, first: int, last: int) -> bool:
        """Note that this thread handles these records. Waits for its turn while a suspect is unfinished."""
        local = self._local
        try:
            slot: int = local.slot
        except AttributeError:
            local.slot = slot = next(self._slots)
        local.has_turn = self.is_active
        if local.has_turn:
            while not self._turn.acquire(timeout=_TURN_CHECK_S):
                if self._is_stopping:
                    return False
            if self._is_stopping:
                self._turn.release()
                return False
        line = b"%b %d %d %d\n" % (group.encode(), partition, first, last)
        self._memory[slot : slot + _SLOT_BYTES] = line.ljust(_SLOT_BYTES)
        return True

    def finish(self) -> None:
        """Note that this thread no longer handles anything, and pass the turn on."""
        self._memory[self._local.slot] = _FREE
        if self._local.has_turn:
            self._turn.release()

    def count_crashes(self, group: str, partition: int, offset: int) -> int:
        """Return how often the process died while it handled only this record."""
        return self.suspects.get((group, partition, offset), 0)

    def count_defect(self, group: str, partition: int, first: int, last: int) -> bool:
        """Count a defect of a handler as a death of its record; the records of a batch become suspects instead.

        Return whether the record must become a dead letter now.
        """
        if first != last:
            for offset in range(first, min(last + 1, first + _MAX_SUSPECTS)):
                self.suspects.setdefault((group, partition, offset), 0)
            return False
        suspect = group, partition, first
        if self.count_crashes(*suspect) >= FATAL_CRASHES - 1:
            return True
        self.suspects[suspect] = self.suspects.get(suspect, -1) + 1
        return False

    def review(self, group: str, partitions: Iterable[PartitionState]) -> None:
        """Clear suspects that this or another process finished, and update ``is_active``."""
        if not self.suspects:
            return
        by_number, unfinished = {partition.number: partition for partition in partitions}, 0
        for suspect, deaths in list(self.suspects.items()):
            owner, number, offset = suspect
            if owner != group or (partition := by_number.get(number)) is None:
                continue
            if not partition.is_finished(offset):
                unfinished += 1
            # A deadly record stays a suspect until its dead letter is committed, because the process may die before.
            elif deaths < FATAL_CRASHES or offset < partition.committed:
                self.suspects.pop(suspect, None)
        self._unfinished[group] = unfinished
        was_active, self.is_active = self.is_active, any(self._unfinished.values())
        if was_active and not self.is_active:
            _log.info("suspected records are finished, handling records concurrently again")

    def note_shutdown(self) -> None:
        """Note that the process is stopping, so that its end is not blamed on a record."""
        self._is_stopping = True
        self._memory[:1] = _ENDED

    def _write(self, state: bytes) -> mmap.mmap:
        """Replace the file and map the new one: truncating the old one would kill a process that has it mapped."""
        listed = json.dumps([[*suspect, deaths] for suspect, deaths in self.suspects.items()]).encode()
        new = self._path.with_name(self._path.name + ".new")
        with new.open("w+b") as file:
            # Written in full, so that a full disk fails here and not at a store into memory.
            file.write(state.ljust(_SLOTS_END, b"\0") + listed)
            file.flush()
            memory = mmap.mmap(file.fileno(), _SLOTS_END)
        new.replace(self._path)
        return memory


def _read_suspects(path: Path) -> dict[_Suspect, int]:
    """Return the suspects after the run that wrote ``path``: earlier ones, and what it was handling if it crashed."""
    try:
        data = path.read_bytes()
        listed = json.loads(data[_SLOTS_END:])
        known: dict[_Suspect, int] = {(str(g), int(p), int(offset)): int(deaths) for g, p, offset, deaths in listed}
    except (OSError, ValueError, TypeError):
        return {}
    if data[:1] != _RUNNING:
        return known
    lines = [data[start : start + _SLOT_BYTES] for start in range(1, _SLOTS_END, _SLOT_BYTES)]
    handled = [parsed for line in lines if (parsed := _parse_line(line)) is not None]
    suspects = dict(known)
    for group, partition, first, last in handled:
        for offset in range(first, min(last + 1, first + _MAX_SUSPECTS)):
            suspects.setdefault((group, partition, offset), 0)
    match handled:
        case [(group, partition, first, last)] if first == last and (group, partition, first) in known:
            suspects[group, partition, first] += 1
    return suspects


def _parse_line(line: bytes) -> tuple[str, int, int, int] | None:
    """Return group, partition, first and last offset of a thread's line, or None if it is free or incomplete."""
    text, end, _ = line.partition(b"\n")
    fields = text.decode("utf-8", "replace").rsplit(" ", 3)
    if line[0] == _FREE or not end or len(fields) != 4 or not all(field.isdecimal() for field in fields[1:]):
        return None
    return fields[0], int(fields[1]), int(fields[2]), int(fields[3])

"""Quarantine: finds records that crash the process, so that they do not crash the process at every start.

Each thread notes in a small file, the crash journal, which records it is handling. The file is mapped into memory, so a
note costs no system call. The notes survive a crash of the process, but perhaps not a crash of the machine.

After a crash, the records that were being handled are suspects. While a suspect in a partition of this process is
unfinished, the whole process handles one record at a time. A crash counts against a suspect only if no other record was
being handled. So if a record crashes the process, no other record becomes a dead letter because of that. After three
counted crashes the suspect becomes a dead letter and is not handled again. Defects of a handler are counted in the same
way.

docs/dead-letters.md describes the quarantine for operators. docs/decisions/0010-limits-and-deaths.md gives the reasons.
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
"""A suspect becomes a dead letter after this many crashes in which no other record was being handled."""

FOLDER = "crash-journals"
"""The folder of the journals in RTFM_HOME."""

_RUNNING, _ENDED = b"R", b"E"
"""The first byte of the journal: R while the process runs, and E after its end. After a crash the byte is still R."""

_SLOTS, _SLOT_BYTES = 256, 128
"""The number of slots in the journal, and the size of a slot in bytes.

Each thread has a slot of its own. If there are more threads than slots, the surplus threads share the last slot.
"""

_SLOTS_END = 1 + _SLOTS * _SLOT_BYTES
_FREE = 0
_TURN_CHECK_S = 0.05
"""A thread that waits for its turn checks at this interval whether the process is stopping."""

_MAX_SUSPECTS = 100_000
"""At most this many offsets of one batch become suspects.

The journal notes only the first and the last offset of a batch. A batch of ingest has at most 500 records, but far more
offsets may lie between its first and last one, because an offset need not have a record.
"""

_log = get_logger(__name__)

_Suspect = tuple[str, int, int]
"""A record, by group, partition and offset."""


class KilledProcess(PermanentError):
    """The record repeatedly crashed the process or met a defect, while no other record was being handled."""


class Quarantine:
    """The interface of a quarantine. This class itself does nothing, so no crash is counted.

    Groups are named without prefix.
    """

    is_active = False
    """Whether the process must handle one record at a time, because a suspect is unfinished."""

    def begin(self, group: str, partition: int, first: int, last: int) -> bool:
        """Note that this thread is handling the records from offset ``first`` to ``last``.

        If ``is_active`` is true, the thread first waits for its turn, so that only one thread at a time handles
        records. Return False if the records must not be handled, because the process is stopping.
        """
        return True

    def finish(self) -> None:
        """Note that this thread no longer handles anything."""

    def count_crashes(self, group: str, partition: int, offset: int) -> int:
        """Return how many crashes and defects are counted against this record."""
        return 0

    def count_defect(self, group: str, partition: int, first: int, last: int) -> bool:
        """Count a defect of a handler, like a crash. Return whether the record must become a dead letter now."""
        return False

    def review(self, group: str, partitions: Iterable[PartitionState]) -> None:
        """Clear finished suspects. ``partitions`` are all partitions that this process is assigned in ``group``."""

    def note_shutdown(self) -> None:
        """Note that the process is stopping, so that its end is not blamed on a record."""


class CrashJournal(Quarantine):
    """The quarantine of one process, which its pipelines share. Use as ``with CrashJournal(path) as quarantine: …``.

    The file says whether the process is running. It also contains a slot for each thread, and the suspects of earlier
    runs. A slot contains a line with the group, the partition and the first and last offset that its thread is
    handling.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._memory = mmap.mmap(-1, _SLOTS_END)
        self._local = threading.local()
        self._slots = itertools.chain(range(1, _SLOTS_END, _SLOT_BYTES), itertools.repeat(_SLOTS_END - _SLOT_BYTES))
        self._turn = threading.Lock()
        self._is_stopping = False
        self._unfinished: dict[str, int] = {}
        """By group, the number of unfinished suspects in the partitions that are assigned to its pipeline."""
        self.suspects: dict[_Suspect, int] = {}
        """For each suspect, the number of crashes and defects that count against it.

        Several threads use this dict, so each change of the dict is a single operation, which is atomic.
        """

    @classmethod
    def of(cls, settings: Settings, name: str) -> CrashJournal:
        """Return the journal of service ``name`` in RTFM_HOME. Two processes must not share a journal."""
        file = f"{settings.kafka_topic_prefix}{name}@{settings.instance_id}"
        return cls(settings.home / FOLDER / quote(file, safe=""))

    def __enter__(self) -> CrashJournal:
        """Read the suspects from the journal of the last run, and start the journal of this run.

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
        """Note that this thread is handling these records, if necessary after waiting for its turn."""
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
        """Note that this thread no longer handles anything, and let the next thread have its turn."""
        self._memory[self._local.slot] = _FREE
        if self._local.has_turn:
            self._turn.release()

    def count_crashes(self, group: str, partition: int, offset: int) -> int:
        """Return how many crashes and defects are counted against this record."""
        return self.suspects.get((group, partition, offset), 0)

    def count_defect(self, group: str, partition: int, first: int, last: int) -> bool:
        """Count a defect of a handler, like a crash, and return whether the record must become a dead letter now.

        The first defect or crash makes the record a suspect and does not count. If the handler got several records, all
        of them become suspects and nothing is counted, because any of them may be the cause.
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
        """Clear suspects that this or another process has finished, and update ``is_active``."""
        if not self.suspects:
            return
        by_number, unfinished = {partition.number: partition for partition in partitions}, 0
        for suspect, crashes in list(self.suspects.items()):
            owner, number, offset = suspect
            if owner != group or (partition := by_number.get(number)) is None:
                continue
            if not partition.is_finished(offset):
                unfinished += 1
            # A record with too many crashes stays a suspect until its dead letter is committed. The process may end
            # before that commit. If the record were not a suspect then, the next run would handle the record again.
            elif crashes < FATAL_CRASHES or offset < partition.committed:
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
        """Replace the file, and return the new file mapped into memory.

        The old file is not truncated, because truncating a file crashes a process that has the file mapped.
        """
        listed = json.dumps([[*suspect, crashes] for suspect, crashes in self.suspects.items()]).encode()
        new = self._path.with_name(self._path.name + ".new")
        with new.open("w+b") as file:
            # The whole file is written, so that a full disk raises OSError here instead of crashing the process later.
            file.write(state.ljust(_SLOTS_END, b"\0") + listed)
            file.flush()
            memory = mmap.mmap(file.fileno(), _SLOTS_END)
        new.replace(self._path)
        return memory


def _read_suspects(path: Path) -> dict[_Suspect, int]:
    """Return the suspects in the journal ``path``. If the last run crashed, add the records that it was handling."""
    try:
        data = path.read_bytes()
        listed = json.loads(data[_SLOTS_END:])
        known: dict[_Suspect, int] = {(str(g), int(p), int(offset)): int(crashes) for g, p, offset, crashes in listed}
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
    """Return group, partition, first and last offset from a slot, or None if the slot is free or incomplete."""
    text, end, _ = line.partition(b"\n")
    fields = text.decode("utf-8", "replace").rsplit(" ", 3)
    if line[0] == _FREE or not end or len(fields) != 4 or not all(field.isdecimal() for field in fields[1:]):
        return None
    return fields[0], int(fields[1]), int(fields[2]), int(fields[3])

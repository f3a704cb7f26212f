"""Records in hand: which ones a process had when it died, and which of them killed it.

A record that ends the process, before any except clause runs or by a defect in its handler, would end it again at every
start. So the pool writes down
what it has in hand, in one small file per group and instance in RTFM_HOME, mapped into memory: a store costs no system
call, and the page cache outlives the process (not the machine, which is no death of a record's making). After a death
that nobody asked for, what stands there is suspected and tried alone, with nothing else in hand in the whole process.
Only deaths while it is alone count against a record. Promises that an innocent record beside a deadly one is never
blamed; does not tell a deadly record from somebody who kills the process three times while the same record is alone in
hand. docs/dead-letters.md has the whole story.
"""

from __future__ import annotations

import json
import mmap
import secrets
import struct
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any
from urllib.parse import quote

from attrs import define, field

from rtfm.errors import PermanentError
from rtfm.settings import Settings
from rtfm.streams.connection import group_name
from rtfm.streams.position import PartitionState
from rtfm.telemetry import get_logger

FATAL_DEATHS = 3
"""Deaths while alone after which a record is a dead letter."""

QUARANTINE_S = 1.0
"""How long suspects are tried alone after a first death; four times as long after each that follows from it."""

LONGEST_QUARANTINE_S = 3600.0

FOLDER = "in-hand"

# Whether it runs, and which run it is; then a slot for each thread: partition, first and last offset of what it holds,
# and how, which is written last: a slot that was begun and not finished holds nothing.
_HEADER = struct.Struct("<4sB8s")
_SLOT = struct.Struct("<iqqB")
_KIND = _SLOT.size - 1
_FORM = b"RTF1"
_ENDED, _RUNS = 0, 1
_NOTHING, _HELD, _ALONE, _BLAMED = 0, 1, 2, 4

_MAX_SPAN = 100_000
"""Offsets of one batch that are suspected; a batch has 500 records, but gaps lie between them."""

_POLL_S = 0.001

_log = get_logger(__name__)


class KilledProcess(PermanentError):
    """The record ended the process again and again, with nothing else in hand."""


@define
class _SlotState:
    """One thread's place in the file, and what it has there."""

    start: int
    held: tuple[int, int, int] = (0, 0, 0)
    alone: bool = False
    blamed: bool = False


@define
class _ProcessState:
    """Who may work in this process: everybody, or one record alone. A death is of the whole process, so is this."""

    everybody: threading.Event = field(factory=threading.Event)
    alone: threading.Lock = field(factory=threading.Lock)
    hands: list[InHand] = field(factory=list)
    holder: Callable[[], None] | None = None
    """Lets everybody in again if the time of who is alone is over."""
    changing: threading.Lock = field(factory=threading.Lock)

    def let_in_if_over(self) -> None:
        """For those who wait."""
        if (holder := self.holder) is not None:
            holder()


_PROCESS = _ProcessState()
_PROCESS.everybody.set()


class InHand:
    """What the pool of one pipeline has in hand; ``take``, ``release`` and ``laid_aside`` are for its threads."""

    def __init__(
        self,
        settings: Settings,
        *,
        group: str,
        threads: int,
        stop: threading.Event,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        name = f"{quote(group_name(settings, group), safe='')}@{quote(settings.instance_id, safe='')}"
        self._path = settings.home / FOLDER / name
        self._size = _HEADER.size + _SLOT.size * threads
        self._threads = threads
        self._stop = stop
        self._clock = clock
        self.quarantine_s = 0.0
        """How long this run tries suspects alone."""
        self._until_s: float | None = None
        self._memory: mmap.mmap = mmap.mmap(-1, self._size)
        self._slots = threading.local()
        self._broken = False
        self._free = list(range(threads))
        self.suspects: dict[tuple[int, int], int] = {}
        """(partition, offset) → deaths while alone, of records that are to be tried alone."""

    def open(self) -> None:
        """See what a run that died had in hand, and begin to write down this one's.

        Without a file, because the folder cannot be written, records are handled all the same.
        """
        try:
            self._path.parent.mkdir(parents=True, exist_ok=True)
            self._suspect_from_last_run()
            # A new file in the old one's place: to cut the old one short would end who still has it mapped.
            new = self._path.with_name(self._path.name + ".new")
            with new.open("w+b") as file:
                # Written rather than extended: a full disk shows here, not at a store into memory.
                file.write(_HEADER.pack(_FORM, _RUNS, secrets.token_bytes(8)).ljust(self._size, b"\0"))
                file.flush()
                memory = mmap.mmap(file.fileno(), self._size)
            new.replace(self._path)
            self._memory = memory
        except OSError as exc:
            _log.warning("deaths are not counted", path=str(self._path), reason=str(exc))
        if self.suspects:
            _log.warning("after a death, records are tried alone", records=len(self.suspects), for_s=self.quarantine_s)
        _PROCESS.hands.append(self)

    def ending(self) -> None:
        """From now on an end is no record's doing: the service was asked to stop, or ends by itself."""
        _HEADER.pack_into(self._memory, 0, _FORM, _ENDED, self._memory[_HEADER.size - 8 : _HEADER.size])

    def close(self) -> None:
        """Stop writing down."""
        self.ending()
        if self in _PROCESS.hands:
            _PROCESS.hands.remove(self)

    def assigned(self, part: PartitionState) -> None:
        """Suspect no longer what somebody has finished meanwhile."""
        self._absolve(lambda number, offset: number == part.number and part.is_finished(offset))

    def together(self, partition: int, offsets: Sequence[int]) -> int:
        """How many records of ``offsets``, from the first, may be handled as one batch."""
        if not self.suspects:
            return len(offsets)
        suspected = [place for place, offset in enumerate(offsets) if (partition, offset) in self.suspects]
        return len(offsets) if not suspected else max(1, suspected[0])

    def deaths(self, partition: int, offset: int) -> int:
        """How often the process died with this record alone in hand."""
        return self.suspects.get((partition, offset), 0)

    def take(self, partition: int, first: int, last: int) -> bool:
        """Write down that this thread has these records in hand; waits while another record is to be alone.

        A suspect waits until it is alone. False when the service stops meanwhile, or ends by a defect.
        """
        if self._broken:
            return False
        slot = self._slot()
        slot.held = (partition, first, last)
        if self.suspects and self.suspects.get((partition, first), FATAL_DEATHS) < FATAL_DEATHS:
            return self._take_alone(slot, partition, first)
        while True:
            _SLOT.pack_into(self._memory, slot.start, partition, first, last, _HELD)
            # Seen after the slot is written: whoever wants to be alone sees the slot, or is seen here.
            if _PROCESS.everybody.is_set():
                return True
            self._memory[slot.start + _KIND] = _NOTHING
            if self._stop.is_set():
                return False
            _PROCESS.everybody.wait(0.05)
            _PROCESS.let_in_if_over()

    def is_last_try(self, partition: int, offset: int) -> bool:
        """Whether a failure of this record now is one too many."""
        return self.suspects.get((partition, offset)) == FATAL_DEATHS - 1

    def blame(self) -> None:
        """What this thread has in hand ends the service by a defect: as good as a death, and nobody else's doing."""
        slot = self._slot()
        slot.blamed = self._broken = True
        self._memory[slot.start + _KIND] |= _BLAMED

    def release(self) -> None:
        """This thread has nothing in hand any more: whatever it had did not kill the process."""
        slot = self._slot()
        if not (slot.alone or slot.blamed or self.suspects):  # as nearly always
            self._memory[slot.start + _KIND] = _NOTHING
            return
        self._put_down(slot)
        if self.suspects and not slot.blamed:
            partition, first, last = slot.held
            # A record that is a dead letter now stays on the list, for this may die before that is committed.
            if first == last and self.deaths(partition, first) < FATAL_DEATHS:
                self._absolve(lambda number, offset: (number, offset) == (partition, first))

    @contextmanager
    def laid_aside(self) -> Iterator[None]:
        """While a thread waits for what is down: what it has is not in hand, and others need not wait for it."""
        slot = self._slot()
        self._put_down(slot)
        yield
        self.take(*slot.held)

    def _slot(self) -> _SlotState:
        """This thread's own."""
        try:
            return self._slots.state  # type: ignore[no-any-return]  # a thread's attributes have no types
        except AttributeError:
            self._slots.state = _SlotState(_HEADER.size + _SLOT.size * self._free.pop())
            return self._slots.state  # type: ignore[no-any-return]

    def _take_alone(self, slot: _SlotState, partition: int, offset: int) -> bool:
        if self._until_s is None:
            self._until_s = self._clock() + self.quarantine_s
        while not _PROCESS.alone.acquire(timeout=0.05):
            _PROCESS.let_in_if_over()
            if self._stop.is_set():
                return False
            if self._is_over():
                return self._take_as_others(partition, offset)
        _PROCESS.everybody.clear()
        slot.alone = True
        while any(hand.is_busy() for hand in list(_PROCESS.hands)):
            if self._stop.wait(_POLL_S):
                self._put_down(slot)
                return False
            if self._is_over():
                self._put_down(slot)
                return self._take_as_others(partition, offset)
        _log.info("tried alone", partition=partition, offset=offset, deaths=self.deaths(partition, offset))
        with _PROCESS.changing:
            _SLOT.pack_into(self._memory, slot.start, partition, offset, offset, _ALONE)
            _PROCESS.holder = partial(self._let_in_if_over, slot)
        return True

    def _is_over(self) -> bool:
        return self._until_s is not None and self._clock() >= self._until_s

    def _take_as_others(self, partition: int, offset: int) -> bool:
        """End the quarantine: nothing is suspected for the rest of this run, but the list stays for the next."""
        kept = {key: deaths for key, deaths in self.suspects.items() if deaths >= FATAL_DEATHS}
        _log.info("no more are tried alone", left=len(self.suspects) - len(kept))
        self.suspects = kept
        return self.take(partition, offset, offset)

    def _let_in_if_over(self, slot: _SlotState) -> None:
        if not self._is_over():
            return
        with _PROCESS.changing:
            if slot.alone:  # it goes on, beside others
                self._memory[slot.start + _KIND] = _HELD
                self._let_in(slot)

    def _let_in(self, slot: _SlotState) -> None:
        slot.alone, _PROCESS.holder = False, None
        _PROCESS.everybody.set()
        _PROCESS.alone.release()

    def _put_down(self, slot: _SlotState) -> None:
        if not slot.alone:
            if not slot.blamed:
                self._memory[slot.start + _KIND] = _NOTHING
            return
        with _PROCESS.changing:
            if not slot.blamed:
                self._memory[slot.start + _KIND] = _NOTHING
            if slot.alone:
                self._let_in(slot)

    def is_busy(self) -> bool:
        """Whether a thread has something in hand."""
        return any(kind and not kind & _BLAMED for kind in self._memory[_HEADER.size + _KIND : self._size : _SLOT.size])

    def _absolve(self, innocent: Callable[[int, int], bool]) -> None:
        kept = {key: deaths for key, deaths in self.suspects.items() if not innocent(*key)}
        if len(kept) < len(self.suspects):
            self.suspects = kept
            if not kept:
                self._suspects_path.unlink(missing_ok=True)
                _log.info("no record is suspected any more")

    # Between runs. The suspects' file says which run it has counted, so that a death is counted once.

    @property
    def _suspects_path(self) -> Path:
        return self._path.with_name(self._path.name + ".suspects.json")

    def _suspect_from_last_run(self) -> None:
        counted, deaths_before = "", 0
        try:
            known = json.loads(self._suspects_path.read_text(encoding="utf-8"))
            counted, deaths_before = known["counted"], int(known["deaths"])
            self.suspects = {(number, offset): deaths for number, offset, deaths in known["suspects"]}
        except (OSError, ValueError, KeyError, TypeError):
            self.suspects = {}
        run, held = _last_run(self._path)
        if held and run != counted:
            known_before = set(self.suspects)
            for partition, first, last, kind in held:
                for offset in range(first, min(last + 1, first + _MAX_SPAN)):
                    self.suspects[partition, offset] = self.deaths(partition, offset) + bool(kind & _ALONE)
            # A death with none of the old suspects in hand is another story.
            follows = any((partition, first) in known_before for partition, first, *_ in held)
            deaths_before = deaths_before + 1 if follows else 1
            listed = [[*key, deaths] for key, deaths in self.suspects.items()]
            content = {"counted": run, "deaths": deaths_before, "suspects": listed}
            new = self._suspects_path.with_name(self._suspects_path.name + ".new")
            new.write_text(json.dumps(content), encoding="utf-8")
            new.replace(self._suspects_path)
        self.quarantine_s = min(LONGEST_QUARANTINE_S, QUARANTINE_S * 4.0 ** min(max(0, deaths_before - 1), 9))


def _last_run(path: Path) -> tuple[str, list[tuple[Any, ...]]]:
    """(name of the run, what it had in hand when it died); nothing when it ended in order or there was none."""
    try:
        data = path.read_bytes()
        form, state, run = _HEADER.unpack_from(data)
    except (OSError, struct.error):
        return "", []
    if form != _FORM:
        return "", []
    starts = range(_HEADER.size, len(data) - _SLOT.size + 1, _SLOT.size)
    slots = [_SLOT.unpack_from(data, start) for start in starts]
    # A run that ended in order blames only what broke it.
    wanted = _HELD | _ALONE if state == _RUNS else _BLAMED
    return run.hex(), [slot for slot in slots if slot[-1] & wanted]

"""Measures the resources that a run's processes and folders use, and how fast this use grows."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Iterable, Sequence
from contextlib import suppress
from pathlib import Path

import psutil
from attrs import asdict, frozen

from rtfm.settings import LOCAL_STACK_FILE
from tests.chaos.run import Scene

PERIOD_S = 5.0
DISK_PERIOD_S = 30.0
"""Disk space is measured once in this many seconds, less often than the rest, because its measurement takes longer."""

WARM_UP_S = 300.0
"""The growth of a process is measured after its first WARM_UP_S, or after a quarter of its life if that is shorter."""

LEAST_SAMPLES = 5
"""If a process has fewer samples than this after its warm-up, its growth is not reported."""


@frozen(kw_only=True)
class Use:
    """The resources that a process and its children use.

    ``memory_mb`` is resident memory. The memory that a child shares with other processes does not count. ``handles``
    is the number of open file handles.
    """

    pid: int
    memory_mb: float
    threads: int
    handles: int


@frozen(kw_only=True)
class Sample:
    """One measurement of a run.

    The dictionaries map the name of a process, topic or folder to its value.
    """

    at_s: float
    """Seconds since the first sample."""
    processes: dict[str, Use]
    lag: dict[str, int]
    disk_mb: dict[str, float]
    load_average: float
    share: float
    """The average share of the load's full rates so far."""


@frozen(kw_only=True)
class Growth:
    """The growth of one process per hour, without its warm-up.

    If the process was restarted, only its longest life without a restart counts.
    """

    lived_s: float
    memory_mb: float
    """The memory at the end of that life."""
    memory_mb_per_h: float
    threads_per_h: float
    handles_per_h: float


class Sampler:
    """Measures the processes and folders of a run, and keeps the samples."""

    def __init__(self, scene: Scene) -> None:
        self._scene = scene
        self._started_s = time.monotonic()
        self._disk_at_s = float("-inf")
        self._disk_mb: dict[str, float] = {}
        self.samples: list[Sample] = []

    def sample(self) -> None:
        """Take one sample and write it to the history."""
        now_s = time.monotonic()
        if now_s - self._disk_at_s >= DISK_PERIOD_S:
            self._disk_at_s = now_s
            folders = sorted((self._scene.home / "data").iterdir())
            self._disk_mb = {folder.name: folder_mb(folder) for folder in folders}
        pids = self._scene.fleet.pids | self._services()
        readings = dict(self._scene.pace.readings)
        sample = Sample(
            at_s=round(now_s - self._started_s, 1),
            processes={name: use for name, pid in pids.items() if (use := used_by(pid)) is not None},
            lag={topic: max(0, reading.produced - reading.committed) for topic, reading in readings.items()},
            disk_mb=self._disk_mb,
            load_average=os.getloadavg()[0],
            share=round(self._scene.pace.share, 2),
        )
        self.samples.append(sample)
        self._scene.history.write("sample", **asdict(sample))

    def _services(self) -> dict[str, int]:
        # LocalStack.status() is not used, because it sends a request to each dependency.
        noted = json.loads((self._scene.home / LOCAL_STACK_FILE).read_text(encoding="utf-8"))["services"]
        return {name: entry["pid"] for name, entry in noted.items() if "pid" in entry}


def used_by(pid: int) -> Use | None:
    """Return what process ``pid`` and its children use now, or None if the process has ended."""
    try:
        process = psutil.Process(pid)
        with process.oneshot():
            if process.status() == psutil.STATUS_ZOMBIE:
                return None
            memory, threads, handles = process.memory_info().rss, process.num_threads(), process.num_fds()
        children = process.children(recursive=True)
    except psutil.Error:
        return None
    for child in children:
        with suppress(psutil.Error), child.oneshot():
            held = child.memory_info()
            memory += held.rss - getattr(held, "shared", 0)
            threads += child.num_threads()
            handles += child.num_fds()
    return Use(pid=pid, memory_mb=round(memory / 1e6, 1), threads=threads, handles=handles)


def folder_mb(folder: Path) -> float:
    """Return the disk space of the files below ``folder`` in MB. Files that are removed meanwhile are ignored."""
    blocks = 0
    for path, _, names in os.walk(folder):
        for name in names:
            with suppress(OSError):
                blocks += os.stat(os.path.join(path, name)).st_blocks  # noqa: PTH116, PTH118 - there are thousands
    return round(blocks * 512 / 1e6, 1)


def slope_per_h(points: Iterable[tuple[float, float]]) -> float:
    """Return how much a value grows per hour, by least squares. ``points`` are pairs (seconds, value)."""
    found = list(points)
    mean_s = sum(at_s for at_s, _ in found) / len(found)
    mean = sum(value for _, value in found) / len(found)
    spread = sum((at_s - mean_s) ** 2 for at_s, _ in found)
    return 3600 * sum((at_s - mean_s) * (value - mean) for at_s, value in found) / spread if spread else 0.0


def growth(samples: Sequence[Sample]) -> dict[str, Growth]:
    """Return the growth of each process by name. Processes with too few samples after their warm-up are left out."""
    lives: dict[str, dict[int, list[tuple[float, Use]]]] = {}
    for sample in samples:
        for name, use in sample.processes.items():
            lives.setdefault(name, {}).setdefault(use.pid, []).append((sample.at_s, use))
    found = {}
    for name, by_pid in lives.items():
        life = max(by_pid.values(), key=lambda uses: uses[-1][0] - uses[0][0])
        lived_s = life[-1][0] - life[0][0]
        warm = [(at_s, use) for at_s, use in life if at_s - life[0][0] >= min(WARM_UP_S, lived_s / 4)]
        if len(warm) >= LEAST_SAMPLES:
            found[name] = Growth(
                lived_s=round(lived_s, 1),
                memory_mb=warm[-1][1].memory_mb,
                memory_mb_per_h=round(slope_per_h((at_s, use.memory_mb) for at_s, use in warm), 1),
                threads_per_h=round(slope_per_h((at_s, use.threads) for at_s, use in warm), 1),
                handles_per_h=round(slope_per_h((at_s, use.handles) for at_s, use in warm), 1),
            )
    return found

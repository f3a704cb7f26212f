"""Shows the progress of long work on stderr, so that results can be piped."""

from __future__ import annotations

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeRemainingColumn
from rich.progress import Progress as Bar

from rtfm_cli.printing import echo


class Progress:
    """Shows a progress bar on a terminal, and elsewhere a plain line now and then. Shows nothing if ``quiet``."""

    def __init__(self, what: str, total: int, quiet: bool) -> None:
        console = Console(stderr=True)
        self._what, self._total, self._done, self._shown = what, total, 0, 0
        self._plain = not console.is_terminal and not quiet
        self._bar = Bar(
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TimeRemainingColumn(),
            console=console,
            transient=True,
            disable=quiet or not console.is_terminal,
        )
        self._task = self._bar.add_task(what, total=total)

    def advance(self, count: int) -> None:
        """Add ``count`` to the number of finished items."""
        self._done += count
        self._bar.advance(self._task, count)
        if self._plain and self._done < self._total and self._done - self._shown >= max(self._total // 5, 1000):
            self._shown = self._done
            echo(f"{self._what}: {self._done} of {self._total}", err=True)

    def __enter__(self) -> Progress:
        self._bar.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._bar.stop()

    def reach(self, what: str, done: int, total: int) -> None:
        """Show that ``done`` of ``total`` items are finished, with the label ``what``."""
        if what != self._what or total != self._total:
            self._what, self._total = what, total
            self._bar.update(self._task, description=what, total=total)
        self.advance(done - self._done)

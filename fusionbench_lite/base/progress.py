"""Progress of long work: a bar on a terminal, a plain line now and then elsewhere."""

from __future__ import annotations

import sys
import time
from types import TracebackType
from typing import TYPE_CHECKING, TextIO

if TYPE_CHECKING:
    import rich.progress

SECONDS_BETWEEN_LINES = 15.0


class Progress:
    """A context manager that is called as `progress(description, done, total)`.

    Each description is one piece of work. On a terminal it is a bar that stays while the work lasts; elsewhere a line
    is printed when the work starts to take time, every quarter of a minute, and when it is done.
    """

    def __init__(self, stream: TextIO | None = None) -> None:
        self._stream = stream or sys.stderr
        self._bars: rich.progress.Progress | None = None
        self._ids: dict[str, rich.progress.TaskID] = {}
        self._started: dict[str, float] = {}
        self._printed: dict[str, float] = {}

    def __enter__(self) -> Progress:
        if self._stream.isatty():
            import rich.console
            import rich.progress

            self._bars = rich.progress.Progress(
                rich.progress.TextColumn("{task.description}", markup=False), rich.progress.BarColumn(),
                rich.progress.MofNCompleteColumn(), rich.progress.TimeRemainingColumn(),
                console=rich.console.Console(file=self._stream), transient=True,
            )
            self._bars.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._bars is not None:
            self._bars.stop()
            self._bars = None

    def __call__(self, description: str, done: int, total: int) -> None:
        """Say that `done` of `total` parts of the work are finished."""
        if self._bars is not None:
            self._show_bar(description, done, total)
        else:
            self._print_line(description, done, total)

    def _show_bar(self, description: str, done: int, total: int) -> None:
        bars = self._bars
        if bars is None:
            return
        if description not in self._ids:
            self._ids[description] = bars.add_task(description, total=total)
        bars.update(self._ids[description], completed=done, total=total)
        if done >= total:
            bars.remove_task(self._ids.pop(description))

    def _print_line(self, description: str, done: int, total: int) -> None:
        now = time.monotonic()
        started = self._started.setdefault(description, now)
        printed = self._printed.setdefault(description, now)
        finished = done >= total
        if now - printed >= SECONDS_BETWEEN_LINES or (finished and now - started >= SECONDS_BETWEEN_LINES):
            print(f"{description}: {done}/{total}, {now - started:.0f} s", file=self._stream, flush=True)
            self._printed[description] = now
        if finished:
            self._started.pop(description, None)
            self._printed.pop(description, None)

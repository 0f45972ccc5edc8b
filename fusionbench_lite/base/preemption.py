"""A job that its cluster takes away: USR2 has the work saved first, and then lets the launcher queue the job again.

submitit answers USR2 in whatever line the process is: it queues the job again and leaves by SystemExit, or raises an error where
the job has run into its time limit too often. Inside a step that would lose what was done since the last checkpoint, and an
`except Exception` around that line would take the error for one of its own. Here the answer waits for the end of what is `held`,
where a loop has stored its checkpoint, and what it raises is no Exception until it has left the run.
"""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any

PATIENCE = 60.0
"""Seconds that a signal waits at most: a partition may grant little more before it kills."""


class Abandoned(BaseException):
    """The launcher does not queue the job again; `error` is what it says. No `except Exception` on the way takes it for a flaw."""

    def __init__(self, error: Exception) -> None:
        super().__init__(str(error))
        self.error = error


_answer: Callable[[int, FrameType | None], Any] | None = None
"""The launcher's own handler."""
_patience = PATIENCE
_depth = 0
_waiting: tuple[int, FrameType | None] | None = None


def install(delay: float | None = None) -> bool:
    """Put the handler before the launcher's own; returns whether there is one. Without a launcher the signal stays as it was.

    `delay`: seconds between the signal and the end of the job, of which half is waited at most.
    """
    global _answer, _patience
    number = getattr(signal, f"SIG{os.environ.get('SUBMITIT_PREEMPT_SIGNAL', 'USR2')}", None)
    if number is None or threading.current_thread() is not threading.main_thread():
        return False
    before = signal.getsignal(number)
    if not callable(before):
        return False
    _patience = PATIENCE if delay is None else min(PATIENCE, delay / 2)
    if before is not _handle:
        _answer = before
        signal.signal(number, _handle)
    return True


@contextmanager
def held() -> Iterator[None]:
    """Within the block the signal waits until `leave` is called, until the end of the block, or until patience ends.

    A loop asks `is_wanted` at the end of each step, stores what it needs to go on, and leaves.
    """
    global _depth
    _depth += 1
    try:
        yield
    finally:
        _depth -= 1
    if not _depth:
        leave()


def is_wanted() -> bool:
    """Say whether the cluster wants the job back."""
    return _waiting is not None


def leave() -> None:
    """Give the job back where the cluster wants it: the launcher's answer ends this process. Raises Abandoned where it refuses."""
    global _waiting
    waiting, _waiting = _waiting, None
    if waiting is None or _answer is None:
        return
    signal.setitimer(signal.ITIMER_REAL, 0)
    try:
        _answer(*waiting)
    except Exception as error:
        raise Abandoned(error) from None


def _handle(number: int, frame: FrameType | None) -> None:
    global _waiting
    if _waiting is not None:
        return
    _waiting = (number, frame)
    if not _depth:
        leave()
    else:
        signal.signal(signal.SIGALRM, lambda *_: leave())
        signal.setitimer(signal.ITIMER_REAL, _patience)

"""A process that is asked to end puts away what is half done."""

from __future__ import annotations

import contextlib
import signal
import threading
from collections.abc import Iterator
from types import FrameType

TERMINATED = 128 + signal.SIGTERM
"""The status of a process that SIGTERM ended, as shells count it."""


@contextlib.contextmanager
def ending_in_order() -> Iterator[None]:
    """Within the block SIGTERM raises SystemExit, so that blocks end as after Ctrl-C; a second one ends the process at once.

    Nothing changes where a handler of somebody else's is set, and outside of the main thread, which cannot set any.
    """
    if threading.current_thread() is not threading.main_thread() or signal.getsignal(signal.SIGTERM) is not signal.SIG_DFL:
        yield
        return

    def end(number: int, frame: FrameType | None) -> None:
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        raise SystemExit(TERMINATED)

    signal.signal(signal.SIGTERM, end)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, signal.SIG_DFL)

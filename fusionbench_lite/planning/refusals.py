"""How every command ends: a mistake is one line that begins with `fusionbench_lite: ` and status 2, never a traceback."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Callable
from typing import NoReturn

from fusionbench_lite.errors import InputError

TRACEBACKS = "HYDRA_FULL_ERROR"
"""Hydra's own switch for tracebacks in place of one line."""
INTERRUPTED = "interrupted"


class Parser(argparse.ArgumentParser):
    """A parser of options that raises InputError for what it does not take."""

    def error(self, message: str) -> NoReturn:
        """Raise InputError with argparse's words and where the options are listed."""
        raise InputError(f"{message}: {self.prog} --help lists what there is")


def exit_status(run: Callable[[], int], interrupted: str = INTERRUPTED) -> int:
    """Return the exit status of a command: `run`'s, 2 for bad input, 1 where it was interrupted, 0 where its reader went away.

    Runs write their records before they print: the reader of a pipe, such as head, that has seen enough stops nothing half done.
    """
    try:
        try:
            return run()
        finally:
            sys.stdout.flush()
    except InputError as error:
        if os.environ.get(TRACEBACKS) == "1":
            raise
        return refuse(error)
    except KeyboardInterrupt:
        print(interrupted, file=sys.stderr)
        return 1
    except BrokenPipeError:
        _forget_output()
        return 0


def refuse(error: InputError) -> int:
    """Print a refusal as one line; returns its status."""
    print(f"fusionbench_lite: {' '.join(str(error).split())}", file=sys.stderr)
    return 2


def _forget_output() -> None:
    """Point standard output at nothing, so that the interpreter does not fail again when it closes it."""
    with open(os.devnull, "wb") as nothing:  # noqa: PTH123
        os.dup2(nothing.fileno(), sys.stdout.fileno())

"""Lines of the command called in this process, and what became of them: a record, or a refusal."""

from __future__ import annotations

import contextlib
import io
import sys

import pytest

from fusionbench_lite.__main__ import main
from fusionbench_lite.tables import records
from fusionbench_lite.tables.records import Record


def called(entry, arguments: list[str]) -> tuple[int, str]:
    """Call the main function of a command with arguments; returns its exit status and all it printed."""
    text = io.StringIO()
    with pytest.MonkeyPatch.context() as patch, contextlib.redirect_stdout(text), contextlib.redirect_stderr(text):
        patch.setattr(sys, "argv", ["fusionbench_lite", *arguments])
        status = entry()
    return status, text.getvalue()


def recorded(arguments: list[str], where: str = "recorded in") -> Record:
    """Run `python -m fusionbench_lite` and return the record that the line made, or, "found in", that it found."""
    status, said = called(main, arguments)
    assert status == 0, said
    last = said.splitlines()[-1]
    assert last.startswith(where), said
    return records.read(last.removeprefix(where).strip())


def refusal(arguments: list[str]) -> str:
    """Run a line that is refused, and return the one line that says why."""
    status, said = called(main, arguments)
    assert status == 2, said
    lines = [one for one in said.splitlines() if one.startswith("fusionbench_lite: ")]
    assert len(lines) == 1, said
    return lines[0]

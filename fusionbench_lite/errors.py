"""Errors a user can mend: one line that names the thing, the two values and the fix."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class InputError(ValueError):
    """Bad input or configuration. The command line prints it as one line and exits with status 2."""


class WriteError(InputError):
    """A file system that refuses: a full disk, a folder without the right to write. Another source of a file mends nothing."""


class MergeError(InputError):
    """Bad input of a merging or adaptation method: names the task, the key, both values and the fix."""


class MergeWarning(UserWarning):
    """A result that is not what one would expect of the method. Runs record it; the command line prints it."""


def nearest(name: str, choices: Iterable[str]) -> str | None:
    """Return the choice most like `name`, or None when nothing is close enough to be a likely slip."""
    choices = list(choices)
    folded = {choice.lower().replace("-", "_"): choice for choice in choices}
    match = difflib.get_close_matches(name.lower().replace("-", "_"), folded, n=1, cutoff=0.5)
    return folded[match[0]] if match else None


def did_you_mean(name: str, choices: Iterable[str]) -> str:
    """Return the tail of an error message for an unknown name: the nearest choice, else all of them."""
    choices = sorted(choices)
    match = nearest(name, choices)
    if match is not None:
        return f"did you mean {match!r}?"
    return f"choose one of {', '.join(choices)}" if choices else "there is none to choose from"

"""The command lines of cache and records: an action, names, and KEY=VALUE."""

from __future__ import annotations

import dataclasses
import re
import sys
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any, TypeVar

from fusionbench_lite.errors import InputError, did_you_mean
from fusionbench_lite.fields import kind
from fusionbench_lite.planning.command_line import options_of
from fusionbench_lite.planning.refusals import exit_status

Options = TypeVar("Options")
_SPANS = {"m": 60, "h": 3600, "d": 86400, "w": 7 * 86400}


def command(usage: str, arguments: Sequence[str] | None, run: Callable[[list[str]], int]) -> int:
    """Run a command on its arguments, those of the process by default, and return the exit status; help prints the usage."""
    given = list(sys.argv[1:] if arguments is None else arguments)

    def main() -> int:
        if {"-h", "--help"} & set(given):
            print(usage)
            return 0
        return run(given)

    return exit_status(main)


def span() -> Any:
    """Declare a length of time as a field, in seconds; None where it is not given."""

    def check(value: Any) -> float:
        match = re.fullmatch(r"(\d+(?:\.\d+)?)\s*([mhdw])", value.strip()) if isinstance(value, str) else None
        if match is None:
            raise ValueError
        return float(match[1]) * _SPANS[match[2]]

    return kind(None, check, "a time, as 30d or 12h", optional=True, is_text=True)


def parsed(
    given: Sequence[str], actions: Mapping[str, Collection[str]], options: type[Options], positional: Mapping[str, int],
) -> tuple[str, list[str], Options]:
    """Return the action that a line names, the first of all where it names none, the names behind it, and the options.

    `actions` has the keys that each action takes, `positional` how many names it wants. Raises InputError for an unknown action,
    what sets nothing, another number of names, and a key that the action has no use for.
    """
    words = [one for one in given if "=" not in one and not one.startswith("-")]
    sets = ["verbose=true" if one == "--verbose" else one for one in given if one not in words]
    action, names = (words[0], words[1:]) if words else (next(iter(actions)), [])
    if action not in actions:
        raise InputError(f"unknown action {action!r}: {did_you_mean(action, actions)}")
    wanted = positional.get(action, 0)
    if len(names) != wanted:
        if not wanted:
            raise InputError(f"{names[0]!r} sets nothing: give KEY=VALUE; --help lists the keys")
        raise InputError(f"{action} takes {wanted} record{'s' * (wanted > 1)}, got {len(names)}: {' '.join(names) or 'none'}")
    known = {field.name for field in dataclasses.fields(options)}  # type: ignore[arg-type]
    for one in sets:
        name = one.partition("=")[0]
        if "=" not in one:
            raise InputError(f"{one!r} sets nothing: give KEY=VALUE; --help lists the keys")
        if name in known and name not in actions[action]:
            raise InputError(f"{action} has no use for {name}: leave it out")
    return action, names, options_of(sets, "", options)

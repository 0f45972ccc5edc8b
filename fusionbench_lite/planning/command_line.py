"""What the commands beside `python -m fusionbench_lite` share: its keys, options of their own, one line for an error."""

from __future__ import annotations

import contextlib
import dataclasses
import sys
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, TypeVar

import yaml

from fusionbench_lite.fields import checked, kinds
from fusionbench_lite.planning.refusals import exit_status

if TYPE_CHECKING:
    from fusionbench_lite.planning.plan import Plan

Options = TypeVar("Options")


def command(
    usage: str, given: Sequence[str] | None, prefix: str, options: type[Options], run: Callable[[Plan, Options], int]
) -> int:
    """Run a command on the plan of its arguments and return the exit status: `run`'s, 0 for help, 2 for bad input.

    Arguments that begin with `prefix` set fields of the dataclass `options`, all of which say what they accept (kinds of fields).
    """
    arguments = list(sys.argv[1:] if given is None else given)

    def main() -> int:
        if {"-h", "--help"} & set(arguments):
            print(usage)
            return 0
        own_arguments = [argument for argument in arguments if argument.startswith(prefix)]
        chosen = options_of(own_arguments, prefix, options)
        return run(plan_of([argument for argument in arguments if argument not in own_arguments]), chosen)

    return exit_status(main)


def plan_of(overrides: list[str]) -> Plan:
    """Return the plan of command-line overrides; raises InputError in one line."""
    from hydra.errors import HydraException
    from omegaconf.errors import OmegaConfBaseException

    from fusionbench_lite.planning import arguments, mistakes
    from fusionbench_lite.planning import config as configuration
    from fusionbench_lite.planning import plan as planning

    overrides = arguments.prepared(overrides)
    try:
        return planning.resolve(configuration.composed(overrides), overrides)
    except (HydraException, OmegaConfBaseException) as error:
        raise mistakes.explain(error, overrides) from None


def options_of(given: Sequence[str], prefix: str, options: type[Options]) -> Options:
    """Return the options that PREFIXname=value arguments set; raises InputError for an unknown name or a bad value."""
    declared, values = kinds(options), {}
    for argument in given:
        key, _, text = argument.removeprefix(prefix).partition("=")
        values[key] = _value(text, declared[key]) if key in declared else text
    return options(**checked(options, values, prefix))


def _value(text: str, declared: dataclasses.Field[Any]) -> Any:
    """Return the value of a text for a field: the text itself, or what YAML makes of it."""
    is_path = "is_path" in declared.metadata
    if declared.metadata["optional"] and (text == "null" or (not text and not is_path)):
        return None
    if is_path:
        from fusionbench_lite.planning.arguments import path_text

        return path_text(text)
    if declared.metadata["is_text"]:
        # Hydra's inner quotes, which keep a path with a space in one piece: key="'a folder'"
        return text[1:-1] if len(text) > 1 and text[0] == text[-1] and text[0] in "'\"" else text
    for read in (float, yaml.safe_load) if "e" in text.lower() else (yaml.safe_load,):  # 1e-5 is no number to YAML
        with contextlib.suppress(ValueError, yaml.YAMLError):
            return read(text)
    return text

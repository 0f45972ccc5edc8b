"""What the commands beside `python -m fusionbench_lite` share: its keys, options of their own, one line for an error."""

from __future__ import annotations

import contextlib
import dataclasses
import sys
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, TypeVar

import yaml

from fusionbench_lite.errors import InputError, did_you_mean

if TYPE_CHECKING:
    from fusionbench_lite.planning.plan import Plan

Options = TypeVar("Options")


def command(
    usage: str, given: Sequence[str] | None, prefix: str, options: type[Options], run: Callable[[Plan, Options], int]
) -> int:
    """Run a command on the plan of its arguments and return the exit status: `run`'s, 0 for help, 2 for bad input.

    Arguments that begin with `prefix` set fields of the dataclass `options`, whose `__post_init__` may refuse values.
    """
    arguments = list(sys.argv[1:] if given is None else given)
    if {"-h", "--help"} & set(arguments):
        print(usage)
        return 0
    own = [argument for argument in arguments if argument.startswith(prefix)]
    try:
        chosen = options_of(own, prefix, options)
        return run(plan_of([argument for argument in arguments if argument not in own]), chosen)
    except InputError as error:
        print(f"fusionbench_lite: {' '.join(str(error).split())}", file=sys.stderr)
        return 2


def plan_of(overrides: list[str]) -> Plan:
    """Return the plan of command-line overrides; raises InputError in one line."""
    from hydra.errors import HydraException
    from omegaconf.errors import OmegaConfBaseException

    from fusionbench_lite.planning import config as configuration
    from fusionbench_lite.planning import plan as planning

    try:
        return planning.resolve(configuration.composed(overrides), overrides)
    except (HydraException, OmegaConfBaseException) as error:
        raise configuration.explain(error, overrides) from None


def options_of(given: Sequence[str], prefix: str, options: type[Options]) -> Options:
    """Return the options that PREFIXname=value arguments set; raises InputError for an unknown name or another type."""
    fields = {field.name: str(field.type) for field in dataclasses.fields(options)}  # type: ignore[arg-type]
    values = {}
    for argument in given:
        key, _, text = argument.removeprefix(prefix).partition("=")
        if key not in fields:
            raise InputError(f"unknown key {prefix + key!r}: {did_you_mean(key, fields)}")
        values[key] = _value(prefix + key, text, fields[key])
    return options(**values)


def _value(key: str, text: str, kind: str) -> str | int | float | bool | None:
    """Return the value of a text for a field of this type, such as "int | None"."""
    kinds = [part.strip() for part in kind.split("|")]
    if "None" in kinds and text in ("null", ""):
        return None
    if "str" in kinds:
        # Hydra's inner quotes, which keep a path with a space in one piece: key="'a folder'"
        return text[1:-1] if len(text) > 1 and text[0] == text[-1] and text[0] in "'\"" else text
    value = yaml.safe_load(text)
    if "float" in kinds and isinstance(value, str):
        with contextlib.suppress(ValueError):  # 1e-5 is no number to YAML
            value = float(value)
    allowed = {"int": int, "float": (int, float), "bool": bool}
    for name in kinds:
        if name in allowed and isinstance(value, allowed[name]) and (name == "bool" or not isinstance(value, bool)):  # type: ignore[arg-type]
            return value  # type: ignore[no-any-return]
    words = {"int": "an integer", "float": "a number", "bool": "true or false"}
    raise InputError(f"{key} must be {' or '.join(words[name] for name in kinds if name in words)}, got {text!r}")

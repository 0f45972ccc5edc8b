"""Arguments as the shell hands them over, in the grammar that Hydra reads: paths and names of tasks mean what they say.

Hydra's grammar gives a meaning to ~, commas, brackets, equal signs and quotes, and reads 1e3, 007, null and on as values. For keys
of paths and of tasks the text is quoted before it is parsed: `data_dir=~/my data (v2)` is that folder, expanded, and
`tasks=[1e3,R&D]` those two tasks. What is quoted for Hydra already, as in "data_dir='~/d'", stays what it is.
"""

from __future__ import annotations

import contextlib
import dataclasses
import os
import re
from collections.abc import Iterator, Sequence

from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override, Quote, QuotedString
from hydra.errors import HydraException

from fusionbench_lite.errors import InputError
from fusionbench_lite.paths import expanded, up_to_last
from fusionbench_lite.planning.config import Config

SWEEPS = {"-m", "--multirun"}
FOREIGN = ("hydra.run.dir", "hydra.sweep.dir", "hydra.launcher.submitit_folder", "logger.save_dir", "logger.dir")
"""Keys of paths that are not the configuration's own."""
NAMES = ("tasks", "checkpoints.experts")
"""Keys of names of tasks."""

_ARGUMENT = re.compile(r"(\+{0,2})([A-Za-z_][\w./@-]*)=(.*)", re.DOTALL)
_PLAIN = re.compile(r"[A-Za-z_][\w.-]*|0|[1-9]\d*", re.ASCII)
_VALUES = ("null", "true", "false", "nan", "inf")
"""Words that are values to Hydra."""
_FUNCTION = re.compile(r"(choice|range|interval|glob|shuffle|sort|tag)\(")
_CHOICE = re.compile(r"choice\((.*)\)", re.DOTALL)
_FOLDER_FLAGS = re.compile(r"(--config-dir|-cd)=(.*)", re.DOTALL)


def path_keys(declared: type = Config, at: str = "") -> Iterator[str]:
    """Yield the keys whose fields are locations, those of sections as section.name."""
    for field in dataclasses.fields(declared):
        if field.metadata.get("is_path"):
            yield at + field.name
        section = field.default_factory
        if isinstance(section, type) and dataclasses.is_dataclass(section):
            yield from path_keys(section, f"{at}{field.name}.")


PATHS = frozenset({*path_keys(), *FOREIGN})


def prepared(arguments: Sequence[str]) -> list[str]:
    """Return arguments with paths expanded and quoted for Hydra, and names of tasks quoted where they read as something else.

    Where the arguments ask for a sweep, a comma separates its runs, unless the part of a path with the comma is there. Prepared
    arguments stay as they are. Raises InputError for an empty path and for one that cannot be expanded.
    """
    sweep = sweeps(arguments)
    return [_prepared(argument, sweep) for argument in arguments]


def sweeps(arguments: Sequence[str]) -> bool:
    """Say whether arguments ask for a sweep."""
    return not SWEEPS.isdisjoint(arguments) or "hydra.mode=MULTIRUN" in arguments


def _prepared(argument: str, sweep: bool) -> str:
    if flag := _FOLDER_FLAGS.fullmatch(argument):
        return f"{flag[1]}={expanded(flag[2])}"
    if (parts := _ARGUMENT.fullmatch(argument)) is None:
        return argument
    prefix, key, text = parts.groups()
    if key in PATHS:
        return f"{prefix}{key}={_path(key, text, sweep)}"
    return f"{prefix}{key}={_names(text, sweep)}" if key in NAMES else argument


# Paths ---------------------------------------------------------------------------------------------------------------


def path_text(text: str) -> str:
    """Return the path that a text on a command line means: itself, without Hydra's quotes unless they are part of its name."""
    inner = unquoted(text)
    return text if inner is None or os.path.lexists(text) else inner


def _path(key: str, text: str, sweep: bool) -> str:
    is_function = _FUNCTION.match(text) is not None
    several = sweep and ("," in text or is_function) and unquoted(text) is None
    if several and not os.path.lexists(up_to_last(",", str(_expanded(key, text)))):
        choice = _CHOICE.fullmatch(text)
        if is_function and choice is None:
            return text
        return ",".join(_one_path(key, part.strip()) for part in split(text if choice is None else choice[1]))
    return _one_path(key, text)


def _one_path(key: str, text: str) -> str:
    return text if text.lower() == "null" else quoted(_escaped(_expanded(key, path_text(text))))


def _expanded(key: str, text: str) -> str:
    if not text:
        raise InputError(f"{key} is empty, as a variable is that is not set: give a path, or leave {key} out")
    try:
        return str(expanded(text, interpolated=True))
    except InputError as error:
        raise InputError(f"{key}: {error}") from None


def _escaped(path: str) -> str:
    """Return a path whose ${ is none of OmegaConf's where such a path is there."""
    return path.replace("${", r"\${") if "${" in path and os.path.lexists(up_to_last("$", path)) else path


# Names of tasks ------------------------------------------------------------------------------------------------------


def _names(text: str, sweep: bool) -> str:
    """Return the value of a key of tasks: lists and single names, several of either in a sweep."""
    parts = split(text)
    is_broken = text[:1] in ("[", "{") and text[-1:] not in ("]", "}")
    if _FUNCTION.match(text) or is_broken or (len(parts) > 1 and not sweep):
        return text  # `mistakes` explains what is wrong with it
    return ",".join(_value(part.strip()) for part in parts)


def listed(text: str) -> str:
    """Return a list of the names that commas separate in a text."""
    return f"[{','.join(_name(part.strip(), _VALUES) for part in split(text))}]"


def _value(text: str) -> str:
    if text.startswith("[") and text.endswith("]"):
        return listed(text[1:-1])
    return _name(text, _VALUES[1:])  # tasks=null are those of the model


def _name(text: str, values: Sequence[str]) -> str:
    is_read_so = _PLAIN.fullmatch(text) is not None and text.lower() not in values
    is_nested = "${" in text or (text[:1] in "[{" and text[-1:] in "]}")
    return text if not text or is_read_so or is_nested or unquoted(text) is not None else quoted(text)


# Hydra's grammar -----------------------------------------------------------------------------------------------------


def quoted(text: str) -> str:
    """Return a text in the quotes of Hydra."""
    return QuotedString(text=text, quote=Quote.single).with_quotes()


def unquoted(text: str) -> str | None:
    """Return what stands in the quotes of Hydra, None for a text without."""
    if len(text) < 2 or text[0] != text[-1] or text[0] not in "'\"":
        return None
    found = parsed(f"key={text}")
    value = found.value() if found is not None else None
    return value if found is not None and isinstance(found._value, QuotedString) and isinstance(value, str) else None


def parsed(argument: str) -> Override | None:
    """Return an argument as Hydra reads it, None where it cannot."""
    with contextlib.suppress(HydraException):
        return OverridesParser.create().parse_override(argument)
    return None


def split(text: str) -> list[str]:
    """Return the parts of a text between commas that stand in no bracket and in no quotes that begin a part."""
    parts, depth, quote = [""], 0, ""
    for place, sign in enumerate(text):
        begins = not parts[-1].strip() or parts[-1].rstrip()[-1:] in "[{,"
        if quote:
            quote = "" if sign == quote and text[place - 1] != "\\" else quote
        elif sign in "'\"" and begins and text.find(sign, place + 1) > 0:
            quote = sign
        elif sign in "[{":
            depth += 1
        elif sign in "]}":
            depth -= 1
        elif sign == "," and depth <= 0:
            parts.append("")
            continue
        parts[-1] += sign
    return parts

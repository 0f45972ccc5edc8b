"""What is wrong with a command line, in one line: Hydra's and OmegaConf's complaints, with the key or value and what works."""

from __future__ import annotations

import re
import shlex
from collections.abc import Sequence
from typing import Any

from hydra.errors import OverrideParseException
from omegaconf import OmegaConf

from fusionbench_lite.errors import InputError, did_you_mean
from fusionbench_lite.planning.arguments import NAMES, listed, parsed, quoted, split
from fusionbench_lite.planning.config import composed

_GROUPS = ("method", "model", "checkpoints", "trainer", "logger")


def explain(error: Exception, overrides: list[str]) -> InputError:
    """Return Hydra's or OmegaConf's error as one line that names the key or value and the nearest valid one."""
    text = str(error)
    if isinstance(error, OverrideParseException):
        return unreadable(str(error.override), overrides)
    if refused := re.match(r"InputError raised while resolving interpolation: (.*)", text):
        return InputError(refused.group(1))
    if ambiguous := re.search(r"Ambiguous value for argument '(.*?)'\n", text, flags=re.DOTALL):
        return _several(ambiguous.group(1))
    if "is not Optional" in str(error.__cause__) and (null := re.search(r"Error merging override (\S+)=null", text)):
        return InputError(f"{null.group(1)} has no null: leave {null.group(1)} out for its default, or give a value")
    if appended := re.search(r"An item is already at '([^']+)'", text):
        return InputError(f"+{appended.group(1)}: {appended.group(1)} is there already: leave the + out")
    if missing := re.search(r"Could not find '(?:[\w/]*/)?([^'/]+)'", text):
        group = re.search(r"Available options in '([^']+)'", text)
        options = re.findall(r"^\t(\S+)$", text, flags=re.MULTILINE)
        name = group.group(1) if group else "configuration"
        return InputError(f"unknown {name} {missing.group(1)!r}: {did_you_mean(missing.group(1), options)}")
    if re.search(r"Key '\S+' (is not in struct|not in )", text + str(error.__cause__)):
        everything = text + str(error.__cause__)  # the cause names the key inside of a mapping that is given
        full = re.search(r"full_key: (\S+)", everything) or re.search(r"Could not override '([^']+)'", everything)
        return _unknown_key(full.group(1) if full else "?", overrides)
    if unknown := re.search(r"Could not override '([^']+)'", text):
        return _unknown_key(unknown.group(1), overrides)
    if group := re.match(r"Config group override must be", text):
        return InputError(f"{group.string}: write a name, such as method=ties_merging")
    cause = str(error.__cause__ or error).strip().splitlines()[0]
    merging = re.search(r"Error merging override (\S+)", text)
    return InputError(f"{merging.group(1) if merging else 'cannot read the command line'}: {cause}")

def unreadable(argument: str, overrides: Sequence[str]) -> InputError:
    """Return what is wrong with an argument that Hydra's grammar does not read, and what it would read.

    A list or mapping that the shell split at its blanks is put together again with the arguments behind it.
    """
    key, equals, value = argument.partition("=")
    if not equals or not key:
        hint = f"{key.lstrip('-')}=VALUE" if argument.startswith("-") else "KEY=VALUE, without blanks around ="
        return InputError(f"{argument!r} sets nothing: write {hint}")
    if value[:1] in ("[", "{") and argument in overrides:
        rest = list(overrides[overrides.index(argument) + 1 :])
        for count in range(1, len(rest) + 1):
            whole = " ".join([argument, *rest[:count]])
            if parsed(whole) is not None:
                return InputError(f"{argument} ends within a bracket, at a blank: write {for_shells(whole)}")
    if key.lstrip("+") in NAMES and value[:1] not in ("[", "{") and len(split(value)) > 1:
        return _several(argument)
    inner = quoted(value)
    if value[:1] in ("[", "{") and value[-1:] not in ("]", "}"):
        text = "" if key.lstrip("+") in NAMES else f", or write {for_shells(f'{key}={inner}')} for a text"
        return InputError(f"{argument}: the bracket is not closed: end the list or mapping with its bracket{text}")
    if parsed(f"{key}={inner}") is None:
        return InputError(f"{argument!r}: {key!r} is no key: write KEY=VALUE")
    return InputError(f"{argument}: this value needs quotes within quotes: write {for_shells(f'{key}={inner}')}")


def _several(argument: str) -> InputError:
    """Return what commas in the value of a line that is no sweep may have meant."""
    key, _, value = argument.partition("=")
    name = key.lstrip("+")
    each = f"add -m in front for a run with each of {value}"
    if name in _GROUPS or name == "experiment":
        return InputError(f"{argument} names several: {each}")
    if name in NAMES:
        return InputError(f"{argument}: a list stands in brackets: write {for_shells(f'{key}={listed(value)}')}, or {each}")
    return InputError(f"{argument}: commas separate the runs of a sweep: {each}, or write {for_shells(f'{key}={quoted(value)}')}")


def for_shells(argument: str) -> str:
    """Return an argument as it is written in bash, zsh, PowerShell and cmd; where it has a $ or such, in bash and zsh."""
    if re.fullmatch(r"[\w.,:/@%+=-]+", argument, flags=re.ASCII):
        return argument
    return shlex.quote(argument) if re.search(r'["$`\\!]', argument) else f'"{argument}"'



def _unknown_key(key: str, overrides: list[str]) -> InputError:
    parent = key.rpartition(".")[0]
    keys = known_keys(overrides)
    siblings = [name for name in keys if name.rpartition(".")[0] == parent]
    return InputError(f"unknown key {key!r}: {did_you_mean(key, siblings or keys)}")


def known_keys(overrides: list[str]) -> list[str]:
    """Return the dotted keys of the configuration, with the groups that `overrides` choose where they exist."""
    from hydra.core.global_hydra import GlobalHydra

    groups = [override for override in overrides if re.fullmatch(rf"({'|'.join(_GROUPS)})=[\w-]+", override)]
    GlobalHydra.instance().clear()  # the application that failed may still hold it
    try:
        config = composed(groups)
    except Exception:  # the group override is wrong as well: the defaults still name most keys
        config = composed([])
    return _flatten(OmegaConf.to_container(config, resolve=False))


def _flatten(node: Any, prefix: str = "") -> list[str]:
    keys = []
    for name, value in node.items():
        keys.append(f"{prefix}{name}")
        if isinstance(value, dict):
            keys += _flatten(value, f"{prefix}{name}.")
    return keys

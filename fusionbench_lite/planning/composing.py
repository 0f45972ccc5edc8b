"""Configurations of many lists of overrides, as `hydra.compose` makes them, without composing each from all files.

Hydra reads some twenty files and merges them, a tenth of a second for every list. Here it does that once. What a list chooses of a
group stands below the group's name and nowhere else, so that one file is read for it, and values are set by Hydra's own function.
Where a group's file does more than that, and for every mistake, Hydra itself composes.
"""

from __future__ import annotations

import copy
import functools
from collections.abc import Sequence
from typing import Any

from hydra import compose
from hydra._internal.config_loader_impl import ConfigLoaderImpl
from hydra.core.global_hydra import GlobalHydra
from hydra.core.override_parser.types import Override, OverrideType
from hydra.errors import HydraException
from omegaconf import DictConfig, OmegaConf, open_dict
from omegaconf.errors import OmegaConfBaseException

from fusionbench_lite.planning import given
from fusionbench_lite.planning.config import Config

NAME = "config"
KEPT = 512
"""Files of groups that are kept."""


def composed_for(overrides: Sequence[str]) -> DictConfig:
    """Return what `hydra.compose("config", overrides)` returns where Hydra is initialized; the caller may change it.

    Raises what Hydra and OmegaConf raise.
    """
    parsed = given.parsed(overrides)
    loader = GlobalHydra.instance().config_loader()
    assert isinstance(loader, ConfigLoaderImpl)
    try:
        config = _put_together(loader, parsed)
    except (HydraException, OmegaConfBaseException, ValueError):  # Hydra says it of the whole list
        config = None
    return compose(NAME, overrides=list(overrides)) if config is None else config


def _put_together(loader: ConfigLoaderImpl, overrides: Sequence[Override]) -> DictConfig | None:
    """Return the configuration, None for overrides that only Hydra composes."""
    config = copy.deepcopy(_usual(loader)[0])
    values: list[Override] = []
    for override in overrides:
        name, value = override.key_or_group, override.value()
        if override.is_hydra_override() or override.is_sweep_override():
            return None
        if isinstance(value, dict) or not _is_group(loader, name):
            values.append(override)
            continue
        is_choice = override.type == OverrideType.CHANGE and override.package is None
        section = _section(loader, name, value) if is_choice and isinstance(value, str) and _stands_alone(loader, name) else None
        if section is None:
            return None
        config[name] = section
    ConfigLoaderImpl._apply_overrides_to_config(values, config)
    return config


@functools.lru_cache(maxsize=2)
def _usual(loader: ConfigLoaderImpl) -> tuple[DictConfig, dict[str, str]]:
    """Return the configuration of no overrides and its choices of groups; a loader reads the files of one search path."""
    config = compose(NAME, overrides=[], return_hydra_config=True)
    choices = {str(group): choice for group, choice in config.hydra.runtime.choices.items() if choice is not None}
    with open_dict(config):
        del config["hydra"]
    return config, choices


@functools.lru_cache(maxsize=KEPT)
def _is_group(loader: ConfigLoaderImpl, name: str) -> bool:
    return loader.repository.group_exists(name)


@functools.lru_cache(maxsize=KEPT)
def _section(loader: ConfigLoaderImpl, group: str, choice: str) -> Any | None:
    """Return what a group's file puts below the group's name, None where it does more or is not there."""
    result = loader.repository.load_config(f"{group}/{choice}")
    if result is None or result.defaults_list or result.header.get("package") is not None:
        return None
    declared = OmegaConf.structured(Config)
    schema = {} if OmegaConf.is_missing(declared, group) else declared[group]
    return OmegaConf.merge(schema, result.config)


@functools.lru_cache(maxsize=KEPT)
def _stands_alone(loader: ConfigLoaderImpl, group: str) -> bool:
    """Say whether the usual choice of a group is its file, and nothing that another file says."""
    usual, choices = _usual(loader)
    return group in choices and group in usual and _section(loader, group, choices[group]) == usual[group]

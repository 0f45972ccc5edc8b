"""The typed configuration and the one-line form of Hydra's complaints about it."""

from __future__ import annotations

import dataclasses
import enum
import re
from typing import Any

from hydra.core.config_store import ConfigStore
from omegaconf import II, MISSING, DictConfig, OmegaConf

from fusionbench_lite import suites
from fusionbench_lite.errors import InputError, did_you_mean
from fusionbench_lite.fields import choice, device, integer
from fusionbench_lite.paths import config_dir

PLACES = ("auto", "device", "cpu", "disk")
"""Where experts may stay."""


class Select(enum.Enum):
    """Which evaluation of an adaptation counts; `best_test` looks at test labels, as AdaRank's code does,
    `best_unsupervised` at the adaptation loss on held-out unlabelled data."""

    last = "last"
    best_test = "best_test"
    best_unsupervised = "best_unsupervised"


class Precision(enum.Enum):
    """Arithmetic of forward and backward passes; weights are always merged in float32 or better."""

    fp32 = "32-true"
    bf16 = "bf16-mixed"


@dataclasses.dataclass
class Checkpoints:
    """Where experts come from: `family` is whose, `dir` a folder of their files in place of cache and network, `manifest`
    a list of files in place of the family's own. `seed` is that of the embedded suite's data and training, `recipe`
    numbers of the training recipe, as in {finetune_steps: 100}. `experts`: the tasks whose experts are merged, a list or
    the first so many, all by default; a data-free merge is evaluated on the others too. `place`: where experts and their
    singular components stay, device, cpu or disk; auto takes the first that fits."""

    family: str = "auto"
    dir: str | None = None
    manifest: str | None = None
    place: str = choice("auto", PLACES)
    seed: int = integer(II("seed"), low=0)
    recipe: Any = None
    experts: Any = None


@dataclasses.dataclass
class Data:
    """Which images the CLIP models see; see data.vision.Sources."""

    source: str = "auto"
    skip_corrupt: int = 0
    corruption: str | None = None
    corruption_from: str = "splits"
    severity: int = 5
    tasks_file: str | None = None


@dataclasses.dataclass
class Trainer:
    """How an adaptation runs; see adaptation.engine.fit.FitSettings. `eval_batch`: images in one forward pass of an
    evaluation, found automatically where null."""

    devices: int = integer(1, low=1)
    checkpoint_every: int = integer(25, low=1)
    chunk: int | None = integer(None, low=1, optional=True)
    eval_batch: int | None = integer(None, low=1, optional=True)


@dataclasses.dataclass
class Config:
    """Every key of the command line. `tasks` is a number, the name of a task set, or a list of task names; where null, those
    that the model's experts are best known for."""

    method: Any = MISSING
    model: Any = MISSING
    tasks: Any = None
    experiment: str | None = None
    checkpoints: Checkpoints = dataclasses.field(default_factory=Checkpoints)
    data: Data = dataclasses.field(default_factory=Data)
    trainer: Trainer = dataclasses.field(default_factory=Trainer)
    logger: Any = MISSING
    results_dir: str = "results"
    cache_dir: str | None = None
    data_dir: str | None = None
    preset: str | None = None
    seed: int = integer(0, low=0)
    steps: int | None = None
    limit: int | None = integer(None, low=1, optional=True)
    select: Select = Select.last
    device: str = device("auto")
    precision: Precision = Precision.fp32
    overwrite: bool = False


def register() -> None:
    """Make the typed configuration known to Hydra, and every model that has no file in conf/model/."""
    store = ConfigStore.instance()
    store.store(name="schema", node=Config)
    for name in suites.model_names():
        if not (config_dir() / "model" / f"{name}.yaml").is_file():
            store.store(group="model", name=name, node={"name": name})


def composed(overrides: list[str], *, with_hydra: bool = False) -> DictConfig:
    """Return the configuration of command-line overrides, with Hydra's own part of it on request.

    Raises what Hydra and OmegaConf raise; `explain` makes one line of it.
    """
    from hydra import compose, initialize_config_dir

    register()
    with initialize_config_dir(str(config_dir()), version_base="1.3"):
        return compose("config", overrides=overrides, return_hydra_config=with_hydra)


def explain(error: Exception, overrides: list[str]) -> InputError:
    """Return Hydra's or OmegaConf's error as one line that names the key or value and the nearest valid one."""
    text = str(error)
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


def _unknown_key(key: str, overrides: list[str]) -> InputError:
    parent = key.rpartition(".")[0]
    keys = known_keys(overrides)
    siblings = [name for name in keys if name.rpartition(".")[0] == parent]
    return InputError(f"unknown key {key!r}: {did_you_mean(key, siblings or keys)}")


def known_keys(overrides: list[str]) -> list[str]:
    """Return the dotted keys of the configuration, with the groups that `overrides` choose where they exist."""
    from hydra.core.global_hydra import GlobalHydra

    groups = [override for override in overrides if re.fullmatch(r"(method|model|checkpoints|trainer|logger)=[\w-]+", override)]
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


__all__ = ["Checkpoints", "Config", "Data", "Precision", "Select", "Trainer", "composed", "explain", "known_keys", "register"]

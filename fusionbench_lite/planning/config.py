"""The typed configuration, and how it is composed."""

from __future__ import annotations

import dataclasses
import enum
from typing import Any

from hydra.core.config_store import ConfigStore
from omegaconf import II, MISSING, DictConfig, OmegaConf

from fusionbench_lite import suites
from fusionbench_lite.fields import choice, device, integer, location
from fusionbench_lite.paths import config_dir, expanded, folder

PLACES = ("auto", "device", "cpu", "disk")
"""Where experts may stay."""
SCALES = ("published", "mini")
"""Of a published table: as published, or its twin on the embedded suites."""
TENSORS = ("auto", "all", "blocks", "blocks_on_mean")
"""Which tensors may be merged."""


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
    the first so many, all by default; one merged model is evaluated on the others too, and adapted on the tasks of its experts
    alone. `place`: where experts and their singular components stay, device, cpu or disk; auto takes the first that fits.
    `tensors`: which of a language model are merged, all but heads, or the transformer blocks alone, beside the pretrained others or
    (blocks_on_mean) the experts' mean of them; auto is as the method's published code."""

    family: str = "auto"
    dir: str | None = location(None, optional=True)
    manifest: str | None = location(None, optional=True)
    place: str = choice("auto", PLACES)
    tensors: str = choice("auto", TENSORS)
    seed: int = integer(II("seed"), low=0)
    recipe: Any = None
    experts: Any = None


@dataclasses.dataclass
class Data:
    """Which images the vision models see; see data.vision.Sources. The embedded ones know corruptions alone, always generated.
    `protocol`: whose splits, lengths, prompts and metrics tasks of texts have, null for those of the model's published table
    (data/text/protocols.yaml)."""

    source: str = "auto"
    skip_corrupt: int = 0
    corruption: str | None = None
    corruption_from: str = "splits"
    severity: int = 5
    tasks_file: str | None = location(None, optional=True)
    protocol: str | None = None


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
    """Every key of the command line. `plan`: say what a run or a table takes, and run nothing. `run`: one run of an experiment
    by its id, as a sweep sends it. `tasks` is a number, the name of a task set, or a list of task names; where null, those that the
    model's experts are best known for."""

    method: Any = MISSING
    model: Any = MISSING
    tasks: Any = None
    experiment: str | None = None
    scale: str = choice("published", SCALES)
    plan: bool = False
    run: str | None = None
    checkpoints: Checkpoints = dataclasses.field(default_factory=Checkpoints)
    data: Data = dataclasses.field(default_factory=Data)
    trainer: Trainer = dataclasses.field(default_factory=Trainer)
    logger: Any = MISSING
    results_dir: str = location("results")
    cache_dir: str | None = location(None, optional=True)
    data_dir: str | None = location(None, optional=True)
    preset: str | None = None
    seed: int = integer(0, low=0)
    steps: int | None = None
    limit: int | None = integer(None, low=1, optional=True)
    select: Select = Select.last
    device: str = device("auto")
    precision: Precision = Precision.fp32
    overwrite: bool = False


def register() -> None:
    """Make the typed configuration known to Hydra, and every model that has no file in conf/model/.

    In YAML files `${fusionbench_lite.folder:key,path}` is the path expanded; the key is for the error where a file lies there.
    """
    OmegaConf.register_new_resolver("fusionbench_lite.folder", lambda key, path: str(folder(key, expanded(path))), replace=True)
    store = ConfigStore.instance()
    store.store(name="schema", node=Config)
    for name in suites.model_names():
        if not (config_dir() / "model" / f"{name}.yaml").is_file():
            store.store(group="model", name=name, node={"name": name})


def composed(overrides: list[str], *, with_hydra: bool = False) -> DictConfig:
    """Return the configuration of command-line overrides, with Hydra's own part of it on request.

    Inside the application, which initialized Hydra, that one composes. Raises what Hydra and OmegaConf raise; `explain` makes one
    line of it.
    """
    from hydra import compose, initialize_config_dir
    from hydra.core.global_hydra import GlobalHydra

    register()
    if GlobalHydra.instance().is_initialized():
        return compose("config", overrides=overrides, return_hydra_config=with_hydra)
    with initialize_config_dir(str(config_dir()), version_base="1.3"):
        return compose("config", overrides=overrides, return_hydra_config=with_hydra)


__all__ = ["Checkpoints", "Config", "Data", "Precision", "Select", "Trainer", "composed", "register"]

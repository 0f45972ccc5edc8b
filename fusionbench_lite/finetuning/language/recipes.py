"""The recipes of fine-tuning language models, read from recipes.yaml, where each names its source."""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml

from fusionbench_lite.errors import InputError, did_you_mean
from fusionbench_lite.fields import REQUIRED, checked, choice, flag, integer, real, verify

if TYPE_CHECKING:
    from fusionbench_lite.adaptation.learners.training import Course


@dataclasses.dataclass(frozen=True, kw_only=True)
class Lora:
    """Adapters of peft: rank, alpha, dropout of their inputs, and the names of the layers that have one."""

    r: int = integer(REQUIRED, low=1)
    alpha: float = real(REQUIRED, low=0, open_low=True)
    dropout: float = real(REQUIRED, low=0, high=1, open_high=True)
    targets: tuple[str, ...] = dataclasses.field(default=())


@dataclasses.dataclass(frozen=True, kw_only=True)
class LanguageRecipe:
    """How an expert is trained from the pretrained language model, with a head of its own where the model has heads.

    A step takes `batch` texts. Training ends after `epochs`, or after `steps` where those are given. The learning rate is
    `lr`, or that in `lrs` for a task named there; it grows over a part `warmup` of the steps, then follows `schedule`
    ("linear" or "cosine" to 0, or "constant"). `clip`: the largest norm of the gradient, None for any. Weight decay leaves
    biases and norms alone. `lora`: adapters are trained in place of the weights. `held_out`: the part of the training texts
    that is for validation. `select`: the weights of the "last" step, or those of the epoch whose held-out result is the best
    ("best_epoch"). `dropout`: that of the model, None for what its config says. `grouped`: texts of like length share a
    step, which saves padding; else a step's texts are drawn without regard to it.
    """

    name: str
    source: str
    optimizer: str = choice(REQUIRED, ("adamw", "adam"))
    lr: float = real(REQUIRED, low=0, open_low=True)
    lrs: Mapping[str, float] = dataclasses.field(default_factory=dict)
    weight_decay: float = real(REQUIRED, low=0)
    batch: int = integer(REQUIRED, low=1)
    epochs: int | None = integer(None, low=1, optional=True)
    steps: int | None = integer(None, low=1, optional=True)
    warmup: float = real(REQUIRED, low=0, high=1)
    schedule: str = choice(REQUIRED, ("linear", "cosine", "constant"))
    clip: float | None = real(REQUIRED, low=0, open_low=True, optional=True)
    lora: Lora | None = None
    held_out: float = real(REQUIRED, low=0, high=1, open_high=True)
    select: str = choice(REQUIRED, ("last", "best_epoch"))
    dropout: float | None = real(None, low=0, high=1, open_high=True, optional=True)
    grouped: bool = flag(False)
    unconfirmed: str = ""

    def __post_init__(self) -> None:
        verify(self, where=f"recipe {self.name!r} of fine-tuning: ")
        if (self.epochs is None) == (self.steps is None):
            raise InputError(f"recipe {self.name!r} of fine-tuning: give epochs or steps, got {self.epochs} and {self.steps}")
        if self.select == "best_epoch" and not self.held_out:
            raise InputError(f"recipe {self.name!r} of fine-tuning: the best epoch needs held-out texts, held_out is 0")

    def steps_of(self, texts: int) -> int:
        """Return the number of steps on so many training texts; the last batch of an epoch may be smaller."""
        return self.steps if self.steps is not None else (self.epochs or 0) * self.steps_an_epoch(texts)

    def steps_an_epoch(self, texts: int) -> int:
        """Return the number of steps that see every text once."""
        return math.ceil(texts / self.batch)

    def course(self, task: str, steps: int) -> Course:
        """Return what the loop is to do with the weights of a task in so many steps."""
        from fusionbench_lite.adaptation.learners.training import Course

        return Course(
            lr=self.lrs.get(task, self.lr), weight_decay=self.weight_decay, warmup=math.ceil(self.warmup * steps), clip=self.clip,
            optimizer=self.optimizer, schedule=self.schedule,
        )


def names() -> list[str]:
    """Return the names of the recipes."""
    return list(_table())


def recipe(name: str, **changes: Any) -> LanguageRecipe:
    """Return the recipe of this name with some values replaced; a change is noted in its source.

    A new `lr` holds for every task, `steps` replace epochs and `epochs` steps. Raises InputError for an unknown name or value.
    """
    table = _table()
    if name not in table:
        raise InputError(f"unknown recipe {name!r} of fine-tuning: {did_you_mean(str(name), table)}")
    changes = checked(LanguageRecipe, changes, f"recipe {name!r} of fine-tuning: ")
    if not changes:
        return table[name]
    if {"steps", "epochs"} <= set(changes):
        raise InputError(f"recipe {name!r} of fine-tuning: steps and epochs are both given: leave one of them out")
    cleared: dict[str, Any] = {"lrs": {}} if "lr" in changes else {}
    for given, other in (("steps", "epochs"), ("epochs", "steps")):
        if given in changes:
            cleared[other] = None
    said = ", ".join(f"{key}={value}" for key, value in changes.items())
    return dataclasses.replace(table[name], **changes, **cleared, source=f"{table[name].source}; changed: {said}")


@functools.cache
def _table() -> dict[str, LanguageRecipe]:
    entries = yaml.safe_load(Path(__file__).with_suffix(".yaml").read_text())
    for entry in entries.values():
        if entry.get("lora") is not None:
            entry["lora"] = Lora(**{**entry["lora"], "targets": tuple(entry["lora"]["targets"])})
    return {name: LanguageRecipe(name=name, **entry) for name, entry in entries.items()}

"""The recipes of fine-tuning, read from recipes.yaml, where each names its source, and how one is run."""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

from fusionbench_lite.errors import InputError, did_you_mean
from fusionbench_lite.fields import REQUIRED, checked, choice, flag, integer, interval, real, verify

PRECISIONS = {"fp32": "32-true", "bf16": "bf16-mixed"}
"""Lightning's names."""
PROJECTIONS = ("proj", "visual_projection.weight")
"""The projection's name in the packed and in the separate layout."""


@dataclasses.dataclass(frozen=True)
class Recipe:
    """How an expert is trained from the pretrained model, with its zero-shot head frozen.

    `optimizer`, `lr`, `weight_decay`, `schedule`, `warmup` and `clip` are those of the engine's `Course`. A step takes
    `batch` images of every task, or the number in `batches` for a task named there. It ends after the task's `epochs`,
    else after `steps`. `trained`: "all" tensors of the vision model, or the "tower" without the projection. `crop`: the
    smallest and the largest part of an image's area that a random resized crop keeps, None for the images as evaluation
    sees them. `images`: the crop acts on the "original" image, or on the "square" that evaluation makes of it; without a crop
    "square". `held_out`: part of the training images is for validation. `joint`: one model for all tasks.
    """

    name: str
    source: str
    optimizer: str = choice(REQUIRED, ("adamw", "adam"))
    lr: float = real(REQUIRED, low=0, open_low=True)
    weight_decay: float = real(REQUIRED, low=0)
    batch: int = integer(REQUIRED, low=1)
    schedule: str = choice(REQUIRED, ("cosine", "constant"))
    warmup: int = integer(REQUIRED, low=0)
    clip: float | None = real(REQUIRED, low=0, open_low=True, optional=True)
    trained: str = choice(REQUIRED, ("all", "tower"))
    crop: tuple[float, float] | None = interval(REQUIRED, optional=True)
    images: str = choice(REQUIRED, ("original", "square"))
    held_out: bool = flag(REQUIRED)
    steps: int = integer(REQUIRED, low=1)
    epochs: Mapping[str, int] = dataclasses.field(default_factory=dict)
    batches: Mapping[str, int] = dataclasses.field(default_factory=dict)
    joint: bool = False
    unconfirmed: str = ""

    def batch_of(self, task: str) -> int:
        """Return the number of images of a task in a step."""
        return self.batches.get(task, self.batch)

    def steps_of(self, task: str, images: int) -> int:
        """Return the number of steps on a task with so many training images; the last batch of an epoch may be smaller."""
        if task not in self.epochs:
            return self.steps
        return self.epochs[task] * math.ceil(images / self.batch_of(task))


@dataclasses.dataclass(frozen=True)
class FinetuneSettings:
    """How a fine-tuning runs.

    `seed` keys the order of the images and their crops. `precision`: "fp32", or "bf16" for mixed precision (weights,
    optimizer, logits and loss stay in float32). `chunk`: the largest number of images in one forward pass, None for the
    batch; gradients add up, so it changes results by rounding alone. Every `checkpoint_every` steps the state is stored
    (three times the weights) for a run that is killed; every `evaluate_every` steps, and before the first and after the
    last, held-out accuracy is measured, None for the first and the last alone. `overwrite` trains again what is there.
    """

    seed: int = 0
    precision: str = choice("fp32", tuple(PRECISIONS))
    chunk: int | None = integer(None, low=1, optional=True)
    checkpoint_every: int = integer(200, low=1)
    evaluate_every: int | None = integer(None, low=1, optional=True)
    overwrite: bool = False

    def __post_init__(self) -> None:
        verify(self, where="fine-tuning: ")


def names() -> list[str]:
    """Return the names of the recipes."""
    return list(_table())


def recipe(name: str, **changes: Any) -> Recipe:
    """Return the recipe of this name with some values replaced; a change is noted in its source.

    A new `batch` or `steps` holds for every task; without a crop, images are the squares. Raises InputError for an unknown
    name or value, and for originals without a crop.
    """
    table = _table()
    if name not in table:
        raise InputError(f"unknown recipe {name!r} of fine-tuning: {did_you_mean(str(name), table)}")
    chosen = table[name]
    changes = checked(Recipe, changes, f"recipe {name!r} of fine-tuning: ")
    if not changes:
        return chosen
    cleared: dict[str, Any] = {kept: {} for kept, key in (("batches", "batch"), ("epochs", "steps")) if key in changes}
    if changes.get("crop", chosen.crop) is None:
        if changes.get("images") == "original":
            raise InputError(f"recipe {name!r} crops nothing, and reads images as evaluation does: images=original needs a crop")
        cleared["images"] = "square"
    said = ", ".join(f"{key}={value}" for key, value in changes.items())
    return dataclasses.replace(chosen, **{**changes, **cleared}, source=f"{chosen.source}; changed: {said}")


@functools.cache
def _table() -> dict[str, Recipe]:
    entries = yaml.safe_load(Path(__file__).with_suffix(".yaml").read_text())
    for entry in entries.values():
        entry["crop"] = None if entry["crop"] is None else tuple(entry["crop"])
    return {name: Recipe(name, **entry) for name, entry in entries.items()}

"""What a fine-tuning is given, checked before it starts."""

from __future__ import annotations

import os
from collections.abc import Mapping

import numpy as np
import torch
from torch import Tensor, nn

from fusionbench_lite.adaptation.engine.core import call
from fusionbench_lite.adaptation.fitting import check_model
from fusionbench_lite.data import Originals, TaskData, fingerprint, originals
from fusionbench_lite.errors import InputError, MergeError, did_you_mean
from fusionbench_lite.finetuning.recipes import Recipe
from fusionbench_lite.finetuning.step_images import Normalise, Pool
from fusionbench_lite.models.heads import ZeroShotHead


def check_tasks(data: Mapping[str, TaskData], heads: Mapping[str, ZeroShotHead], recipe: Recipe) -> None:
    """Raise InputError for tasks that the recipe cannot train, or whose images, labels and head do not fit each other."""
    if not data:
        raise InputError("fine-tuning needs a task: give its data under its name")
    if len(data) > 1 and not recipe.joint:
        raise InputError(
            f"recipe {recipe.name!r} trains one expert, {len(data)} tasks are given ({', '.join(data)}): "
            "give one at a time, or take recipe 'joint' for one model of all"
        )
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        raise InputError(f"fine-tuning runs in one process, {os.environ['WORLD_SIZE']} were started: start one for each task")
    for task, entry in data.items():
        if task not in heads:
            raise InputError(f"task {task!r} has no head: {did_you_mean(task, heads)}")
        _check_images(task, entry)
        _check_head(task, entry, heads[task])
        first = next(iter(data))
        if heads[task].scale != heads[first].scale:
            raise InputError(
                f"the heads of tasks {first!r} and {task!r} have scales {heads[first].scale} and {heads[task].scale}: give them one"
            )


def _check_images(task: str, entry: TaskData) -> None:
    images, labels = entry.train_images, np.asarray(entry.train_labels)
    if len(images) == 0:
        raise InputError(f"task {task!r} has no training images: fine-tuning needs its training split")
    if len(images) != len(labels):
        raise InputError(f"task {task!r} has {len(images)} training images and {len(labels)} labels: load the task again")
    shape = tuple(images.shape)
    if images.dtype != np.uint8 or len(shape) != 4 or shape[3] != 3 or shape[1] != shape[2]:
        raise InputError(f"task {task!r}: training images must be square bytes uint8 [N, s, s, 3], got {images.dtype} {shape}")
    if labels.min() < 0 or labels.max() >= entry.num_classes:
        raise InputError(
            f"task {task!r}: labels from {labels.min()} to {labels.max()} do not fit {entry.num_classes} classes, "
            f"0 to {entry.num_classes - 1}"
        )


def _check_head(task: str, entry: TaskData, head: ZeroShotHead) -> None:
    if not isinstance(head, ZeroShotHead):
        raise InputError(f"the head of task {task!r} must be a frozen ZeroShotHead, got {type(head).__name__}")
    rows = head.weight.shape[0]
    if rows != entry.num_classes:
        raise InputError(
            f"the head of task {task!r} has {rows} classes, the data {entry.num_classes}: build it from the data's class names"
        )
    if not bool(torch.isfinite(head.weight).all()):
        raise InputError(f"the head of task {task!r} has values that are not finite: build it again")


def check_encoder(
    model: nn.Module, pretrained: Mapping[str, Tensor], data: Mapping[str, TaskData], heads: Mapping[str, ZeroShotHead],
    normalise: Normalise,
) -> None:
    """Raise InputError where weights, images or heads do not fit the model: by its tensors, then by one image of each task."""
    check_model(model, pretrained)
    lacking = [name for name in model.state_dict() if name not in pretrained]
    if lacking:
        raise InputError(
            f"the pretrained weights lack {lacking[0]!r} and {len(lacking) - 1} more of the model's tensors: "
            "give those of the whole vision model"
        )
    device = next(model.parameters()).device
    for task, entry in data.items():
        image = np.ascontiguousarray(entry.train_images[np.array([0])])
        try:
            with torch.no_grad():
                features = call(model, pretrained, normalise(torch.from_numpy(image).to(device)))
        except MergeError as error:
            raise InputError(f"task {task!r}: the model cannot read images of {image.shape[1:]} ({error})") from error
        wide, expected = features.shape[-1], heads[task].weight.shape[1]
        if wide != expected:
            raise InputError(
                f"the head of task {task!r} is {expected} wide, the model's features {wide}: "
                "build the head with the text tower of this model"
            )


def check_pools(pools: Mapping[str, Pool]) -> None:
    """Raise InputError for a task that has nothing left to train on."""
    for task, pool in pools.items():
        if len(pool.rows) == 0:
            raise InputError(
                f"task {task!r}: all {len(pool.data.train_labels)} training images are held out for validation: hold fewer out"
            )


def originals_of(task: str, entry: TaskData, recipe: Recipe) -> Originals | None:
    """Return what a recipe crops in place of a task's images; None where it crops those, or nothing.

    Images in memory, as from an archive or drawn, are the originals. Raises InputError for images that were cut from
    originals which are not at hand.
    """
    if recipe.crop is None or recipe.images == "square":
        return None
    images = entry.train_images
    given = originals(images)
    if given is None and fingerprint(images) is not None:
        raise InputError(
            f"task {task!r}: recipe {recipe.name!r} crops original images, but only the squares that were cut from them are at "
            "hand: set finetune.images=square, or load the task from its files"
        )
    return given

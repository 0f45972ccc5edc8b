"""Training the experts of the embedded suite, reproducible to the bit on one machine."""

from __future__ import annotations

import contextlib
import dataclasses
import math
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from fusionbench_lite.base.randomness import generator
from fusionbench_lite.data import TaskData, normalise
from fusionbench_lite.errors import InputError
from fusionbench_lite.fields import checked, integer, real

Report = Callable[[str, int, int], None]
THREADS = 2
"""At most so many threads train, whatever the machine has: the bits of a sum depend on how it is divided."""


@dataclasses.dataclass(frozen=True)
class Recipe:
    """How the experts of a task set are trained.

    Pretraining sees all tasks at once, `pretrain_batch` images of each in a step, with ambiguous labels: a part
    `ambiguity` of the classes of each task form random pairs, and an image of either is labelled half and half, as a
    caption that fits two classes would. That makes a pretrained model like CLIP: good features, weak zero-shot
    accuracy. Experts and the multi-task model then start from it with true labels. The heads stay frozen throughout,
    `head_scale` is the factor of their cosines. `shift` moves training images by up to so many pixels.
    """

    pretrain_steps: int = integer(400, low=0)
    pretrain_batch: int = integer(8, low=1)
    pretrain_lr: float = real(1e-3, low=0)
    ambiguity: float = real(0.5, low=0)
    finetune_steps: int = integer(300, low=0)
    finetune_batch: int = integer(32, low=1)
    finetune_lr: float = real(3e-4, low=0)
    multitask_steps: int = integer(300, low=0)
    multitask_batch: int = integer(8, low=1)
    multitask_lr: float = real(3e-4, low=0)
    weight_decay: float = real(0.01, low=0)
    warmup: int = integer(20, low=0)
    head_scale: float = real(20.0, low=0)
    shift: int = integer(0, low=0)


DRAWN = Recipe()
"""The recipe of the drawn tasks."""

FILES = Recipe(
    pretrain_steps=900, ambiguity=0.0, finetune_steps=1600, finetune_lr=2e-3, multitask_steps=900, multitask_lr=1e-3,
    weight_decay=0.05, shift=1,
)
"""The recipe of tasks that come from files: more steps, and augmentation against the small numbers of real images."""


def recipe_with(base: Recipe, changes: Mapping[str, Any] | None) -> Recipe:
    """Return the recipe with some numbers replaced; raises InputError for an unknown name or a number out of range."""
    checked(Recipe, changes or {}, "checkpoints.recipe.")
    return dataclasses.replace(base, **(changes or {}))  # as they are written: the keys of trained experts tell 1 from 1.0


@dataclasses.dataclass(frozen=True)
class Course:
    """One training: its name in reports and in random streams, steps, images of each task in a step, learning rate."""

    name: str
    steps: int
    batch: int
    lr: float


def train(
    model: nn.Module, heads: Mapping[str, nn.Module], data: Mapping[str, TaskData], recipe: Recipe, course: Course,
    seed: int, report: Report, targets: Mapping[str, Tensor] | None = None,
) -> None:
    """Train the encoder in place with AdamW, cosine decay after a warm-up, and gradients clipped at norm 1.

    The loss is the mean over tasks of the cross entropy; `targets` maps a task to the label distributions [C, C] of
    its classes where labels are not exact. The frozen heads and torch's random numbers are not touched. Raises
    InputError when the loss is not finite.
    """
    optimizer = torch.optim.AdamW(
        model.parameters(), lr=course.lr, betas=(0.9, 0.98), weight_decay=recipe.weight_decay
    )
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: _cosine(step, course.steps, recipe.warmup))
    streams = {task: generator(seed, course.name, task, "batches") for task in data}
    model.train()
    with fixed_threads():
        for step in range(course.steps):
            batches = {task: _batch(data[task], course.batch, recipe.shift, streams[task]) for task in data}
            features = model(torch.cat([images for images, _ in batches.values()])).split(course.batch)
            losses = [
                nn.functional.cross_entropy(heads[task](part), targets[task][labels] if targets else labels)
                for part, (task, (_, labels)) in zip(features, batches.items(), strict=True)
            ]
            loss = torch.stack(losses).mean()
            if not torch.isfinite(loss):
                raise InputError(f"training {course.name}: the loss is {loss.item()} at step {step + 1}; lower the rate")
            optimizer.zero_grad(set_to_none=True)
            loss.backward()  # type: ignore[no-untyped-call]
            nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            schedule.step()
            report(f"training {course.name}", step + 1, course.steps)
    model.eval()


def ambiguous_targets(classes: int, ambiguity: float, seed: int, task: str) -> Tensor:
    """Return the label distributions [C, C] of pretraining: random pairs of classes share their label."""
    order = generator(seed, task, "ambiguous pairs").permutation(classes)
    targets = torch.eye(classes)
    for pair in range(round(ambiguity * classes / 2)):
        both = torch.as_tensor(order[2 * pair : 2 * pair + 2])
        if len(both) == 2:
            targets[both[:, None], both] = 0.5
    return targets


def threads() -> int:
    """Return the number of threads that train: two, or one where torch has only one (OMP_NUM_THREADS=1)."""
    return min(THREADS, torch.get_num_threads())


@contextlib.contextmanager
def fixed_threads(count: int | None = None) -> Iterator[None]:
    """Train with so many threads, `threads()` where None."""
    before = torch.get_num_threads()
    torch.set_num_threads(count or threads())
    try:
        yield
    finally:
        torch.set_num_threads(before)


def _batch(data: TaskData, size: int, shift: int, stream: np.random.Generator) -> tuple[Tensor, Tensor]:
    index = stream.integers(len(data.train_labels), size=size)
    images = data.train_images[index]
    if shift:
        images = _shifted(images, shift, stream)
    return normalise(torch.from_numpy(images)), torch.from_numpy(data.train_labels[index])


def _shifted(images: np.ndarray, shift: int, stream: np.random.Generator) -> np.ndarray:
    """Return every image moved by up to `shift` pixels each way, its border repeated."""
    height, width = images.shape[1:3]
    rows = np.clip(np.arange(height) + stream.integers(-shift, shift + 1, (len(images), 1)), 0, height - 1)
    columns = np.clip(np.arange(width) + stream.integers(-shift, shift + 1, (len(images), 1)), 0, width - 1)
    moved: np.ndarray = images[np.arange(len(images))[:, None, None], rows[:, :, None], columns[:, None, :]]
    return moved


def _cosine(step: int, steps: int, warmup: int) -> float:
    return min(1.0, (step + 1) / max(1, warmup)) * 0.5 * (1 + math.cos(math.pi * step / max(1, steps)))

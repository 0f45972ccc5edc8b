"""Training the experts of the embedded suite, reproducible to the bit on one machine."""

from __future__ import annotations

import contextlib
import dataclasses
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from fusionbench_lite.base.randomness import generator
from fusionbench_lite.data import TaskData, normalise
from fusionbench_lite.errors import InputError, did_you_mean
from fusionbench_lite.fields import checked, choice, integer, kinds, names, real

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
    `head_scale` is the factor of their cosines. `shift` moves training images by up to so many pixels, `mirror` names tasks
    whose images may be mirrored. `shares`: a joint training reads as many images of every task, or in proportion to the
    square root of how many it has, as many in all. `decay`: weights that decay, all or matrices alone. `pretrain_warmup`: None
    is `warmup`. `positions`, `class_token` and `residual` scale what a fresh model has of them (`residual`: the matrices that
    write into the residual stream).
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
    mirror: tuple[str, ...] = names((), later=True)
    shares: str = choice("equal", ("equal", "sqrt"), later=True)
    decay: str = choice("all", ("all", "matrices"), later=True)
    pretrain_warmup: int | None = integer(None, low=0, optional=True, later=True)
    positions: float = real(1.0, low=0, later=True)
    class_token: float = real(1.0, low=0, later=True)
    residual: float = real(1.0, low=0, later=True)

    def known_by(self) -> dict[str, Any]:
        """Return the values that trained weights are known by: without fields that came later, where they are at their default."""
        later = {name: field.default for name, field in kinds(self).items() if field.metadata["later"]}
        return {name: value for name, value in dataclasses.asdict(self).items() if name not in later or value != later[name]}


DRAWN = Recipe()
"""The recipe of the drawn tasks."""

FILES = Recipe(
    pretrain_steps=3200, pretrain_batch=16, pretrain_lr=2e-3, pretrain_warmup=60, finetune_steps=220, finetune_batch=64,
    multitask_steps=1000, multitask_batch=16, weight_decay=0.05, decay="matrices", shift=1,
    mirror=("cifar10", "fer2013", "rsscn7", "flowers", "dtd10"), shares="sqrt", positions=6.0, class_token=0.2, residual=0.3,
)
"""The recipe of tasks that come from files: a long pretraining with ambiguous labels and short fine-tunings, because experts that
have gone far from each other do not merge, and augmentation against the small numbers of real images. Of the tasks of real32 it
names those whose images may be mirrored. docs/real32.md says how it was chosen."""


def recipe_of(tasks: Sequence[str], *, files: bool, changes: Mapping[str, Any]) -> Recipe:
    """Return the recipe of drawn tasks, or of tasks from files, with some values replaced.

    Raises InputError for an unknown name, a value out of range, and a task to be mirrored that is none of the tasks.
    """
    taken = checked(Recipe, changes, "checkpoints.recipe.")
    for name in taken.get("mirror", ()):
        if name not in tasks:
            raise InputError(f"checkpoints.recipe.mirror={name} is none of the tasks: {did_you_mean(name, tasks)}")
    # Numbers as they are written: the keys of trained experts tell 1 from 1.0.
    lists = {name: value for name, value in taken.items() if isinstance(value, tuple)}
    return dataclasses.replace(FILES if files else DRAWN, **{**changes, **lists})


@dataclasses.dataclass(frozen=True)
class Course:
    """One training: its name in reports and in random streams, steps, images of a task in a step on average, learning rate."""

    name: str
    steps: int
    batch: int
    lr: float
    warmup: int


def train(
    model: nn.Module, heads: Mapping[str, nn.Module], data: Mapping[str, TaskData], recipe: Recipe, course: Course,
    seed: int, report: Report, targets: Mapping[str, Tensor] | None = None,
) -> None:
    """Train the encoder in place with AdamW, cosine decay after a warm-up, and gradients clipped at norm 1.

    The loss is the mean cross entropy over the images of a step; `targets` maps a task to the label distributions [C, C] of
    its classes where labels are not exact. The frozen heads and torch's random numbers are not touched. Raises
    InputError when the loss is not finite.
    """
    optimizer = torch.optim.AdamW(_parameters(model, recipe), lr=course.lr, betas=(0.9, 0.98))
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: _cosine(step, course.steps, course.warmup))
    sizes = _sizes(data, course.batch, recipe.shares)
    streams = {task: generator(seed, course.name, task, "batches") for task in data}
    model.train()
    with fixed_threads():
        for step in range(course.steps):
            batches = {
                task: _batch(data[task], sizes[task], recipe.shift, task in recipe.mirror, streams[task]) for task in data
            }
            features = model(torch.cat([images for images, _ in batches.values()])).split(list(sizes.values()))
            losses = [
                nn.functional.cross_entropy(heads[task](part), targets[task][labels] if targets else labels)
                for part, (task, (_, labels)) in zip(features, batches.items(), strict=True)
            ]
            loss = _mean(losses, list(sizes.values()))
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


def scaled(model: nn.Module, recipe: Recipe) -> nn.Module:
    """Return a fresh encoder with the scales of a recipe on its positions, class token and residual matrices."""
    factors = {
        "positional_embedding": recipe.positions, "class_embedding": recipe.class_token, "attn.out_proj.weight": recipe.residual,
        "mlp.c_proj.weight": recipe.residual,
    }
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            factor = next((factor for end, factor in factors.items() if name.endswith(end)), 1.0)
            if factor != 1.0:
                parameter.mul_(factor)
    return model


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


def _parameters(model: nn.Module, recipe: Recipe) -> list[dict[str, Any]]:
    """Return the groups of the optimizer. Biases, norms and embeddings are no matrices."""
    if recipe.decay == "all":
        return [{"params": list(model.parameters()), "weight_decay": recipe.weight_decay}]
    parts: dict[bool, list[nn.Parameter]] = {True: [], False: []}
    for name, parameter in model.named_parameters():
        parts[parameter.ndim > 1 and "embedding" not in name].append(parameter)
    return [{"params": those, "weight_decay": recipe.weight_decay * decays} for decays, those in parts.items()]


def _sizes(data: Mapping[str, TaskData], batch: int, shares: str) -> dict[str, int]:
    """Return how many images of each task a step reads: `batch`, or by the square root of its training images, at least one."""
    if shares == "equal":
        return dict.fromkeys(data, batch)
    roots = {task: math.sqrt(len(entry.train_labels)) for task, entry in data.items()}
    each = batch * len(data) / sum(roots.values())
    return {task: max(1, round(each * root)) for task, root in roots.items()}


def _mean(losses: list[Tensor], sizes: list[int]) -> Tensor:
    """Return the mean over images of the tasks' mean losses; the sum is that of equal parts where they are equal, to the bit."""
    if len(set(sizes)) == 1:
        return torch.stack(losses).mean()
    weights = torch.tensor(sizes, dtype=torch.float32) / sum(sizes)
    return torch.stack(losses) @ weights


def _batch(data: TaskData, size: int, shift: int, mirror: bool, stream: np.random.Generator) -> tuple[Tensor, Tensor]:
    index = stream.integers(len(data.train_labels), size=size)
    images = data.train_images[index]
    if shift:
        images = _shifted(images, shift, stream)
    if mirror:
        turned = stream.random(size) < 0.5
        images = np.where(turned[:, None, None, None], images[:, :, ::-1], images)
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

"""Models of published sizes with drawn weights and images, handed to the engine as a run hands it files.

Experts are drawn anew at every access, by their names, on the device: twenty of ViT-L/14 take no 24 GB of disk, and reading
files is not in the figures. Costs do not depend on the values.
"""

from __future__ import annotations

import zlib
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from fusionbench_lite.data import TaskData, vision
from fusionbench_lite.models import clip
from fusionbench_lite.models.heads import ZeroShotHead
from fusionbench_lite.resources import of_size
from fusionbench_lite.weights.architecture import Architecture
from fusionbench_lite.weights.experts import Experts
from fusionbench_lite.weights.placed import PlacedWeights
from fusionbench_lite.weights.specs import TensorSpec

TINY = clip.ClipSize(image=64, patch=32, width=64, layers=2, heads=2, output=64, text_width=64, text_layers=2, text_heads=2)
SIZES = {**clip.SIZES, "tiny": TINY}
"""The published sizes, and one for trying out the program and for what any measurement imports first."""

BASE, NORM = 0.02, 1e-3
"""Root mean squares of the entries of pretrained weights and of task vectors."""

DRAWN = 64
"""Images that are drawn; more of them are these again."""

_SPARE = 1 << 20
_SEED = 0
_VARIANT = "tall"


def encoder(model: str, layout: str) -> Architecture:
    """Return what a plan has to know of a model."""
    return of_size(model, SIZES[model], layout)


def task_names(count: int) -> tuple[str, ...]:
    """Return the first so many of the 20 tasks."""
    return vision.names()[:count]


def classes(count: int) -> tuple[int, ...]:
    """Return the numbers of classes of the first so many tasks."""
    return tuple(vision.task(name, _VARIANT).classes for name in task_names(count))


class Drawn(Mapping[str, Tensor]):
    """A state dict whose tensors are drawn when they are read: pieces of `noise`, at a place that the names decide.

    `task` None gives the pretrained weights θ0, a name an expert θ0 + τ. Every access returns a new tensor.
    """

    def __init__(self, shapes: Mapping[str, tuple[int, ...]], noise: Tensor, task: str | None = None) -> None:
        self.shapes, self.noise, self.task = shapes, noise, task

    def __getitem__(self, name: str) -> Tensor:
        drawn = BASE * self._piece("", name)
        if len(self.shapes[name]) == 1 and name.endswith("weight"):  # a norm's
            drawn += 1
        return drawn if self.task is None else drawn.add_(self._piece(self.task, name), alpha=NORM)

    def _piece(self, who: str, name: str) -> Tensor:
        shape = self.shapes[name]
        start = zlib.crc32(f"{who}/{name}".encode()) % _SPARE
        return self.noise[start : start + int(np.prod(shape))].view(shape)

    def spec(self, name: str) -> TensorSpec:
        """Return shape and dtype."""
        return TensorSpec(self.shapes[name], self.noise.dtype)

    def __iter__(self) -> Iterator[str]:
        return iter(self.shapes)

    def __len__(self) -> int:
        return len(self.shapes)


def noise(shapes: Mapping[str, tuple[int, ...]], device: torch.device) -> Tensor:
    """Return standard normal numbers, enough for the largest tensor at any place."""
    most = max(int(np.prod(shape)) for shape in shapes.values())
    return torch.randn(most + _SPARE, generator=torch.Generator(device).manual_seed(_SEED), device=device)


def experts(shapes: Mapping[str, tuple[int, ...]], drawn: Tensor, tasks: tuple[str, ...]) -> Experts:
    """Return the experts of the tasks, read tensor by tensor as from files."""

    def placed(task: str | None) -> PlacedWeights:
        return PlacedWeights(Drawn(shapes, drawn, task), drawn.device, "disk")

    return Experts(placed(None), {task: placed(task) for task in tasks})


def model(size: clip.ClipSize, layout: str, pretrained: Mapping[str, Tensor], device: torch.device) -> nn.Module:
    """Return the frozen encoder with these weights, built where it stays."""
    with device:
        built = clip.build(size, layout)
    with torch.no_grad():
        for name, tensor in built.state_dict().items():
            tensor.copy_(pretrained[name])
    return built.requires_grad_(False).eval()


def heads(size: clip.ClipSize, tasks: tuple[str, ...], device: torch.device) -> dict[str, ZeroShotHead]:
    """Return a head of every task with its number of classes."""
    rows = dict(zip(tasks, classes(len(tasks)), strict=True))
    return {task: ZeroShotHead(torch.randn(count, size.output), 100.0).to(device) for task, count in rows.items()}


class Images:
    """`count` images uint8 [count, s, s, 3], which repeat those drawn; rows are copied, as from the decoded cache."""

    dtype, ndim = np.dtype(np.uint8), 4

    def __init__(self, drawn: NDArray[np.uint8], count: int, fingerprint: str) -> None:
        self.drawn, self.count, self.fingerprint = drawn, count, fingerprint

    @property
    def shape(self) -> tuple[int, ...]:
        """[count, s, s, 3]."""
        return (self.count, *self.drawn.shape[1:])

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, rows: Any) -> NDArray[np.uint8]:
        chosen: NDArray[np.uint8] = self.drawn[np.arange(self.count)[rows] % len(self.drawn)]
        return chosen


def pixels(size: clip.ClipSize) -> NDArray[np.uint8]:
    """Return the images that are drawn."""
    return np.random.default_rng(_SEED).integers(0, 256, (DRAWN, size.image, size.image, 3), np.uint8)


def data(tasks: tuple[str, ...], drawn: NDArray[np.uint8], count: int) -> dict[str, TaskData]:
    """Return tasks with `count` test images each, of which no two share a pass."""
    labels = np.zeros(count, np.int64)
    return {
        task: TaskData(
            name=task, classes=tuple(map(str, range(number))), train_images=drawn[:0], train_labels=labels[:0],
            test_images=Images(drawn, count, task), test_labels=labels,  # type: ignore[arg-type]
        )
        for task, number in zip(tasks, classes(len(tasks)), strict=True)
    }

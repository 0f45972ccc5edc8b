"""The labelled images of every step of a fine-tuning.

What a step reads is a function of (seed, task, step): a run that was killed reads on where it stopped. Images of the next
step are read by a thread while the present one is computed.
"""

from __future__ import annotations

import dataclasses
import functools
import threading
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from fusionbench_lite.adaptation.engine.procedure import Batch, Examples
from fusionbench_lite.base.randomness import generator
from fusionbench_lite.data import Originals, TaskData
from fusionbench_lite.finetuning.images import boxes, cropped, cropped_originals

Rows = NDArray[np.int64]
Read = dict[str, tuple[NDArray[np.uint8], NDArray[np.int64]]]
"""The images and labels of a step, by task."""
Normalise = Callable[[Tensor], Tensor]
"""`normalise(images)` returns what the model takes for images uint8 [B, H, W, 3]."""


class Epochs:
    """Shuffled passes over `size` examples, a new order each pass, the last batch of a pass as small as it comes.

    The order is that of the engine's "epoch" streams; that of the present pass is kept.
    """

    def __init__(self, size: int, batch: int, seed: int, task: str) -> None:
        self.size, self.batch, self.key = size, min(batch, size), (seed, task, "epoch")
        self._order: tuple[int, Rows] | None = None

    def rows(self, step: int) -> Rows:
        """Return the examples of a step (from 0)."""
        turn, position = divmod(step, -(-self.size // self.batch))
        if self._order is None or self._order[0] != turn:
            self._order = turn, generator(*self.key, turn).permutation(self.size)
        return self._order[1][position * self.batch : (position + 1) * self.batch]


@dataclasses.dataclass(frozen=True)
class Pool:
    """The training examples of one task: those of `rows` in `data`, `batch` of them in a step.

    `original` gives the images that are cropped, as they were before they were resized and cut for evaluation; without it
    those of `data` are.
    """

    data: TaskData
    rows: Rows
    batch: int
    original: Originals | None = None

    @functools.cached_property
    def labels(self) -> NDArray[np.int64]:
        """The labels of all training images."""
        return np.asarray(self.data.train_labels, dtype=np.int64)


class StepImages:
    """`batches(step)` returns one batch of every task, its images cropped and normalised on the device.

    A random crop acts on `Pool.original`, where there is one, as in the papers' training. Else it acts on the images of the
    data: where these are squares that were cut from originals, a margin outside is never seen, and boxes are drawn for the
    square's sides. `threads` decode originals, as many as there are processors by default.
    """

    def __init__(
        self, pools: Mapping[str, Pool], crop: tuple[float, float] | None, seed: int, normalise: Normalise, device: torch.device,
        threads: int | None = None,
    ) -> None:
        self.pools, self.crop, self.seed, self.normalise, self.device = pools, crop, seed, normalise, device
        self.threads = threads
        self._epochs = {task: Epochs(len(pool.rows), pool.batch, seed, task) for task, pool in pools.items()}
        self._reading = threading.Lock()

    @contextmanager
    def reading_ahead(self, steps: int) -> Iterator[Callable[[int], list[Batch]]]:
        """Yield a function as this object that has the images of the next step, below `steps`, read by a thread."""
        with ThreadPoolExecutor(1, "fine-tuning images") as thread:
            ahead: dict[int, Future[Read]] = {}

            def batches(step: int) -> list[Batch]:
                reading = ahead.pop(step, None) or thread.submit(self._read, step)
                images = reading.result()
                ahead.clear()
                if step + 1 < steps:
                    ahead[step + 1] = thread.submit(self._read, step + 1)
                return [self._prepared(step, images)]

            yield batches

    def pixels(self, task: str, rows: Rows) -> NDArray[np.uint8]:
        """Return decoded images of a task, uint8 [B, H, W, 3]; threads take turns."""
        with self._reading:
            return np.ascontiguousarray(self.pools[task].data.train_images[rows])

    def __call__(self, step: int) -> list[Batch]:
        """Return the batches of a step (from 0)."""
        return [self._prepared(step, self._read(step))]

    def images(self, step: int) -> dict[str, Tensor]:
        """Return the cropped images of a step, uint8 [B, H, W, 3]."""
        return {task: self._cropped(task, step, images) for task, (images, _) in self._read(step).items()}

    def _read(self, step: int) -> Read:
        batches: Read = {}
        for task, pool in self.pools.items():
            rows = pool.rows[self._epochs[task].rows(step)]
            batches[task] = self._images(task, pool, rows, step), pool.labels[rows]
        return batches

    def _images(self, task: str, pool: Pool, rows: Rows, step: int) -> NDArray[np.uint8]:
        if pool.original is None or self.crop is None:
            return self.pixels(task, rows)
        size, key = pool.data.train_images.shape[1], (self.seed, task, "crop", step)
        images, sound = cropped_originals(pool.original, rows, self.crop, size, *key, threads=self.threads)
        if not sound.all():
            raise pool.original.refusal(rows[~sound])
        return images

    def _cropped(self, task: str, step: int, images: NDArray[np.uint8]) -> Tensor:
        pixels = torch.from_numpy(images).to(self.device)
        if self.crop is None or self.pools[task].original is not None:
            return pixels
        sizes = np.broadcast_to(np.array(images.shape[1:3]), (len(images), 2))
        return cropped(pixels, boxes(sizes, self.crop, self.seed, task, "crop", step))

    def _prepared(self, step: int, read: Read) -> Batch:
        return {
            task: Examples(
                self.normalise(self._cropped(task, step, images)), None, torch.from_numpy(labels).to(self.device)
            )
            for task, (images, labels) in read.items()
        }

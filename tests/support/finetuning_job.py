"""A small fine-tuning: a function for tests, and a file for those that kill it or run two at once.

    python -m tests.support.finetuning_job FOLDER TASK [STOP_AT [WHERE]]

TASK is dtd, svhn, both joined by a comma, or "dtd originals", whose images are cropped as they are in a parquet file. With
STOP_AT the process kills itself with SIGKILL at that step: before its images are read ("read"), after the weights were
updated and before anything is stored ("report"), or in the middle of storing them ("save").
"""

from __future__ import annotations

import functools
import io
import os
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import torch
from PIL import Image

from fusionbench_lite.data import TaskData
from fusionbench_lite.data.vision.cache import Decoded
from fusionbench_lite.data.vision.images import Deferred, Images, Opened
from fusionbench_lite.data.vision.originals import SplitOriginals
from fusionbench_lite.data.vision.packed import Parquet
from fusionbench_lite.finetuning.job import finetune
from fusionbench_lite.finetuning.recipes import FinetuneSettings, Recipe, recipe
from fusionbench_lite.models import clip
from fusionbench_lite.models.heads import ZeroShotHead, random_embeddings
from tests.support.vision_data import write_parquet

SIZE = clip.ClipSize(image=32, patch=16, width=32, layers=2, heads=4, output=16, text_width=32, text_layers=1, text_heads=2)
TASKS = ("dtd", "svhn")
IMAGES, HELD_OUT, CLASSES, STEPS, EVERY = 90, 20, 4, 23, 4


@functools.cache
def pretrained() -> dict[str, torch.Tensor]:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return {name: tensor.clone() for name, tensor in clip.build(SIZE, "packed").state_dict().items()}


def task_data(task: str, images: int = IMAGES, size: int = 32) -> TaskData:
    """Noisy pictures of a few prototypes, one for each class."""
    stream = np.random.default_rng(TASKS.index(task))
    labels = np.arange(images) % CLASSES
    prototypes = stream.integers(0, 256, (CLASSES, size, size, 3))
    pictures = np.clip(prototypes[labels] + stream.normal(0, 40, (images, size, size, 3)), 0, 255).astype(np.uint8)
    return TaskData(
        name=task, classes=tuple("abcd"), train_images=pictures, train_labels=labels, test_images=pictures[:8],
        test_labels=labels[:8],
    )


def jpegs(task: str, images: int = IMAGES) -> list[bytes]:
    """The pictures of a task as JPEG files of several sizes, wide and tall."""
    data, found = task_data(task, images), []
    for row, picture in enumerate(data.train_images):
        target = io.BytesIO()
        Image.fromarray(picture).resize((40 + row % 17, 60 - row % 23)).save(target, "JPEG", quality=90)
        found.append(target.getvalue())
    return found


def with_originals(folder: Path, task: str, contents: list[bytes | None] | None = None) -> tuple[TaskData, Decoded]:
    """The data of a task whose training images are squares of 32 x 32 from JPEG files in folder/pictures, and their cache."""
    plain, file = task_data(task), folder / "pictures" / f"{task}.parquet"
    if not file.exists():
        write_parquet(file, contents or jpegs(task), plain.train_labels.tolist(), None, row_group=7)
    about = {"task": task, "where": f"the pictures of {task}"}
    decoded = Decoded(folder / "pictures" / task, Parquet([file], "image"), about, 32)
    deferred = Deferred(lambda: IMAGES, 32, lambda: Opened(decoded, np.arange(IMAGES), plain.train_labels))
    images: Any = Images(deferred, lambda: f"pictures of {task}", SplitOriginals(deferred))
    return TaskData(
        name=task, classes=plain.classes, train_images=images, train_labels=plain.train_labels, test_images=plain.test_images,
        test_labels=plain.test_labels,
    ), decoded


def head(task: str, width: int = SIZE.output, classes: int = CLASSES) -> ZeroShotHead:
    return ZeroShotHead(random_embeddings(classes, width, 7 + TASKS.index(task)), 100.0)


def quick(name: str = "ta", **changes: Any) -> Recipe:
    return recipe(name, **{"lr": 1e-3, "batch": 12, "steps": STEPS, "warmup": 4, **changes})


def train(
    folder: Path, tasks: str = "dtd", how: Recipe | None = None, settings: FinetuneSettings | None = None, **arguments: Any
) -> Path:
    """Fine-tune on one task, or on several whose names are joined by a comma; "dtd originals" crops those of dtd."""
    tasks, _, originals = tasks.partition(" ")
    names = tasks.split(",")
    given = {
        "heads": {task: head(task) for task in names},
        "data": {task: with_originals(folder, task)[0] if originals else task_data(task) for task in names},
        "validation": {task: np.arange(HELD_OUT) for task in names}, "model_name": "tiny", "pretrained": pretrained(),
        "model": arguments.pop("model", None) or clip.build(SIZE, "packed"), **arguments,
    }
    how = how or quick("joint" if len(names) > 1 else "ta", **({"batch": 6} if len(names) > 1 else {}))
    settings = settings or FinetuneSettings(checkpoint_every=EVERY, evaluate_every=10)
    return finetune(
        given.pop("model"), given.pop("pretrained"), given.pop("heads"), given.pop("data"), how, settings, folder=folder, **given
    )


def stopping(step: int, where: str, stop: Callable[[], None], patch: Callable[[Any, str, Any], None]) -> Callable[[Any], None]:
    """Return a report, and patch what is needed, so that `stop` is called at a step."""
    from fusionbench_lite.adaptation.engine import fit
    from fusionbench_lite.finetuning.step_images import StepImages

    if where == "read":
        read = StepImages._read
        patch(StepImages, "_read", lambda self, number: stop() if number == step else read(self, number))
    if where == "save":
        save = torch.save

        def broken(checkpoint: Any, file: BinaryIO) -> None:
            save(checkpoint, file)
            if len(checkpoint["adaptation"]["history"]["losses"]) >= step:
                file.truncate(1000)
                stop()

        patch(fit.torch, "save", broken)
    return lambda status: stop() if where == "report" and status.step == step else None


def main(folder: str, tasks: str, stop_at: str = "0", where: str = "report") -> None:
    torch.set_num_threads(1)
    report = stopping(int(stop_at), where, lambda: os.kill(os.getpid(), signal.SIGKILL), setattr)
    train(Path(folder), tasks, report=report)


if __name__ == "__main__":
    main(*sys.argv[1:])

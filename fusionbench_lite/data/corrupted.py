"""Test images of tasks that are held in memory, corrupted as published ones are (`vision.corruptions`), at their own resolution.

The parameters are those of CIFAR-10-C, made for images of 32 x 32 pixels, which is what the embedded tasks have: nothing is scaled.
"""

from __future__ import annotations

import dataclasses

import numpy as np

from fusionbench_lite.base.randomness import generator
from fusionbench_lite.data.arrays import TaskData
from fusionbench_lite.data.vision.corruptions import corrupt


def corrupted(data: TaskData, name: str, severity: int, seed: int) -> TaskData:
    """Return a task with corrupted test images, uint8 [N, S, S, 3]; training images stay clean.

    What is drawn depends on seed, task and the place of an image in the split, so that fewer of them are corrupted alike.
    Raises InputError for an unknown corruption or severity, and where OpenCV is missing, which spatter needs.
    """
    images = [
        corrupt(image, name, severity, generator(seed, data.name, "corruption", row)) for row, image in enumerate(data.test_images)
    ]
    height, width = data.test_images.shape[1:3]
    note = f"{name} was drawn at {height} x {width} pixels (severity {severity}, seed {seed})."
    return dataclasses.replace(data, test_images=np.stack(images), caveats=(*data.caveats, note))

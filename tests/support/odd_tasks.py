"""Small task files of a user's own, under any names."""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path

import numpy as np

RECIPE = "checkpoints.recipe={pretrain_steps: 2, finetune_steps: 2, multitask_steps: 2}"


def write(folder: Path, names: Iterable[str], seed: int = 0) -> Path:
    """Write NAME.npz and NAME.json of every task, 12 images of 3 classes in each split; returns the folder."""
    folder.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(seed)
    for name in names:
        arrays = {f"{part}_images": rng.integers(0, 255, (12, 32, 32, 3), dtype=np.uint8) for part in ("train", "test")}
        arrays |= {f"{part}_labels": np.arange(12) % 3 for part in ("train", "test")}
        np.savez(folder / f"{name}.npz", **arrays)
        (folder / f"{name}.json").write_text(json.dumps({"classes": ["x", "y", "z"]}))
    return folder

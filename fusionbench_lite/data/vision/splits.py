"""The validation split that the published code bases take from the training split."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

CAP = 5000
_FRACTION = 0.1


def validation_rows(size: int, cap: int | None = CAP) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Return the rows of a training split of `size` images that stay in training and those of validation.

    As `torch.utils.data.random_split` with a generator seeded 0: 10 % rounded down, at most `cap` (None: FusionBench, no
    limit). The rows are in the drawn order; which images they are depends on the order of the training files.
    """
    import torch

    held = int(size * _FRACTION)
    held = held if cap is None else min(held, cap)
    order = torch.randperm(size, generator=torch.Generator().manual_seed(0)).numpy()
    return order[: size - held], order[size - held :]

"""Model Breadcrumbs: outliers and small entries of the task vectors removed (Davari and Belilovsky 2024)."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from typing import TYPE_CHECKING

from fusionbench_lite.fields import choice, real
from fusionbench_lite.lazy import torch
from fusionbench_lite.registry import method
from fusionbench_lite.weights.experts import BLOCK, Experts

if TYPE_CHECKING:
    from torch import Tensor


@dataclasses.dataclass(frozen=True)
class Breadcrumbs:
    """The settings of Breadcrumbs, the centre of the released code's search.

    `keep`: β, fraction of a row that is kept. `outliers`: γ, fraction of the largest entries removed before.
    `scaling`: α. `granularity`: a row is one along the last dimension ("row", the released code) or the whole tensor
    ("tensor", the paper's layers).
    """

    keep: float = real(0.15, low=0, high=1, open_low=True)
    outliers: float = real(0.006, low=0, high=1, open_high=True)
    scaling: float = real(0.2)
    granularity: str = choice("row", ("row", "tensor"))


@method("breadcrumbs", Breadcrumbs, label="Model Breadcrumbs")
def breadcrumbs(experts: Experts, h: Breadcrumbs) -> Iterator[tuple[str, Tensor]]:
    """θ = θ0 + α Σ_t τ̃_t: of each row of n entries the ⌊γn⌋ largest magnitudes go, the next ⌊βn⌋ stay, the rest go.

    Of equal magnitudes at a border the first counts as larger; a tensor with no dimension is not masked. Cost:
    O(Td log n), one pass.
    """
    for name in experts.pending:
        if not experts.specs[name].shape:
            yield name, experts.combination(name, [h.scaling] * len(experts))
            continue
        base = experts.base(name)
        length = base.shape[-1] if h.granularity == "row" else base.numel()
        total = torch.zeros_like(base).reshape(-1, length)  # [rows, length]
        first, kept = int(h.outliers * length), int(h.keep * length)
        for task in experts.tasks:
            rows = experts.task_vector(task, name).reshape(-1, length)  # [rows, length]
            # The order of a few rows at a time: it takes three times the memory of what is ordered.
            parts, targets = (torch.split(tensor, max(1, BLOCK // length)) for tensor in (rows, total))
            for part, target in zip(parts, targets, strict=True):
                order = part.abs().argsort(dim=1, descending=True, stable=True)[:, first : first + kept]
                target.scatter_add_(1, order, part.gather(1, order))
        yield name, base + h.scaling * total.reshape(base.shape)

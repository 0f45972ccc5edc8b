"""MagMax: the entry of largest magnitude among the task vectors (Marczak et al. 2024)."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from typing import TYPE_CHECKING

from fusionbench_lite.fields import real
from fusionbench_lite.lazy import torch
from fusionbench_lite.registry import method
from fusionbench_lite.weights.experts import Experts

if TYPE_CHECKING:
    from torch import Tensor


@dataclasses.dataclass(frozen=True)
class MagMax:
    """`scaling`: λ; 0.5 is the value of the released script for eight tasks."""

    scaling: float = real(0.5)


@method("magmax", MagMax, label="MagMax")
def magmax(experts: Experts, h: MagMax) -> Iterator[tuple[str, Tensor]]:
    """θ = θ0 + λ τ_m, each entry of τ_m that of the task whose entry is largest in magnitude; the later task at a tie.

    Cost: O(Td), one pass.
    """
    for name in experts.pending:
        merged = experts.new(name)
        for part, block in experts.blocks(name):
            largest = block[0]
            for row in block[1:]:
                torch.where(row.abs() >= largest.abs(), row, largest, out=largest)
            merged[part] = largest
        yield name, experts.base(name) + h.scaling * merged.reshape(experts.shape(name))

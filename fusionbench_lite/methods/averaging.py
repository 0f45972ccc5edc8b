"""Weight averaging (Wortsman et al. 2022) and task arithmetic (Ilharco et al. 2023)."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from typing import TYPE_CHECKING

from fusionbench_lite.fields import real
from fusionbench_lite.registry import NoHyperparameters, method
from fusionbench_lite.weights.experts import Experts

if TYPE_CHECKING:
    from torch import Tensor


@method("weight_averaging", label="Weight averaging")
def weight_averaging(experts: Experts, h: NoHyperparameters) -> Iterator[tuple[str, Tensor]]:
    """θ = (1/T) Σ_t θ_t for every tensor (Wortsman et al. 2022). The pretrained weights are not used.

    Cost: O(Td), one pass.
    """
    for name in experts.pending:
        yield name, experts.mean(name)


@dataclasses.dataclass(frozen=True)
class TaskArithmetic:
    """`scaling`: λ, one factor for the sum of the task vectors; 0.3 is the value of the papers' vision tables."""

    scaling: float = real(0.3)


@method("task_arithmetic", TaskArithmetic, label="Task arithmetic")
def task_arithmetic(experts: Experts, h: TaskArithmetic) -> Iterator[tuple[str, Tensor]]:
    """θ = θ0 + λ Σ_t τ_t for every tensor (Ilharco et al. 2023, Section 2).

    Cost: O(Td), one pass.
    """
    for name in experts.pending:
        yield name, experts.combination(name, [h.scaling] * len(experts))

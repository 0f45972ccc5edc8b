"""RegMean: least squares between the outputs of the merged layer and those of the experts (Jin et al. 2023)."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING

from fusionbench_lite.errors import MergeError, did_you_mean
from fusionbench_lite.fields import choice, real
from fusionbench_lite.lazy import torch
from fusionbench_lite.methods.fisher import check_tasks, check_tensor
from fusionbench_lite.registry import method
from fusionbench_lite.weights.experts import Experts
from fusionbench_lite.weights.linalg import pseudo_inverse

if TYPE_CHECKING:
    from torch import Tensor


@dataclasses.dataclass(frozen=True)
class RegMean:
    """The settings of RegMean.

    `off_diagonal`: a, what is left of the Gram matrices off the diagonal; 0.95 for CLIP, 0.6 for GPT-2. `square`: which
    dimension of a square weight its inputs are, the last (Linear) or the first (GPT-2's Conv1D); other shapes tell.
    """

    off_diagonal: float = real(0.95, low=0, high=1)
    square: str = choice("last", ("last", "first"))


@method("regmean", RegMean, inputs=("gram",), label="RegMean")
def regmean(
    experts: Experts, h: RegMean, gram: Mapping[str, Mapping[str, Tensor]]
) -> Iterator[tuple[str, Tensor]]:
    """W = [(Σ_t G̃_t)⁻¹ Σ_t G̃_t W_tᵀ]ᵀ with G̃ = a G + (1 - a) diag(G); tensors without a Gram matrix are averaged.

    `gram` holds the mean products of a layer's inputs, {task: {weight name: G [n, n]}}, n the input dimension: the
    last of a Linear weight, the first of a Conv1D weight (`fusionbench_lite.statistics.gram_matrices`). Where the sum
    is singular, directions that no task's inputs have keep the average. Cost: O(Tmn² + n³) per matrix, and one
    forward pass per batch for the statistics (256 images a task).
    """
    listed = _check(experts, gram)
    for name in experts.pending:
        mean = experts.mean(name)
        if name not in listed:
            yield name, mean
            continue
        rows, columns = mean.shape
        last = h.square == "last" if rows == columns else len(gram[experts.tasks[0]][name]) == columns
        middle = (mean if last else mean.T).double().cpu()
        total = torch.zeros((middle.shape[1],) * 2, dtype=torch.float64)
        product = torch.zeros_like(middle)
        for task in experts.tasks:
            inner = gram[task][name].to(total)
            inner = h.off_diagonal * inner + (1 - h.off_diagonal) * torch.diag(inner.diagonal())
            weights = experts.expert(task, name).cpu()
            product += ((weights if last else weights.T) - middle) @ inner
            total += inner
        merged = middle + product @ pseudo_inverse(total, f"the summed Gram matrices of {name!r}")
        yield name, (merged if last else merged.T).to(mean)


def _check(experts: Experts, gram: Mapping[str, Mapping[str, Tensor]]) -> list[str]:
    """Refuse statistics that do not fit the experts; return the names they list, the same for every task."""
    check_tasks("gram", experts, gram)
    listed = list(gram[experts.tasks[0]])
    for task in experts.tasks:
        for name, inner in gram[task].items():
            if name not in listed:
                raise MergeError(f"gram of task {task!r} has {name!r}, that of task {experts.tasks[0]!r} has not: give both")
            if name not in experts.names or len(experts.shape(name)) != 2:
                matrices = [matrix for matrix in experts.names if len(experts.shape(matrix)) == 2]
                raise MergeError(f"gram of task {task!r} has {name!r}, which is no weight matrix: {did_you_mean(name, matrices)}")
            rows, columns = experts.shape(name)
            side = inner.shape[0] if isinstance(inner, torch.Tensor) and inner.dim() == 2 else columns
            check_tensor("gram", task, name, inner, (rows, rows) if side == rows != columns else (columns, columns))
            if len(inner) != len(gram[experts.tasks[0]][name]):
                sizes = f"{len(inner)} inputs, that of task {experts.tasks[0]!r} {len(gram[experts.tasks[0]][name])}"
                raise MergeError(f"gram of task {task!r}: {name!r} has {sizes}: compute both from the same layer")
        for name in listed:
            if name not in gram[task]:
                raise MergeError(f"gram of task {task!r} lacks {name!r}, that of task {experts.tasks[0]!r} has it: give both")
    return listed

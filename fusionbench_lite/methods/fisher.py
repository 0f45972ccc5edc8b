"""Fisher merging: every weight averaged by its importance to each task (Matena and Raffel 2022)."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING

from fusionbench_lite.errors import MergeError, did_you_mean
from fusionbench_lite.fields import flag, real
from fusionbench_lite.lazy import torch
from fusionbench_lite.registry import method
from fusionbench_lite.weights import kinds
from fusionbench_lite.weights.experts import Experts

if TYPE_CHECKING:
    from torch import Tensor


@dataclasses.dataclass(frozen=True)
class FisherMerging:
    """`epsilon`: added to every Fisher value, absolute, so it pulls towards the plain mean. `normalize`: whether each
    task's Fisher is divided by its norm over the model."""

    epsilon: float = real(1e-6, low=0)
    normalize: bool = flag(True)


@method("fisher_merging", FisherMerging, inputs=("fisher",), label="Fisher merging")
def fisher_merging(
    experts: Experts, h: FisherMerging, fisher: Mapping[str, Mapping[str, Tensor]]
) -> Iterator[tuple[str, Tensor]]:
    """θ = Σ_t w_t (F_t + ε) θ_t / Σ_t w_t (F_t + ε), w_t ∝ 1 / (‖F_t‖ + ε) where normalised.

    `fisher` holds the diagonal Fisher information of every expert, {task: {name: F}} with every floating-point tensor
    in its shape (`fusionbench_lite.statistics.diagonal_fisher`). A weight that matters to no task takes the plain mean.
    Cost: O(Td), and one backward pass per batch for the statistics (256 images a task).
    """
    _check(experts, fisher)
    weights = dict.fromkeys(experts.tasks, 1.0)
    if h.normalize:
        for task in experts.tasks:
            squares = (torch.linalg.vector_norm(fisher[task][n], dtype=torch.float64) ** 2 for n in experts.floating)
            norm = float(sum(squares, torch.zeros((), dtype=torch.float64)).sqrt()) + h.epsilon
            weights[task] = 1 / norm if norm > 0 else 0.0
    for name in experts.pending:
        total = torch.zeros(experts.shape(name), dtype=torch.float64)
        importance = torch.zeros_like(total)
        for task in experts.tasks:
            factor = weights[task] * (fisher[task][name].to(total).view_as(total) + h.epsilon)
            total += factor * experts.expert(task, name).cpu()
            importance += factor
        merged = torch.where(importance > 0, total / importance.clamp_min(1e-300), experts.mean(name).cpu().double())
        yield name, merged.to(experts.base(name))


def _check(experts: Experts, fisher: Mapping[str, Mapping[str, Tensor]]) -> None:
    """Refuse statistics that do not fit the experts."""
    check_tasks("fisher", experts, fisher)
    for task in experts.tasks:
        for name in experts.floating:
            if name not in fisher[task]:
                raise MergeError(f"fisher of task {task!r} lacks {name!r}: {did_you_mean(name, fisher[task])}")
            check_tensor("fisher", task, name, fisher[task][name], experts.specs[name].shape)
            if experts.numel(name) and float(fisher[task][name].min()) < 0:
                raise MergeError(f"fisher of task {task!r}: {name!r} has negative values; it is a mean of squares")


def check_tasks(what: str, experts: Experts, statistics: Mapping[str, Mapping[str, Tensor]]) -> None:
    """Refuse statistics that are not one mapping per expert."""
    if not isinstance(statistics, Mapping):
        raise MergeError(f"{what} must map tasks to {{name: tensor}}, got {type(statistics).__name__}")
    for task in experts.tasks:
        if task not in statistics:
            raise MergeError(f"{what} lacks task {task!r}: {did_you_mean(task, statistics)}")
        if not isinstance(statistics[task], Mapping):
            raise MergeError(f"{what} of task {task!r} must map names to tensors, got {type(statistics[task]).__name__}")
    for task in statistics:
        if task not in experts.tasks:
            raise MergeError(f"{what} has task {task!r}, which no expert has: {did_you_mean(task, experts.tasks)}")


def check_tensor(what: str, task: str, name: str, tensor: Tensor, shape: tuple[int, ...]) -> None:
    """Refuse a statistic that is no finite tensor of this shape."""
    kinds.check_tensor(tensor, f"{what} of task {task!r}", name)
    if tuple(tensor.shape) != shape:
        raise MergeError(f"{what} of task {task!r}: {name!r} has shape {tuple(tensor.shape)}, it needs {shape}")
    if not bool(torch.isfinite(tensor).all()):
        raise MergeError(f"{what} of task {task!r}: {name!r} has non-finite values; compute it again")

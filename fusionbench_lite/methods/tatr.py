"""TATR: task arithmetic in a trust region, without the coordinates that tasks are sensitive to (Sun et al. 2025).

The formulas are those of arXiv:2501.15065 as FusionBench documents them (algorithms/trust_region). Which coordinates are left
out where Ω has ties is our reading (docs/decisions.md, D57).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING

from fusionbench_lite.errors import MergeError, did_you_mean
from fusionbench_lite.fields import real
from fusionbench_lite.lazy import torch
from fusionbench_lite.methods.fisher import check_tasks, check_tensor
from fusionbench_lite.methods.ties import ordered_sum
from fusionbench_lite.registry import method
from fusionbench_lite.weights.experts import Experts
from fusionbench_lite.weights.order import kth_values

if TYPE_CHECKING:
    from torch import Tensor

Gradients = Mapping[str, Mapping[str, "Tensor"]]


@dataclasses.dataclass(frozen=True)
class Tatr:
    """`left_out`: τ, the part of all coordinates that is outside the trust region; FusionBench's threshold_quantile is 1 - τ.
    `scaling`: λ."""

    left_out: float = real(0.01, low=0, high=1)
    scaling: float = real(0.3)


@dataclasses.dataclass(frozen=True)
class TatrZeroShot(Tatr):
    """The settings of TATR, whose gradients are the task vectors' magnitudes."""


@method("tatr", Tatr, inputs=("gradients",), label="TATR")
def tatr(experts: Experts, h: Tatr, gradients: Gradients) -> Iterator[tuple[str, Tensor]]:
    """θ = θ0 + λ Σ_t m ⊙ τ_t, m = 0 at the part τ of all coordinates whose Ω is largest: the mean over pairs t ≠ j of
    |∇L_j(θ0)| ⊙ |τ_t|.

    `gradients` holds |∇L_j| of every task's loss with labels, {task: {name: tensor}} with every floating-point tensor in its
    shape (`fusionbench_lite.statistics.absolute_gradients`). Coordinates as large as the smallest one that is left out are left
    out too; those with Ω = 0 never are, so that one expert alone is task arithmetic. Cost: O(Td), five passes, and one backward
    pass per example for the statistics (128 examples a task).
    """
    _check(experts, gradients)
    return _merged(experts, h, gradients)


@method("tatr_zero_shot", TatrZeroShot, label="TATR (zero-shot)")
def tatr_zero_shot(experts: Experts, h: TatrZeroShot) -> Iterator[tuple[str, Tensor]]:
    """θ = θ0 + λ Σ_t m ⊙ τ_t, m = 0 at the part τ of all coordinates whose Ω is largest: the mean over pairs t ≠ j of
    |τ_j| ⊙ |τ_t|.

    A task vector is a sum of gradient steps from θ0 and stands for the gradient where there are no examples. Coordinates with
    Ω = 0 stay, as in `tatr`. Cost: O(Td), five passes.
    """
    return _merged(experts, h, None)


def _merged(experts: Experts, h: Tatr, gradients: Gradients | None) -> Iterator[tuple[str, Tensor]]:
    threshold = _threshold(experts, h.left_out, gradients)
    for name in experts.pending:
        yield name, experts.added(name, experts.filled(name, _inside(experts, name, threshold, gradients)), h.scaling)


def _inside(
    experts: Experts, name: str, threshold: float | None, gradients: Gradients | None
) -> Iterator[tuple[slice, Tensor]]:
    """Yield the sum of the task vectors within the trust region, block by block."""
    for part, block in experts.blocks(name):
        total = ordered_sum(block)
        if threshold is not None:
            omega = sensitivity(block, _rows(experts, name, part, block, gradients))
            total.masked_fill_((omega >= threshold) & (omega > 0), 0.0)
        yield part, total


def _threshold(experts: Experts, left_out: float, gradients: Gradients | None) -> float | None:
    """Return the Ω from which coordinates are left out, None where there are none to leave out.

    It is the m-th largest of all d, m = ⌊τ d⌋; a tensor with two names counts once.
    """
    names = [name for name in experts.names if name not in experts.tied]
    size = sum(map(experts.numel, names))
    count = int(left_out * size)
    if count == 0:
        return None

    def exact() -> str:
        return float(kth_values(lambda: _omegas(experts, names, gradients), size - count + 1)).hex()

    return float.fromhex(experts.note("threshold", exact))


def _omegas(experts: Experts, names: list[str], gradients: Gradients | None) -> Iterator[Tensor]:
    """Walk Ω of some tensors, [1, length] at a time."""
    for name in names:
        for part, block in experts.blocks(name):
            yield sensitivity(block, _rows(experts, name, part, block, gradients))[None]


def _rows(experts: Experts, name: str, part: slice, block: Tensor, gradients: Gradients | None) -> Iterator[Tensor]:
    """Yield every task's |∇L_j| of a block [length], in task order."""
    for number, task in enumerate(experts.tasks):
        given = block[number] if gradients is None else gradients[task][name].reshape(-1)[part]
        yield given.to(block.device, torch.float64).abs()


def sensitivity(block: Tensor, gradients: Iterator[Tensor]) -> Tensor:
    """Return Σ_{t≠j} |∇L_j| ⊙ |τ_t| [length] of task vectors [T, length], in float64, without cancellation.

    Their number, by which a mean over pairs is divided, changes no order.
    """
    omega = torch.zeros_like(block[0], dtype=torch.float64)
    slopes, moves = torch.zeros_like(omega), torch.zeros_like(omega)  # Σ of the tasks before
    for vector, slope in zip(block, gradients, strict=True):
        move = vector.double().abs()
        omega.addcmul_(move, slopes).addcmul_(slope, moves)
        slopes += slope
        moves += move
    return omega


def _check(experts: Experts, gradients: Gradients) -> None:
    """Refuse gradients that do not fit the experts."""
    check_tasks("gradients", experts, gradients)
    for task in experts.tasks:
        for name in experts.floating:
            if name not in gradients[task]:
                raise MergeError(f"gradients of task {task!r} lack {name!r}: {did_you_mean(name, gradients[task])}")
            check_tensor("gradients", task, name, gradients[task][name], experts.specs[name].shape)

"""EMR-Merging: elect, mask and rescale; one unified vector and a mask per task (Huang et al. 2024)."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator

from fusionbench_lite.fields import choice
from fusionbench_lite.lazy import torch
from fusionbench_lite.methods.ties import ordered_sum
from fusionbench_lite.registry import method
from fusionbench_lite.weights import costs
from fusionbench_lite.weights.architecture import Architecture
from fusionbench_lite.weights.compact import Masked, pack
from fusionbench_lite.weights.experts import Experts


@dataclasses.dataclass(frozen=True)
class EmrMerging:
    """`rescale`: ρ_t as sums of per-tensor means ("tensor_mean", the released code, where every tensor weighs the
    same) or as one ratio of L1 norms over the model ("global", the paper)."""

    rescale: str = choice("tensor_mean", ("tensor_mean", "global"))


def _learned(of: Architecture, tasks: int, h: EmrMerging) -> costs.Learned:
    return costs.masked_vector(of, tasks, factors=2)  # ρ in float64


@method("emr_merging", EmrMerging, per_task=True, label="EMR-Merging", learned=_learned)
def emr_merging(experts: Experts, h: EmrMerging) -> Iterator[tuple[str, Masked]]:
    """θ̂_t = θ0 + ρ_t M_t ⊙ τ_u: γ = sgn Σ_s τ_s (0 counts as negative), M_t = 1[τ_t γ > 0], τ_u = γ max_s M_s |τ_s|,
    ρ_t = Σ|τ_t| / Σ|M_t ⊙ τ_u|; one model per task.

    Stored as τ_u, one bit per weight and task, and ρ. Cost: O(Td), one pass.
    """
    magnitudes, unified = torch.zeros((2, len(experts)), dtype=torch.float64)
    scales = torch.ones(len(experts), dtype=torch.float64)
    for name in experts.names:
        vector, bits = experts.new(name), []
        weight = 1 / experts.numel(name) if h.rescale == "tensor_mean" else 1.0
        for part, block in experts.blocks(name):
            positive = ordered_sum(block) > 0
            agree = torch.where(positive, block > 0, block < 0)
            block.abs_()
            magnitudes += weight * block.sum(1, dtype=torch.float64).cpu()
            largest = (block * agree).amax(0)
            unified += weight * (largest * agree).sum(1, dtype=torch.float64).cpu()
            vector[part] = torch.where(positive, largest, -largest)
            bits.append(pack(agree))
        yield name, Masked(experts=experts, name=name, vector=vector, bits=torch.cat(bits, dim=1), scales=scales)
    # A task that nothing is left of keeps ρ = 1.
    scales.copy_(torch.where(unified > 0, magnitudes / unified.clamp_min(1e-300), 1.0))

"""The merge inside the autograd graph, straight from the formulas, as a yardstick for the closed-form engine."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from benchmarks.problem import Problem


class AutogradMerge(nn.Module):
    """AdaMerging and AdaRank with λ [T] per tensor and mask logits [T, r] per matrix as leaves of the graph.

    AdaRank: Δ_t = (U_t ⊙ mask_t s_t) V_tᵀ is built for every task, with mask = m + sg(1[m > ½] - m) and
    m = σ(b̃/κ) (Lee et al. 2025, Eq. 5 to 7). AdaMerging: λ is clamped to [0, 1] (Yang et al. 2024, Eq. 2).
    """

    def __init__(self, problem: Problem, temperature: float) -> None:
        super().__init__()
        self.problem = problem
        self.temperature = temperature
        self.clamp = problem.method.kind == "vectors"
        tasks = len(problem.batch)
        self.coefficients = nn.ParameterDict()
        self.logits = nn.ParameterDict()
        for name, tensor in problem.pretrained.items():
            start = torch.full((tasks,), problem.method.scaling, device=tensor.device)
            self.coefficients[name.replace(".", "/")] = start
            if name in problem.factors:
                svd = problem.factors[name]
                logits = torch.full_like(svd.values, -0.1)
                logits[:, : svd.active] = 0.1
                self.logits[name.replace(".", "/")] = logits

    def merged(self) -> dict[str, Tensor]:
        """Return θ_o + Σ_t λ_t Δ_t of every tensor, attached to the graph."""
        merged = {}
        for name, origin in self.problem.pretrained.items():
            weights = self.coefficients[name.replace(".", "/")]
            if self.clamp:
                weights = weights.clamp(0, 1)
            total = origin
            for task in range(len(weights)):
                total = total + weights[task] * self._delta(name, task)
            merged[name] = total
        return merged

    def _delta(self, name: str, task: int) -> Tensor:
        svd = self.problem.factors.get(name)
        if svd is None:
            return self.problem.vectors[name][task]
        soft = torch.sigmoid(self.logits[name.replace(".", "/")][task] / self.temperature)
        hard = (soft > 0.5).to(soft.dtype)
        mask = soft + (hard - soft).detach()
        return (svd.left[task].T * (mask * svd.values[task])) @ svd.right[task]

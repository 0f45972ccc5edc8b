"""Float64 oracle of Pareto Merging: autograd through W = theta0 + sum lambda tau + sum_t gamma_t A C_t B^T."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from fusionbench_lite.adaptation.draws import normal, uniform
from tests.oracles import adaptive
from tests.oracles.coefficients import descend, task_losses
from tests.oracles.data_free import array, is_factorised, merged_names, task_vectors


@dataclass
class Pareto:
    """The result of a run; `state(gamma)` merges for any preference."""

    tasks: list[str]
    base: dict[str, Tensor]
    taus: dict[str, list[Tensor]]
    coefficients: dict[str, Tensor]
    left: dict[str, Tensor]
    right: dict[str, Tensor]
    core: dict[str, Tensor]
    losses: Tensor
    gradients: list[dict[str, Tensor]]

    def state(self, gamma: Tensor) -> dict[str, Tensor]:
        out = {}
        for name, base in self.base.items():
            total = base
            for t, tau in enumerate(self.taus[name]):
                total = total + self.coefficients[name][t] * tau
            for t in range(len(self.tasks)) if name in self.core else ():
                total = total + gamma[t] * (self.left[name] @ self.core[name][t] @ self.right[name].T)
            out[name] = total
        return out

    def equal(self) -> Tensor:
        return torch.full((len(self.tasks),), 1 / len(self.tasks), dtype=torch.float64)

    def one_hot(self, task: str) -> Tensor:
        return torch.tensor([float(t == task) for t in self.tasks], dtype=torch.float64)


def preference(count: int, seed: int, step: int) -> Tensor:
    """A uniform point of the simplex."""
    u = uniform((count,), seed, "pareto_merging", "preference", step).clamp(2.0**-24, 1 - 2.0**-24).double()
    e = -torch.log(u)
    return e / e.sum()


def scalarise(objectives: list[Tensor], gamma: Tensor, kind: str, mu: float) -> Tensor:
    """mu log sum exp(gamma_t S_t / mu), or the weighted sum."""
    weighted = torch.stack([gamma[t] * value for t, value in enumerate(objectives)])
    if kind == "linear":
        return weighted.sum()
    assert kind == "tchebycheff"
    return mu * torch.logsumexp(weighted / mu, dim=0)


def start(pretrained, experts, scaling: float, rank: int, matrices: str, seed: int) -> Pareto:
    names, count = merged_names(pretrained), len(experts)
    out = Pareto(list(experts), {}, {}, {}, {}, {}, {}, torch.zeros(0, dtype=torch.float64), [])
    for name in names:
        out.base[name] = torch.from_numpy(array(pretrained[name]))
        out.taus[name] = [torch.from_numpy(tau) for tau in task_vectors(pretrained, experts, name)]
        out.coefficients[name] = torch.full((count,), float(scaling), dtype=torch.float64)
        shape = tuple(pretrained[name].shape)
        if is_factorised(name, shape, matrices):
            (m, n), r = shape, min(rank, *shape)
            out.left[name] = normal((m, r), seed, "pareto_merging", name, "left").double() / m**0.5
            out.right[name] = normal((n, r), seed, "pareto_merging", name, "right").double() / n**0.5
            out.core[name] = torch.zeros(count, r, r, dtype=torch.float64)
    return out


def pareto_merging(
    s, steps: int, scaling=0.3, learn_coefficients=True, rank=16, mode="entropy", scalarisation="tchebycheff", mu=0.1,
    preference_of=preference, matrices="attn_mlp", lr=1e-3, seed=0,
) -> Pareto:
    """`s` is a `tests.support.helpers.Setting`; one sampled preference per step."""
    model, heads = adaptive.in_double(s.model, s.heads)
    p = start(s.pretrained, s.experts, scaling, rank, matrices, seed)
    targets = [{n: torch.from_numpy(array(e[n])) for n in p.base} for e in s.experts.values()]

    def loss_of(step: int) -> tuple[Tensor, Tensor]:
        gamma = preference_of(len(p.tasks), seed, step)
        state = p.state(gamma)
        if mode == "entropy":
            objectives = task_losses(model, heads, state, {t: s.batches[t][step] for t in p.tasks})
        else:
            assert mode == "distance"
            objectives = [sum(((state[n] - target[n]) ** 2).sum() for n in state) for target in targets]
        return scalarise(objectives, gamma, scalarisation, mu), torch.stack(objectives).sum()

    groups = {"left": p.left, "right": p.right, "core": p.core}
    if learn_coefficients:
        groups["coefficients"] = p.coefficients
    learned = {f"{kind} {n}": v for kind, group in groups.items() for n, v in group.items()}
    p.losses, p.gradients = descend(learned, loss_of, steps, lr)
    for group in (p.left, p.right, p.core, p.coefficients):
        group.update({n: v.detach() for n, v in group.items()})
    return p

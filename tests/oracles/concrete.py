"""Float64 oracles of Concrete TA and Concrete AM: every mask, merge and gradient explicit, one logit per parameter."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from fusionbench_lite.adaptation.draws import uniform
from tests.oracles import adaptive
from tests.oracles.coefficients import Result, descend, task_losses
from tests.oracles.data_free import array, merged_names, task_vectors

TINY = 2.0**-24


def noise(name: str, shape: Sequence[int], seed: int, draw: int) -> Tensor:
    """log u - log(1 - u) of one tensor and one draw."""
    u = uniform(tuple(shape), seed, "concrete", name, draw).clamp(TINY, 1 - TINY).double()
    return torch.log(u) - torch.log(1 - u)


def normalised_mask(logits: Tensor, gumbel: Tensor, temperature: float) -> Tensor:
    """The relaxed Bernoulli mask of a tensor divided by its mean."""
    mask = torch.sigmoid((gumbel + logits) / temperature)
    return mask / mask.mean()


class Concrete:
    """The merge theta_l = theta0_l + sum_t lambda_tl (mask_l * tau_tl) of one setting."""

    def __init__(self, pretrained, experts, scaling=0.3, temperature=0.5, seed=0, clamp=False, level="layer") -> None:
        self.names, self.tasks = merged_names(pretrained), list(experts)
        self.base = {n: torch.from_numpy(array(pretrained[n])) for n in self.names}
        self.taus = {n: [torch.from_numpy(t) for t in task_vectors(pretrained, experts, n)] for n in self.names}
        self.scaling, self.temperature, self.seed, self.clamp, self.level = scaling, temperature, seed, clamp, level

    def logits(self) -> dict[str, Tensor]:
        return {n: torch.zeros_like(v) for n, v in self.base.items()}

    def coefficients(self) -> dict[str, Tensor]:
        names = ["*"] if self.level == "task" else self.names
        return {n: torch.full((len(self.tasks),), float(self.scaling), dtype=torch.float64) for n in names}

    def masks(self, logits: Mapping[str, Tensor], draw: int) -> dict[str, Tensor]:
        return {
            n: normalised_mask(x, noise(n, x.shape, self.seed, draw), self.temperature) for n, x in logits.items()
        }

    def merged(self, coefficients: Mapping[str, Tensor], masks: Mapping[str, Tensor]) -> dict[str, Tensor]:
        out = {}
        for name in self.names:
            lam = coefficients["*" if self.level == "task" else name]
            lam = lam.clamp(0, 1) if self.clamp else lam
            total = self.base[name]
            for t, tau in enumerate(self.taus[name]):
                total = total + lam[t] * (masks[name] * tau)
            out[name] = total
        return out


def finish(c: Concrete, coefficients, logits, draw, losses, gradients) -> Result:
    logits = {n: x.detach() for n, x in logits.items()}
    coefficients = {n: v.detach() for n, v in coefficients.items()}
    state = c.merged(coefficients, c.masks(logits, draw))
    return Result(coefficients, losses, state, learned={f"logits/{n}": x for n, x in logits.items()}, gradients=gradients)


def concrete_ta(s, steps: int, scaling=0.3, temperature=0.5, lr=1e-3, seed=0) -> Result:
    """`s` is a `tests.support.helpers.Setting`."""
    model, heads = adaptive.in_double(s.model, s.heads)
    c = Concrete(s.pretrained, s.experts, scaling, temperature, seed)
    logits, coefficients = c.logits(), c.coefficients()

    def loss_of(step: int) -> tuple[Tensor, Tensor]:
        state = c.merged(coefficients, c.masks(logits, step))
        total = sum(task_losses(model, heads, state, {t: s.batches[t][step] for t in c.tasks}))
        return total, total

    losses, gradients = descend(logits, loss_of, steps, lr)
    return finish(c, coefficients, logits, steps, losses, gradients)


def concrete_am(
    s, steps: int, scaling=0.3, temperature=0.5, seed=0, level="layer", clamp=True, mask_lr=1e-3, inner_lr=1.0, lr=1e-3,
    mask_steps=None, order="paper",
) -> Result:
    """Stage 1 alternates an inner step on lambda and an outer step on the logits, stage 2 learns lambda alone."""
    model, heads = adaptive.in_double(s.model, s.heads)
    c = Concrete(s.pretrained, s.experts, scaling, temperature, seed, clamp, level)
    mask_steps = steps * 2 // 3 if mask_steps is None else mask_steps
    position = dict.fromkeys(c.tasks, 0)

    def next_batch() -> dict[str, Tensor]:
        batch = {t: s.batches[t][position[t]] for t in c.tasks}
        position.update({t: i + 1 for t, i in position.items()})
        return batch

    def loss_at(coefficients, masks) -> Tensor:
        return sum(task_losses(model, heads, c.merged(coefficients, masks), next_batch()))

    logits = {n: x.requires_grad_() for n, x in c.logits().items()}
    coefficients = c.coefficients()
    inner = torch.optim.Adam(list(coefficients.values()), lr=inner_lr)
    outer = torch.optim.Adam(list(logits.values()), lr=mask_lr)
    seen_by_forward = c.coefficients()
    stage_one, gradients = [], []
    for step in range(mask_steps):
        # Inner: one Adam step on lambda = scaling, the mask being a constant.
        frozen = {n: m.detach() for n, m in c.masks(logits, step).items()}
        at = {n: v.clone().requires_grad_() for n, v in (seen_by_forward if order == "released" else coefficients).items()}
        loss_at(at, frozen).backward()
        for name, value in coefficients.items():
            value.grad = torch.zeros_like(value) if at[name].grad is None else at[name].grad
        inner.step()
        adapted = {n: v.clone() for n, v in coefficients.items()}
        # Outer: one Adam step on the logits at lambda', which is a constant.
        outer.zero_grad()
        loss = loss_at(adapted, c.masks(logits, step))
        loss.backward()
        gradients.append({n: torch.zeros_like(x) if x.grad is None else x.grad.clone() for n, x in logits.items()})
        outer.step()
        stage_one.append(loss.detach().reshape(1))
        for value in coefficients.values():
            value.fill_(float(scaling))
        seen_by_forward = adapted
    frozen = {n: m.detach() for n, m in c.masks(logits, mask_steps).items()}
    coefficients = c.coefficients()

    def loss_of(step: int) -> tuple[Tensor, Tensor]:
        total = loss_at(coefficients, frozen)
        return total, total

    stage_two, _ = descend(coefficients, loss_of, steps - mask_steps, lr)
    losses = torch.cat([*stage_one, stage_two])
    return finish(c, coefficients, logits, mask_steps, losses, gradients)

"""Float64 oracle of AdaMerging and AdaRank: ordinary autograd through the merge, torch.optim.Adam, no shortcuts.

theta_l = origin_l + sum_t lambda_tl W_tl, where W_tl is constant (AdaMerging, unmasked tensors) or
U diag(hat s) V^T with hat s = m s + stop_gradient((b - m) s), m = sigmoid(logit / temperature), b = 1 if m > 1/2
(AdaRank).
"""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor

from tests.oracles.data_free import array, is_factorised, merged_names, polar


@dataclass
class Factors:
    """Singular components of one matrix for every task and which of them start switched on."""

    left: list[Tensor]
    values: list[Tensor]
    right: list[Tensor]
    start: int


@dataclass
class Problem:
    """Constants of the merge. `dense[name]` holds one update per task, `factors[name]` singular components."""

    tasks: list[str]
    origin: dict[str, Tensor] = field(default_factory=dict)
    dense: dict[str, list[Tensor]] = field(default_factory=dict)
    factors: dict[str, Factors] = field(default_factory=dict)
    scaling: float = 0.3
    temperature: float = 10.0
    clamp: bool = False
    taskwise: bool = False
    learn: str = "both"
    top_only: bool = False


@dataclass
class Outcome:
    coefficients: dict[str, Tensor]
    masks: dict[str, Tensor]
    logits: dict[str, Tensor]
    losses: Tensor
    state: dict[str, Tensor]
    coefficient_history: list[dict[str, Tensor]]
    mask_history: list[dict[str, Tensor]]


def adamerging(pretrained, experts, level="layer", scaling=0.3, clamp=True) -> Problem:
    problem = Problem(list(experts), scaling=scaling, clamp=clamp, taskwise=level == "task")
    for name in merged_names(pretrained):
        base = torch.from_numpy(array(pretrained[name]))
        problem.origin[name] = base
        problem.dense[name] = [torch.from_numpy(array(e[name])) - base for e in experts.values()]
    return problem


def adarank(
    base, pretrained, experts, scaling, rank_ratio, temperature=10.0, learn="both", top_only=False, matrices="attn_mlp"
) -> Problem:
    problem = Problem(list(experts), scaling=scaling, temperature=temperature, learn=learn, top_only=top_only)
    count = len(experts)
    for name in merged_names(pretrained):
        weights = [array(e[name]) for e in experts.values()]
        origin = sum(weights) / count if base == "cart" else array(pretrained[name])
        taus = [w - origin for w in weights]
        problem.origin[name] = torch.from_numpy(np.asarray(origin))
        if is_factorised(name, origin.shape, matrices):
            p = min(origin.shape)
            start = p // count if rank_ratio is None else int(rank_ratio * p)
            problem.factors[name] = components(taus, start, whiten=base == "tsvm")
        else:
            share = count if base == "tsvm" else 1
            problem.dense[name] = [torch.from_numpy(np.asarray(tau / share)) for tau in taus]
    return problem


def components(taus: Sequence[np.ndarray], start: int, whiten: bool) -> Factors:
    """SVD of every task matrix; for TSV-M (reading B) the leading `start` vectors of all tasks are decorrelated."""
    full = [np.linalg.svd(tau, full_matrices=False) for tau in taus]
    left, values, right = [u for u, _, _ in full], [s for _, s, _ in full], [vt for _, _, vt in full]
    if whiten and start > 0:
        white_left = polar(np.concatenate([u[:, :start] for u in left], axis=1))
        white_right = polar(np.concatenate([v[:start] for v in right], axis=0))
        for t in range(len(taus)):
            block = slice(t * start, (t + 1) * start)
            left[t] = np.concatenate([white_left[:, block], left[t][:, start:]], axis=1)
            right[t] = np.concatenate([white_right[block], right[t][start:]], axis=0)
    parts = ([torch.from_numpy(np.ascontiguousarray(a)) for a in part] for part in (left, values, right))
    return Factors(*parts, start)


def initial(problem: Problem) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Coefficients {name: [T]} (one shared entry "*" when task-wise) and mask logits {name: [T, r]}."""
    count = len(problem.tasks)
    names = ["*"] if problem.taskwise else list(problem.origin)
    coefficients = {n: torch.full((count,), float(problem.scaling), dtype=torch.float64) for n in names}
    logits = {}
    for name, factors in problem.factors.items():
        logits[name] = torch.full((count, len(factors.values[0])), -0.1, dtype=torch.float64)
        logits[name][:, : factors.start] = 0.1
    return coefficients, logits


def allowed(problem: Problem, name: str, logits: Tensor) -> Tensor:
    """1 where a component may be on at all: everywhere, or only in the initial rank with top_only."""
    keep = torch.ones_like(logits)
    if problem.top_only:
        keep[:, problem.factors[name].start :] = 0
    return keep


def hard_mask(problem: Problem, name: str, logits: Tensor) -> Tensor:
    return (torch.sigmoid(logits / problem.temperature) > 0.5) & (allowed(problem, name, logits) > 0)


def merged(problem: Problem, coefficients: Mapping[str, Tensor], logits: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The merged tensors as differentiable functions of the coefficients and the mask logits."""
    out = {}
    for name, origin in problem.origin.items():
        lam = coefficients["*" if problem.taskwise else name]
        if problem.clamp:
            lam = lam.clamp(0, 1)
        total = origin
        for t in range(len(problem.tasks)):
            total = total + lam[t] * _update(problem, name, t, logits)
        out[name] = total
    return out


def _update(problem: Problem, name: str, t: int, logits: Mapping[str, Tensor]) -> Tensor:
    if name in problem.dense:
        return problem.dense[name][t]
    factors = problem.factors[name]
    soft = torch.sigmoid(logits[name][t] / problem.temperature)
    hard = (soft > 0.5).to(soft)
    spectrum = soft * factors.values[t] + ((hard - soft) * factors.values[t]).detach()
    spectrum = spectrum * allowed(problem, name, logits[name])[t]
    return (factors.left[t] * spectrum) @ factors.right[t]


def entropy(logits: Tensor) -> Tensor:
    """Mean over the batch of -sum_c p_c log p_c."""
    log_p = torch.log_softmax(logits, dim=-1)
    return -(log_p.exp() * log_p).sum(-1).mean()


def total_loss(model, heads, state: Mapping[str, Tensor], batch: Mapping[str, Tensor]) -> Tensor:
    """Sum over tasks of the mean entropy, every task forwarded on its own."""
    total = torch.zeros((), dtype=torch.float64)
    for task, x in batch.items():
        features = torch.func.functional_call(model, dict(state), (x.double() if x.is_floating_point() else x,))
        total = total + entropy(heads[task](features))
    return total


def in_double(model, heads):
    """Frozen float64 copies of the model and its heads, in evaluation mode."""
    model = copy.deepcopy(model).double().eval().requires_grad_(False)
    heads = {t: copy.deepcopy(h).double().eval().requires_grad_(False) for t, h in heads.items()}
    return model, heads


def run(problem: Problem, model, heads, batches: Mapping[str, Sequence[Tensor]], steps: int, lr: float) -> Outcome:
    """`steps` Adam updates of everything `learn` allows, from the explicit batch lists."""
    model, heads = in_double(model, heads)
    coefficients, logits = initial(problem)
    learned = []
    if problem.learn in ("both", "coefficients"):
        learned += [c.requires_grad_() for c in coefficients.values()]
    if problem.learn in ("both", "masks"):
        learned += [c.requires_grad_() for c in logits.values()]
    optimizer = torch.optim.Adam(learned, lr=lr) if learned else None
    losses, coefficient_history, mask_history = [], [], []
    for step in range(steps):
        state = merged(problem, coefficients, logits)
        loss = total_loss(model, heads, state, {t: batches[t][step] for t in problem.tasks})
        losses.append(loss.detach())
        if optimizer is not None:
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        coefficient_history.append({n: c.detach().clone() for n, c in coefficients.items()})
        mask_history.append({n: hard_mask(problem, n, c.detach()) for n, c in logits.items()})
    coefficients = {n: c.detach() for n, c in coefficients.items()}
    logits = {n: c.detach() for n, c in logits.items()}
    return Outcome(
        coefficients=coefficients,
        masks={n: hard_mask(problem, n, c) for n, c in logits.items()},
        logits=logits,
        losses=torch.stack(losses) if losses else torch.zeros(0, dtype=torch.float64),
        state=merged(problem, coefficients, logits),
        coefficient_history=coefficient_history,
        mask_history=mask_history,
    )

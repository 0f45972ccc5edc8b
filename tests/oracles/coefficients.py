"""Float64 oracles of AdaMerging on other updates than the task vectors, and of the variants of AdaRank.

AdaMerging++, doGe AM and AWD AM are `adaptive.Problem`s with other constant updates. Iso-CTS has a block of components
that belongs to no task: it is a task of its own here, with its own coefficient and mask, named "<tensor>/common".
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from tests.oracles import adaptive, optimised
from tests.oracles.data_free import array, is_factorised, merged_names, polar, task_vectors, trim, truncated
from tests.oracles.spectral import cts_split

COMMON = "/common"


@dataclass
class Result:
    """What an oracle run leaves. `gradients`: per step, {name of a learned tensor: its gradient}."""

    coefficients: dict[str, Tensor]
    losses: Tensor
    state: dict[str, Tensor]
    masks: dict[str, Tensor] = field(default_factory=dict)
    logits: dict[str, Tensor] = field(default_factory=dict)
    learned: dict[str, Tensor] = field(default_factory=dict)
    gradients: list[dict[str, Tensor]] = field(default_factory=list)


# ---------------------------------------------------------------- constant updates


def problem(pretrained, experts, updates: Mapping[str, Sequence[np.ndarray]], **given) -> adaptive.Problem:
    """AdaMerging with `updates[name]` in place of the task vectors."""
    out = adaptive.Problem(list(experts), **given)
    for name in merged_names(pretrained):
        out.origin[name] = torch.from_numpy(array(pretrained[name]))
        out.dense[name] = [torch.from_numpy(np.array(u)) for u in updates[name]]
    return out


def seen(pretrained, expert, names) -> np.ndarray:
    """One flat task vector as the work precision sees it: thresholds compare these values."""
    work = torch.float64 if any(pretrained[n].dtype == torch.float64 for n in names) else torch.float32
    return np.concatenate([(expert[n].to(work) - pretrained[n].to(work)).double().numpy().ravel() for n in names])


def cut(flat: np.ndarray, pretrained, names) -> dict[str, np.ndarray]:
    out, start = {}, 0
    for name in names:
        size = pretrained[name].numel()
        out[name] = flat[start : start + size].reshape(tuple(pretrained[name].shape))
        start += size
    return out


def elected(vectors: Sequence[np.ndarray], keep: float = 0.2) -> list[np.ndarray]:
    """Trimmed flat vectors, every entry that disagrees with its coordinate's sign set to 0 (coordinate by coordinate)."""
    trimmed = [trim(v, keep, 0) for v in vectors]
    out = [np.zeros(len(v)) for v in vectors]
    votes = [float(np.sign(sum(float(v[j]) for v in trimmed))) for j in range(len(vectors[0]))]
    majority = float(np.sign(sum(votes))) or -1.0
    for j, vote in enumerate(votes):
        for t, v in enumerate(trimmed):
            if np.sign(v[j]) == (vote or majority):
                out[t][j] = v[j]
    return out


def adamerging_pp(pretrained, experts, level="layer", scaling=0.3, clamp=True) -> adaptive.Problem:
    names = merged_names(pretrained)
    parts = [cut(v, pretrained, names) for v in elected([seen(pretrained, e, names) for e in experts.values()])]
    updates = {n: [part[n] for part in parts] for n in names}
    return problem(pretrained, experts, updates, scaling=scaling, clamp=clamp, taskwise=level == "task")


def doge_deltas(taus, lambdas, projector, steps: int, lr: float) -> np.ndarray:
    """One modification per task, [T, m, n], all optimised in the loss of `optimised.doge_loss`."""
    tau, shared = torch.from_numpy(np.stack(taus)), torch.from_numpy(projector)
    deltas = [torch.zeros_like(tau[0], requires_grad=True) for _ in taus]
    adam = torch.optim.Adam(deltas, lr=lr)
    for _ in range(steps):
        adam.zero_grad()
        merged = sum(lambdas[t] * (tau[t] + deltas[t]) for t in range(len(taus)))
        loss = sum(((tau[t] * (tau[t] - merged)).sum(1) ** 2).sum() for t in range(len(taus)))
        loss.backward()
        for delta in deltas:
            delta.grad = delta.grad - shared @ delta.grad
        adam.step()
    return np.stack([d.detach().numpy() for d in deltas])


def doge_am(
    pretrained, experts, eta=0.07, keep=0.3, delta_steps=400, delta_lr=1e-4, subspace_divisor=None, deltas="shared",
    matrices="encoder_linear", rank="fixed", scaling=0.3, clamp=False,
) -> adaptive.Problem:
    names, count = merged_names(pretrained), len(experts)
    updates = {n: [np.zeros(tuple(pretrained[n].shape))] * count for n in names}
    selected = [n for n in names if is_factorised(n, tuple(pretrained[n].shape), matrices)]
    kept = optimised.masks(pretrained, experts, selected, keep) if selected else {}
    for name in selected:
        taus = task_vectors(pretrained, experts, name)
        lambdas = [eta / float(np.linalg.norm(tau)) if tau.any() else 0.0 for tau in taus]
        projector = optimised.shared_projector(taus, rank, subspace_divisor or count)
        if deltas == "shared":
            one = optimised.doge_delta(taus, lambdas, projector, delta_steps, delta_lr, "orthogonal", "row")[0]
            change = [one] * count
        else:
            assert deltas == "per_task"
            change = list(doge_deltas(taus, lambdas, projector, delta_steps, delta_lr))
        updates[name] = [kept[name][t] * (taus[t] + change[t]) for t in range(count)]
    return problem(pretrained, experts, updates, scaling=scaling, clamp=clamp)


def awd_am(
    pretrained, experts, alpha=0.1, awd_lr=0.01, awd_steps=300, group="tensor", optimizer="gd", scaling=0.3, clamp=True
) -> adaptive.Problem:
    names = merged_names(pretrained)
    updates: dict[str, list[np.ndarray]] = {}
    for members in [[n] for n in names] if group == "tensor" else [names]:
        parts = {n: task_vectors(pretrained, experts, n) for n in members}
        flat = [np.concatenate([parts[n][t].ravel() for n in members]) for t in range(len(experts))]
        delta = cut(optimised.awd_delta(flat, alpha, awd_lr, awd_steps, optimizer)[0], pretrained, members)
        updates |= {n: [tau - delta[n] for tau in parts[n]] for n in members}
    return problem(pretrained, experts, updates, scaling=scaling, clamp=clamp)


def truncated_only(whole: adaptive.Problem) -> adaptive.Problem:
    """The components that AdaRank on TSV-M starts without do not exist (docs/decisions.md, D5)."""
    for f in whole.factors.values():
        f.left = [u[:, : f.start] for u in f.left]
        f.values = [s[: f.start] for s in f.values]
        f.right = [vt[: f.start] for vt in f.right]
    return whole


# ---------------------------------------------------------------- Iso-CTS


def iso_blocks(taus: Sequence[np.ndarray], common_fraction: float) -> list[tuple[np.ndarray, np.ndarray, np.ndarray]]:
    """[common, task 1 … task T]: orthogonalised left vectors, the constant singular value, right vectors of each block."""
    total = np.sum(taus, axis=0)
    c, q = cts_split(min(total.shape), len(taus), common_fraction)
    common = truncated(total, c)
    parts = [common] + [truncated(tau - common[0] @ (common[0].T @ tau), q) for tau in taus]
    left = polar(np.concatenate([u for u, _, _ in parts], axis=1))
    right = polar(np.concatenate([vt for _, _, vt in parts], axis=0))
    mean = np.concatenate([s for _, s, _ in parts]).mean() if total.any() or any(tau.any() for tau in taus) else 0.0
    out, start = [], 0
    for width in [c] + [q] * len(taus):
        block = slice(start, start + width)
        out.append((left[:, block], np.full(width, mean), right[block]))
        start += width
    return out


def iso_problems(
    pretrained, experts, scaling=1.0, common_fraction=0.8, matrices="attn_mlp", rank_ratio=1.0, temperature=10.0,
    learn="both", top_only=False,
) -> tuple[adaptive.Problem, adaptive.Problem]:
    """The problem of the tasks and the problem of the common blocks, whose origin is 0; the merge adds both."""
    settings = {"scaling": scaling, "temperature": temperature, "learn": learn, "top_only": top_only}
    own, common = adaptive.Problem(list(experts), **settings), adaptive.Problem([COMMON], **settings)
    for name in merged_names(pretrained):
        taus = task_vectors(pretrained, experts, name)
        own.origin[name] = torch.from_numpy(array(pretrained[name]))
        if not is_factorised(name, tuple(pretrained[name].shape), matrices):
            own.dense[name] = [torch.from_numpy(np.asarray(tau / len(taus))) for tau in taus]
            continue
        blocks = [[torch.from_numpy(np.ascontiguousarray(a)) for a in block] for block in iso_blocks(taus, common_fraction)]
        common.origin[name + COMMON] = torch.zeros_like(own.origin[name])
        for holder, key, part in ((common, name + COMMON, blocks[:1]), (own, name, blocks[1:])):
            start = int(rank_ratio * len(part[0][1]))
            holder.factors[key] = adaptive.Factors(*([b[i] for b in part] for i in range(3)), start)
    return own, common


# ---------------------------------------------------------------- running


def task_losses(model, heads, state, batch, objective="entropy") -> list[Tensor]:
    """The mean loss of every task; with "cross_entropy" a batch is (inputs, labels)."""
    out = []
    for task, given in batch.items():
        x, labels = given if objective == "cross_entropy" else (given, None)
        features = torch.func.functional_call(model, dict(state), (x.double() if x.is_floating_point() else x,))
        logits = heads[task](features)
        out.append(adaptive.entropy(logits) if labels is None else F.cross_entropy(logits, labels))
    return out


def descend(
    learned: Mapping[str, Tensor], loss_of: Callable[[int], tuple[Tensor, Tensor]], steps: int, lr: float
) -> tuple[Tensor, list[dict[str, Tensor]]]:
    """Adam on the first of the two losses of each step; returns the second ones and the gradients."""
    optimizer = torch.optim.Adam([v.requires_grad_() for v in learned.values()], lr=lr) if learned else None
    losses, gradients = [torch.zeros(0, dtype=torch.float64)], []
    for step in range(steps):
        loss, recorded = loss_of(step)
        losses.append(recorded.detach().reshape(1))
        if optimizer is not None:
            optimizer.zero_grad()
            loss.backward()
            gradients.append({n: torch.zeros_like(v) if v.grad is None else v.grad.clone() for n, v in learned.items()})
            optimizer.step()
    return torch.cat(losses), gradients


def run(problems, model, heads, batches, steps, lr, objective="entropy") -> Result:
    """AdaMerging or AdaRank of one or two problems with any objective."""
    model, heads = adaptive.in_double(model, heads)
    problems = list(problems) if isinstance(problems, tuple) else [problems]
    starts = [adaptive.initial(p) for p in problems]
    coefficients = {n: c for start, _ in starts for n, c in start.items()}
    logits = {n: b for _, start in starts for n, b in start.items()}
    learn = problems[0].learn
    learned = {f"coefficient {n}": c for n, c in coefficients.items()} if learn != "masks" else {}
    learned |= {f"logit {n}": b for n, b in logits.items()} if learn != "coefficients" else {}

    def state() -> dict[str, Tensor]:
        first = adaptive.merged(problems[0], coefficients, logits)
        for extra in problems[1:]:
            for key, value in adaptive.merged(extra, coefficients, logits).items():
                first[key.removesuffix(COMMON)] = first[key.removesuffix(COMMON)] + value
        return first

    def loss_of(step: int) -> tuple[Tensor, Tensor]:
        total = sum(task_losses(model, heads, state(), {t: batches[t][step] for t in problems[0].tasks}, objective))
        return total, total

    losses, gradients = descend(learned, loss_of, steps, lr)
    holder = {n: p for p in problems for n in p.factors}
    return Result(
        {n: c.detach() for n, c in coefficients.items()}, losses, {n: v.detach() for n, v in state().items()},
        {n: adaptive.hard_mask(holder[n], n, b.detach()) for n, b in logits.items()},
        {n: b.detach() for n, b in logits.items()}, {n: v.detach() for n, v in learned.items()}, gradients,
    )

"""Float64 oracle of MetaMerging (docs/decisions.md, D10): autograd through the merge and through every inner step.

theta(raw) = theta0 + sum_k softplus(raw_k) tau_k. Adapters h - (up relu(down h + down_bias) + up_bias) stand after every
block, on every token, or on the final feature. The target is the expert's final feature.

Stage 1, one step: phi_k = phi0_k, then `inner_steps` of phi_k <- phi_k - alpha dL_k/dphi_k on a new batch each; the
gradient of sum_k L'_k on another new batch, taken through the inner steps (order "second") or not ("first"), goes to the
optimizer of raw. Stage 2: raw frozen, Adam on all adapters from phi0.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from fusionbench_lite.adaptation.draws import normal
from tests.oracles.adaptive import in_double
from tests.oracles.data_free import merged_names
from tests.oracles.surgery import after_blocks, double, features, leaf

Adapters = dict[str, Tensor]
SHAPES = ("down", "up", "down_bias", "up_bias")


@dataclasses.dataclass
class Problem:
    """The frozen parts and how adapters and loss look. `start[task]` is phi0, {"NUMBER/PART": tensor}."""

    model: torch.nn.Module
    pretrained: dict[str, Tensor]
    experts: dict[str, dict[str, Tensor]]
    names: list[str]
    adapters: str
    loss: str
    start: dict[str, Adapters] = dataclasses.field(default_factory=dict)

    @property
    def tasks(self) -> list[str]:
        return list(self.experts)


@dataclasses.dataclass
class Outcome:
    """`raw` and `coefficients` [T] are None where the weights were given."""

    raw: Tensor | None
    coefficients: Tensor | None
    adapters: dict[str, Adapters]
    losses: Tensor
    state: dict[str, Tensor]
    encode: Callable[[Tensor, str], Tensor]


def problem(model, pretrained, experts, example, adapters="blocks", rank=64, loss="mse", seed=0) -> Problem:
    """`example`: any input, run once to see how wide the adapted states are."""
    model, _ = in_double(model, {})
    names = merged_names(pretrained)
    out = Problem(model, double(pretrained), {t: double(e) for t, e in experts.items()}, names, adapters, loss)
    widths: list[int] = []
    if adapters == "blocks":
        with after_blocks(model, lambda states, number: states) as seen:
            features(model, out.pretrained, example)
        widths = [states.shape[-1] for states in seen]
    elif adapters == "final":
        widths = [features(model, out.pretrained, example).shape[-1]]
    for task in out.tasks:
        out.start[task] = {}
        for number, width in enumerate(widths):
            key = (seed, "metamerging", task, number)
            values = {
                "down": 1e-3 * normal((rank, width), *key, "down").double(),
                "up": 1e-3 * normal((width, rank), *key, "up").double(),
                "down_bias": torch.zeros(rank, dtype=torch.float64),
                "up_bias": torch.zeros(width, dtype=torch.float64),
            }
            out.start[task].update({f"{number}/{part}": values[part] for part in SHAPES})
    return out


def theta(p: Problem, raw: Tensor) -> dict[str, Tensor]:
    """The merged state, differentiable in raw [T]."""
    state = dict(p.pretrained)
    for name in p.names:
        total = p.pretrained[name]
        for k, task in enumerate(p.tasks):
            total = total + F.softplus(raw[k]) * (p.experts[task][name] - p.pretrained[name])
        state[name] = total
    return state


def adapter(phi: Mapping[str, Tensor], number: int, h: Tensor) -> Tensor:
    down, up, down_bias, up_bias = (phi[f"{number}/{part}"] for part in SHAPES)
    return h - (torch.relu(h @ down.T + down_bias) @ up.T + up_bias)


def adapted(p: Problem, state: Mapping[str, Tensor], phi: Mapping[str, Tensor], x: Tensor) -> Tensor:
    """The final feature of the merged model with the adapters phi in place."""
    if p.adapters == "blocks":
        with after_blocks(p.model, lambda states, number: adapter(phi, number, states)):
            return features(p.model, state, x)
    out = features(p.model, state, x)
    return adapter(phi, 0, out) if p.adapters == "final" else out


def task_loss(p: Problem, state: Mapping[str, Tensor], phi: Mapping[str, Tensor], task: str, x: Tensor) -> Tensor:
    with sdpa_kernel(SDPBackend.MATH):  # the fused kernels of attention have no second derivative
        difference = adapted(p, state, phi, x) - features(p.model, p.experts[task], x)
    if p.loss == "mse":
        return (difference**2).mean()
    return (difference**2).sum(-1).sqrt().mean()


def outer_loss(p: Problem, raw: Tensor, batches: Mapping[str, Sequence[Tensor]], alpha: float, order="second") -> Tensor:
    """J(raw) of one meta step; `batches[task]` holds the inner batches, then the outer one."""
    state = theta(p, raw)
    total = torch.zeros((), dtype=torch.float64)
    for task in p.tasks:
        phi = {n: leaf(v) for n, v in p.start[task].items()}
        for x in batches[task][:-1]:
            inner = task_loss(p, state, phi, task, x)
            gradients = torch.autograd.grad(inner, list(phi.values()), create_graph=True)
            phi = {n: v - alpha * g for (n, v), g in zip(phi.items(), gradients, strict=True)}
            if order == "first":
                phi = {n: v.detach().requires_grad_() for n, v in phi.items()}
        total = total + task_loss(p, state, phi, task, batches[task][-1])
    return total


def hypergradient(p: Problem, raw: Tensor, batches, alpha: float, order="second") -> Tensor:
    raw = leaf(raw)
    return torch.autograd.grad(outer_loss(p, raw, batches, alpha, order), raw)[0]


def finite_differences(p: Problem, raw: Tensor, batches, alpha: float, width: float = 2e-5) -> Tensor:
    """Central differences of J with Richardson's extrapolation: an error of the fourth order in `width`."""

    def slope(k: int, h: float) -> Tensor:
        ends = []
        for sign in (1, -1):
            moved = raw.double().clone()
            moved[k] += sign * h
            ends.append(outer_loss(p, moved, batches, alpha).detach())
        return (ends[0] - ends[1]) / (2 * h)

    return torch.stack([(4 * slope(k, width / 2) - slope(k, width)) / 3 for k in range(len(raw))])


def run(
    p: Problem, batches: Mapping[str, Sequence[Tensor]], steps: int, raw=-2.014, inner_steps=1, inner_lr=0.1, lr=0.01,
    order="second", adapter_lr=1e-3, adapter_steps=None, optimizer="adam",
) -> Outcome:
    if p.adapters == "none":
        inner_steps, adapter_steps = 0, 0
    second = steps // 2 if adapter_steps is None else adapter_steps
    streams = {task: iter(batches[task]) for task in p.tasks}
    value = leaf(torch.full((len(p.tasks),), float(raw), dtype=torch.float64))
    of_raw = (torch.optim.Adam if optimizer == "adam" else torch.optim.SGD)([value], lr=lr)
    losses = []
    for _ in range(steps - second):
        drawn = {task: [next(streams[task]) for _ in range(inner_steps + 1)] for task in p.tasks}
        of_raw.zero_grad()
        loss = outer_loss(p, value, drawn, inner_lr, order)
        losses.append(loss.detach())
        loss.backward()
        of_raw.step()
    value = value.detach()
    out = learn_adapters(p, theta(p, value), streams, second, adapter_lr)
    return dataclasses.replace(out, raw=value, coefficients=F.softplus(value), losses=stacked(losses, out.losses))


def learn_adapters(p: Problem, state: Mapping[str, Tensor], batches, steps: int, lr: float) -> Outcome:
    """Stage 2 on given weights: Adam on the adapters of all tasks from phi0, one batch of every task a step."""
    streams = {task: iter(batches[task]) for task in p.tasks}
    phi = {task: {n: leaf(v) for n, v in own.items()} for task, own in p.start.items()}
    leaves = [v for own in phi.values() for v in own.values()]
    optimizer = torch.optim.Adam(leaves, lr=lr) if leaves else None
    losses = []
    for _ in range(steps):
        optimizer.zero_grad()
        loss = sum(task_loss(p, state, phi[task], task, next(streams[task])) for task in p.tasks)
        losses.append(loss.detach())
        loss.backward()
        optimizer.step()
    phi = {task: {n: v.detach() for n, v in own.items()} for task, own in phi.items()}

    def encode(x: Tensor, task: str) -> Tensor:
        return adapted(p, state, phi[task], x)

    return Outcome(None, None, phi, stacked(losses), dict(state), encode)


def stacked(losses: Sequence[Tensor], more: Tensor | None = None) -> Tensor:
    first = torch.stack(list(losses)) if losses else torch.zeros(0, dtype=torch.float64)
    return first if more is None else torch.cat([first, more])

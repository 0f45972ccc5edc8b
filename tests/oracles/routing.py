"""Float64 oracles of WEMoE and Twin-Merging: the merged model of each example, materialised.

Both learn routers alone: ordinary autograd from the loss through every example's own weights, torch.optim.Adam.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.func import functional_call

from fusionbench_lite.adaptation.draws import normal, uniform
from fusionbench_lite.models.blocks import blocks
from tests.oracles.adaptive import entropy, in_double
from tests.oracles.data_free import merged_names
from tests.oracles.surgery import double, features, leaf, token_mean


@dataclass
class Outcome:
    """`base`: the weights the routers sit on. `encode(inputs, task)`: routed features, in evaluation mode."""

    learned: dict[str, Tensor]
    losses: Tensor
    base: dict[str, Tensor]
    encode: Callable[[Tensor, str], Tensor]


def arithmetic(pretrained, experts, scaling: float, keep_bias: bool = False) -> dict[str, Tensor]:
    """theta0 + scaling sum_t tau_t in float64; with `keep_bias` tensors whose name ends in "bias" stay theta0."""
    base = double(pretrained)
    for name in merged_names(pretrained):
        if not (keep_bias and name.endswith("bias")):
            taus = [e[name].double() - pretrained[name].double() for e in experts.values()]
            base[name] = base[name] + scaling * sum(taus)
    return base


def stacked(losses: Sequence[Tensor]) -> Tensor:
    return torch.stack(losses) if losses else torch.zeros(0, dtype=torch.float64)


# ---------------------------------------------------------------- WEMoE


class RoutedPerceptron(nn.Module):
    """theta0 + sum_t g_t tau_t for the routed tensors, with one g for the whole call: the mean over its examples.

    One example a call is routing by example; a whole batch a call is routing by batch.
    """

    def __init__(self, inner: nn.Module, base: Mapping[str, Tensor], taus: Mapping[str, Sequence[Tensor]], router) -> None:
        super().__init__()
        self.inner, self.base, self.taus, self.router = inner, base, taus, router

    def forward(self, h: Tensor) -> Tensor:
        r = self.router
        g = torch.relu(h @ r["hidden"].T + r["hidden_bias"]) @ r["output"].T + r["output_bias"]
        g = token_mean(g).mean(0)
        weights = dict(self.base)
        for name, taus in self.taus.items():
            for t, tau in enumerate(taus):
                weights[name] = weights[name] + g[t] * tau
        return functional_call(self.inner, weights, (h,))


def routed_names(mlp: nn.Module) -> list[str]:
    """Weights and biases of its Linear (or transformers' Conv1D) modules."""
    return [
        f"{path}.{part}" if path else part
        for path, module in mlp.named_modules()
        if isinstance(module, nn.Linear) or type(module).__name__ == "Conv1D"
        for part, _ in module.named_parameters(recurse=False)
    ]


def widths_of(model, state, paths: Sequence[str], example: Tensor) -> dict[str, int]:
    """How wide what goes into every perceptron is."""
    widths: dict[str, int] = {}
    handles = [
        model.get_submodule(path).register_forward_pre_hook(lambda m, inputs, path=path: widths.update({path: inputs[0].shape[-1]}))
        for path in paths
    ]
    features(model, state, example)
    for handle in handles:
        handle.remove()
    return widths


def wemoe(
    model, pretrained, experts, heads, batches, steps, scaling=0.3, lr=1e-4, schedule="cosine", routing="example", seed=0,
    flat: bool = False,
) -> Outcome:
    """`flat` starts with a zero second layer, where routing is task arithmetic for every input."""
    model, heads = in_double(model, heads)
    base = arithmetic(pretrained, experts, scaling)
    paths = [n for n, m in model.named_modules() if n.split(".")[-1] == "mlp" and any(True for _ in m.parameters())]
    widths = widths_of(model, base, paths, next(iter(batches.values()))[0])
    model = copy.deepcopy(model)
    model.load_state_dict(base)
    routers: dict[str, dict[str, Tensor]] = {}
    for path in paths:
        inner, d = model.get_submodule(path), widths[path]
        size = 0.0 if flat else 0.01
        routers[path] = {
            "hidden": leaf(0.01 * normal((d, d), seed, "wemoe", path, "hidden").double()),
            "hidden_bias": leaf(torch.zeros(d)),
            "output": leaf(size * normal((len(experts), d), seed, "wemoe", path, "output").double()),
            "output_bias": leaf(torch.full((len(experts),), scaling, dtype=torch.float64)),
        }
        routed = routed_names(inner)
        weights = {n: base[f"{path}.{n}"].clone() for n in inner.state_dict()}
        weights.update({n: pretrained[f"{path}.{n}"].double() for n in routed})
        taus = {n: [e[f"{path}.{n}"].double() - weights[n] for e in experts.values()] for n in routed}
        parent, _, last = path.rpartition(".")
        setattr(model.get_submodule(parent), last, RoutedPerceptron(inner, weights, taus, routers[path]))

    def encode(x: Tensor, task: str) -> Tensor:
        x = x.double() if x.is_floating_point() else x
        return model(x) if routing == "batch" else torch.cat([model(one[None]) for one in x])

    leaves = [v for router in routers.values() for v in router.values()]
    optimizer = torch.optim.Adam(leaves, lr=lr)
    losses = []
    for step in range(steps):
        if schedule == "cosine":
            optimizer.param_groups[0]["lr"] = lr * (1 + math.cos(math.pi * step / steps)) / 2
        optimizer.zero_grad()
        loss = sum(entropy(heads[task](encode(batches[task][step], task))) for task in experts)
        losses.append(loss.detach())
        loss.backward()
        optimizer.step()
    learned = {f"{path}/{part}": v.detach() for path, router in routers.items() for part, v in router.items()}
    return Outcome(learned, stacked(losses), base, encode)


# ---------------------------------------------------------------- Twin-Merging


def truncated(matrix: Tensor, rank: int) -> Tensor:
    u, s, vt = torch.linalg.svd(matrix, full_matrices=False)
    return (u[:, :rank] * s[:rank]) @ vt[:rank]


def twin_vectors(pretrained, experts, base, rank_ratio: float) -> dict[str, list[Tensor]]:
    """v_t by tensor: truncated differences of matrices, whole ones of the rest, none of biases."""
    vectors = {}
    for name in merged_names(pretrained):
        if name.endswith("bias"):
            continue
        differences = [e[name].double() - base[name] for e in experts.values()]
        if base[name].dim() == 2:
            rank = int(rank_ratio * min(base[name].shape))
            differences = [truncated(d, rank) for d in differences]
        vectors[name] = differences
    return vectors


class Router:
    """d -> 2d -> 2d -> T: Linear, BatchNorm1d, LeakyReLU(0.01), dropout twice, then Linear."""

    def __init__(self, d: int, tasks: int, dropout: float, seed: int) -> None:
        self.dropout, self.seed = dropout, seed
        self.linear, sizes = [], [d, 2 * d, 2 * d, tasks]
        for i in range(3):
            layer = nn.Linear(sizes[i], sizes[i + 1]).double()
            for part in ("weight", "bias"):
                parameter = getattr(layer, part)
                draw = uniform(tuple(parameter.shape), seed, "twin_merging", i, part).double()
                parameter.data = (2 * draw - 1) / sizes[i] ** 0.5
            self.linear.append(layer)
        self.norm = [nn.BatchNorm1d(2 * d).double() for _ in range(2)]

    def parameters(self) -> list[nn.Parameter]:
        return [p for module in (*self.linear, *self.norm) for p in module.parameters()]

    def __call__(self, x: Tensor, step: int | None) -> Tensor:
        """Logits [B, T]; `step` None is evaluation: running statistics and no dropout."""
        for i in range(2):
            self.norm[i].train(step is not None)
            x = F.leaky_relu(self.norm[i](self.linear[i](x)), 0.01)
            if step is not None:
                draw = uniform(tuple(x.shape), self.seed, "twin_merging", "dropout", i, step).double()
                x = x * (draw >= self.dropout) / (1 - self.dropout)
        return self.linear[2](x)

    def learned(self) -> dict[str, Tensor]:
        """By layer: linear weights and biases, and those of the normalisation after it."""
        out = {f"{i}/{part}": getattr(layer, part) for i, layer in enumerate(self.linear) for part in ("weight", "bias")}
        out.update({f"{i}/norm_{part}": getattr(n, part) for i, n in enumerate(self.norm) for part in ("weight", "bias")})
        return {n: v.detach() for n, v in out.items()}


def summary(model, base, x: Tensor) -> Tensor:
    """What the router reads: the token mean of theta*'s last block, or theta*'s feature where there are no blocks."""
    found: list[Tensor] = []
    try:
        last = blocks(model)[-1]
    except ValueError:
        return features(model, base, x)
    handle = last.register_forward_hook(lambda m, i, output: found.append(output[0] if isinstance(output, tuple) else output))
    features(model, base, x)
    handle.remove()
    return token_mean(found[0])


def twin_merging(
    model, pretrained, experts, heads, batches, steps, scaling=0.29, rank_ratio=0.1, router="tasks", lr=5e-4, dropout=0.5, seed=0
) -> Outcome:
    model, heads = in_double(model, heads)
    base = arithmetic(pretrained, experts, scaling, keep_bias=True)
    vectors = twin_vectors(pretrained, experts, base, rank_ratio)
    tasks = list(experts)
    net = Router(summary(model, base, batches[tasks[0]][0]).shape[-1], len(tasks), dropout, seed)

    def mixture(x: Tensor, gates: Tensor) -> Tensor:
        out = []
        for one, gate in zip(x, gates, strict=True):
            own = {n: base[n] + sum(gate[t] * v for t, v in enumerate(parts)) for n, parts in vectors.items()}
            out.append(features(model, {**base, **own}, one[None]))
        return torch.cat(out)

    def encode(x: Tensor, task: str) -> Tensor:
        return mixture(x, torch.softmax(net(summary(model, base, x), None), dim=-1))

    optimizer = torch.optim.Adam(net.parameters(), lr=lr)
    losses = []
    for step in range(steps):
        drawn = [batches[task][step] for task in tasks]
        logits = net(torch.cat([summary(model, base, x) for x in drawn]), step)
        numbers = torch.cat([torch.full((len(x),), t) for t, x in enumerate(drawn)])
        if router == "tasks":
            loss = F.cross_entropy(logits, numbers)
        else:
            gates = [torch.softmax(logits[numbers == t], dim=-1) for t in range(len(tasks))]
            loss = sum(entropy(heads[task](mixture(x, g))) for task, x, g in zip(tasks, drawn, gates, strict=True))
        losses.append(loss.detach())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return Outcome(net.learned(), stacked(losses), base, encode)

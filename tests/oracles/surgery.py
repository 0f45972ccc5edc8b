"""Float64 oracles of representation surgery: autograd, torch.optim.Adam, explicit loops.

The base model is a given merged state dict. An expert's features are the model's with the expert's weights. Every
step takes one batch of every task, in task order, and makes an Adam step after each.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.func import functional_call

from fusionbench_lite.adaptation.draws import normal, uniform
from fusionbench_lite.models.blocks import blocks
from tests.oracles.adaptive import in_double

State = Mapping[str, Tensor]


@dataclass
class Outcome:
    """Learned tensors, the sum over tasks of each step's losses, and the adapted features of one task."""

    learned: dict[str, Tensor]
    losses: Tensor
    encode: Callable[[Tensor, str], Tensor]


def double(state: State) -> dict[str, Tensor]:
    return {n: v.detach().double() if v.is_floating_point() else v for n, v in state.items()}


def leaf(value: Tensor) -> Tensor:
    return value.double().clone().requires_grad_()


def down_weights(rank: int, width: int, *key: object) -> Tensor:
    """Kaiming-uniform with a = sqrt(5): uniform in +-1/sqrt(width)."""
    return leaf((2 * uniform((rank, width), *key).double() - 1) / width**0.5)


def features(model, state: State, x: Tensor) -> Tensor:
    return functional_call(model, dict(state), (x.double() if isinstance(x, Tensor) and x.is_floating_point() else x,))


def l1(a: Tensor, b: Tensor) -> Tensor:
    return (a - b).abs().mean()


def train(parameters: Mapping[str, Mapping[str, Tensor]], loss_of, steps: int, lr: float, moments: str = "own") -> Tensor:
    """One Adam step on `parameters[task]` after each task's batch. Returns the losses [steps], summed over tasks.

    "own": tasks that are not trained are not touched. "all": one optimizer over everything whose gradients are
    zeroed, not dropped, as torch before 2.0 did: a task that has been trained once keeps moving by its momentum.
    """
    everything = list({id(p): p for own in parameters.values() for p in own.values()}.values())
    shared = torch.optim.Adam(everything, lr=lr)
    kept: dict[int, torch.optim.Adam] = {}
    losses = []
    for step in range(steps):
        total = torch.zeros((), dtype=torch.float64)
        for task, own in parameters.items():
            first = id(next(iter(own.values())))
            if moments == "all":
                optimizer = shared
                optimizer.zero_grad(set_to_none=False)
            else:
                optimizer = kept.setdefault(first, torch.optim.Adam(list(own.values()), lr=lr))
                optimizer.zero_grad()
            loss = loss_of(task, step)
            total = total + loss.detach()
            loss.backward()
            optimizer.step()
        losses.append(total)
    return torch.stack(losses) if losses else torch.zeros(0, dtype=torch.float64)


def named(parameters: Mapping[str, Mapping[str, Tensor]]) -> dict[str, Tensor]:
    return {f"{task}/{name}": p.detach() for task, own in parameters.items() for name, p in own.items()}


# ---------------------------------------------------------------- 7.1


def normalised(z: Tensor) -> Tensor:
    return z / z.norm(dim=-1, keepdim=True)


def surgery(model, merged: State, experts, batches, steps, rank=16, lr=1e-3, seed=0, normalise=False, moments="own") -> Outcome:
    """z - U relu(D z), on the feature before normalisation or, with `normalise`, after it."""
    model, _ = in_double(model, {})
    merged, experts = double(merged), {t: double(e) for t, e in experts.items()}
    example = next(iter(batches.values()))[0]
    width = features(model, merged, example).shape[-1]
    parameters = {
        task: {
            "down": down_weights(rank, width, seed, "surgery", task, "down"),
            "up": leaf(torch.zeros(width, rank)),
        }
        for task in experts
    }

    def feature(state: State, x: Tensor) -> Tensor:
        z = features(model, state, x)
        return normalised(z) if normalise else z

    def encode(x: Tensor, task: str) -> Tensor:
        z = feature(merged, x)
        return z - torch.relu(z @ parameters[task]["down"].T) @ parameters[task]["up"].T

    def loss_of(task: str, step: int) -> Tensor:
        x = batches[task][step]
        return l1(encode(x, task), feature(experts[task], x))

    losses = train(parameters, loss_of, steps, lr, moments)
    return Outcome(named(parameters), losses, encode)


# ---------------------------------------------------------------- 7.2


@contextlib.contextmanager
def after_blocks(model, change: Callable[[Tensor, int], Tensor]):
    """Replace the hidden states that block number i puts out by `change(states, i)`; yields the list of them."""
    seen: list[Tensor] = []

    def hook_of(number: int):
        def hook(module, inputs, output):
            states = change(output[0] if isinstance(output, tuple) else output, number)
            seen.append(states)
            return (states, *output[1:]) if isinstance(output, tuple) else states

        return hook

    handles = [block.register_forward_hook(hook_of(i)) for i, block in enumerate(blocks(model))]
    try:
        yield seen
    finally:
        for handle in handles:
            handle.remove()


def token_mean(states: Tensor) -> Tensor:
    return states.mean(-2) if states.dim() == 3 else states


def surgery_v2(model, merged: State, experts, batches, steps, rank=16, lr=1e-3, seed=0) -> Outcome:
    """An adapter after every block, on every token, and one on the final feature."""
    model, _ = in_double(model, {})
    merged, experts = double(merged), {t: double(e) for t, e in experts.items()}

    def run(state: State, x: Tensor, change) -> tuple[list[Tensor], Tensor]:
        with after_blocks(model, change) as seen:
            final = features(model, state, x)
        return [token_mean(s) for s in seen], final

    means, final = run(merged, next(iter(batches.values()))[0], lambda states, number: states)
    widths = [m.shape[-1] for m in means] + [final.shape[-1]]
    parameters = {
        task: {
            key: value
            for number, width in enumerate(widths)
            for key, value in (
                (f"{number}/down", down_weights(rank, width, seed, "surgery_v2", task, number, "down")),
                (f"{number}/up", leaf(torch.zeros(width, rank))),
            )
        }
        for task in experts
    }

    def adapted(x: Tensor, task: str) -> tuple[list[Tensor], Tensor]:
        def adapter(h: Tensor, number: int) -> Tensor:
            down, up = (parameters[task][f"{number}/{part}"] for part in ("down", "up"))
            return h - torch.relu(h @ down.T) @ up.T

        inner, last = run(merged, x, adapter)
        return inner, adapter(last, len(widths) - 1)

    def loss_of(task: str, step: int) -> Tensor:
        x = batches[task][step]
        inner, last = adapted(x, task)
        wanted, target = run(experts[task], x, lambda states, number: states)
        return sum(l1(a, b) for a, b in zip(inner, wanted, strict=True)) + l1(last, target)

    losses = train(parameters, loss_of, steps, lr)
    return Outcome(named(parameters), losses, lambda x, task: adapted(x, task)[1])


# ---------------------------------------------------------------- 7.3


def prob_surgery(model, merged: State, experts, batches, steps, hidden=128, lr=1e-3, kl=1e-4, shared=False, seed=0) -> Outcome:
    """z - (mu + exp(l/2) eps) with mu = M r, l = V r, r = relu(D z); evaluation subtracts mu alone."""
    model, _ = in_double(model, {})
    merged, experts = double(merged), {t: double(e) for t, e in experts.items()}
    width = features(model, merged, next(iter(batches.values()))[0]).shape[-1]

    def module(name: str) -> dict[str, Tensor]:
        return {
            "down": down_weights(hidden, width, seed, "prob_surgery", name, "down"),
            "mean": leaf(torch.zeros(width, hidden)),
            "log_variance": leaf(torch.zeros(width, hidden)),
        }

    common = module("")
    parameters = {task: common if shared else module(task) for task in experts}

    def moments_of(x: Tensor, task: str) -> tuple[Tensor, Tensor, Tensor]:
        z = features(model, merged, x)
        r = torch.relu(z @ parameters[task]["down"].T)
        return z, r @ parameters[task]["mean"].T, r @ parameters[task]["log_variance"].T

    def loss_of(task: str, step: int) -> Tensor:
        x = batches[task][step]
        z, mu, log_variance = moments_of(x, task)
        noise = normal(tuple(z.shape), seed, "prob_surgery", task, "noise", step).double()
        sampled = z - (mu + (log_variance / 2).exp() * noise)
        divergence = -(1 + log_variance - mu**2 - log_variance.exp()).sum(-1).mean() / 2
        return l1(sampled, features(model, experts[task], x)) + kl * divergence

    def encode(x: Tensor, task: str) -> Tensor:
        z, mu, _ = moments_of(x, task)
        return z - mu

    losses = train(parameters, loss_of, steps, lr)
    learned = named({"": common}) if shared else named(parameters)
    return Outcome(learned, losses, encode)

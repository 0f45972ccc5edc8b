"""The three ways to do a step: plain training, the package's engine, and autograd through the merge."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
from torch import Tensor, nn

from benchmarks.problem import Problem
from benchmarks.reference import AutogradMerge
from fusionbench_lite.adaptation.engine.descent import Descent
from fusionbench_lite.adaptation.engine.objectives import entropy
from fusionbench_lite.adaptation.engine.parametrisation import Parametrisation
from fusionbench_lite.adaptation.engine.parts import Factors, Part, Vectors
from fusionbench_lite.adaptation.engine.procedure import Context, Examples
from fusionbench_lite.weights.experts import Experts

LR = 1e-3
TEMPERATURE = 10.0
Step = Callable[[], Tensor]
"""One step; returns the total loss, detached."""


def plain(problem: Problem) -> Step:
    """Forward and backward of all tasks' examples at once, through the model's ordinary parameters."""
    return plain_step(problem.model, problem.heads, problem.batch)


def plain_step(model: nn.Module, heads: Mapping[str, Callable[[Tensor], Tensor]], batch: Mapping[str, Tensor]) -> Step:
    """Return the plain step of a model on a batch of every task."""
    inputs = torch.cat(list(batch.values()))
    sizes = [len(part) for part in batch.values()]

    def step() -> Tensor:
        model.zero_grad(set_to_none=True)
        features = model(inputs).split(sizes)
        parts = zip(heads.values(), features, strict=True)
        loss = torch.stack([entropy(head(part)).mean() for head, part in parts]).sum()
        torch.autograd.backward(loss)
        return loss.detach()

    return step


def parametrisation(problem: Problem) -> Parametrisation:
    """Return the package's parametrisation of the problem, as its methods build it from experts."""
    parts: dict[str, Part] = {}
    for name, origin in problem.pretrained.items():
        svd = problem.factors.get(name)
        if svd is None:
            parts[name] = Vectors(origin, problem.vectors[name])
        else:
            parts[name] = Factors(
                origin, svd.left, svd.values, svd.right, svd.active, temperature=TEMPERATURE, deltas=svd.deltas
            )
    experts = Experts(problem.pretrained, dict.fromkeys(problem.batch, problem.pretrained))
    clamp = problem.method.kind == "vectors"
    return Parametrisation(experts, parts, problem.method.scaling, lr=LR, clamp=clamp)


def engine(problem: Problem, learned: Parametrisation, chunk: int | None = None) -> Step:
    """The package's step: merge into leaves, one concatenated pass, gradients in closed form, Adam."""
    procedure = Descent(learned, Context(problem.model, problem.heads, 1, chunk))
    procedure.optimizers()
    batch = {task: Examples(inputs) for task, inputs in problem.batch.items()}

    def step() -> Tensor:
        losses = procedure.step(0, [batch], lambda _, optimizer: optimizer.step())
        return torch.stack(list(losses.values())).sum()

    return step


def autograd(problem: Problem, learned: AutogradMerge) -> Step:
    """A step as in published code: merge inside the graph, one forward pass per task, one backward pass, Adam."""
    optimizer = torch.optim.Adam(learned.parameters(), lr=LR)

    def step() -> Tensor:
        optimizer.zero_grad(set_to_none=True)
        merged = learned.merged()
        loss = torch.zeros((), device=next(iter(merged.values())).device)
        for task, inputs in problem.batch.items():
            features = torch.func.functional_call(problem.model, merged, (inputs,))
            loss = loss + entropy(problem.heads[task](features)).mean()
        torch.autograd.backward(loss)
        optimizer.step()
        return loss.detach()

    return step


def prepare(problem: Problem, variant: str, chunk: int | None = None) -> Callable[[], Step]:
    """Build what a variant keeps between steps beside its merged weights; the function returned builds the rest."""
    if variant == "plain":
        return lambda: plain(problem)
    if variant == "engine":
        learned = parametrisation(problem)
        return lambda: engine(problem, learned, chunk)
    merge = AutogradMerge(problem, TEMPERATURE)
    return lambda: autograd(problem, merge)

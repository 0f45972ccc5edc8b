"""The loop that trains language models: descent on labels, resumable to the bit.

    def loss_of_step(step):
        yield model(**batch_of(step)).loss

    losses = optimise(model, loss_of_step, dict(model.named_parameters()), Course(lr=1e-3), steps=300, key=(seed, "cola"))

A step's examples and random numbers follow from its number alone, so that a run that was killed needs only weights and
optimizer to go on, and ends, on a processor with the same number of threads, with the bits of an undisturbed one.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from fusionbench_lite.adaptation.learners.training import Course
from fusionbench_lite.base import preemption
from fusionbench_lite.base.randomness import seed_of
from fusionbench_lite.errors import InputError, MergeError
from fusionbench_lite.paths import atomic_file

LossOfStep = Callable[[int], Iterable[Tensor]]


class Watcher(Protocol):
    """What looks at a training after its steps, and survives a resume."""

    def after(self, completed: int) -> None:
        """Look; `completed` steps are done. The model is in evaluation mode, and gradients are off."""

    def wants(self, completed: int) -> bool:
        """Whether `after` is to be called."""

    def state_dict(self) -> dict[str, Any]:
        """Return what a checkpoint stores."""

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore what a checkpoint stored."""


def optimise(
    model: nn.Module, loss_of_step: LossOfStep, parameters: Mapping[str, nn.Parameter], course: Course, *, steps: int,
    key: Sequence[object], checkpoint: Path | None = None, checkpoint_every: int = 200, watchers: Sequence[Watcher] = (),
    report: Callable[[int, float], None] = lambda completed, loss: None,
) -> list[float]:
    """Train `parameters` of `model` in place for `steps` steps, and return the loss of each.

    `loss_of_step(step)`, from 0, gives the terms whose sum is the loss; each is differentiated before the next is asked for,
    so a large batch may come in parts. Weight decay is for matrices, not for biases and norms. `key` names the random
    stream of dropout. With a `checkpoint` the state is stored there every so many steps, and gone on from where it is
    there: its name has to stand for everything that decides the weights. Neither torch's random numbers nor the model's
    mode are changed. Raises MergeError for a loss or a gradient that is not finite, naming the step.
    """
    optimizer = _optimizer(parameters, course)
    losses = _restore(checkpoint, steps, parameters, optimizer, watchers)
    with preemption.held() if checkpoint is not None else contextlib.nullcontext(), _training(model):
        for step in range(len(losses), steps):
            for group in optimizer.param_groups:
                group["lr"] = course.rate(step, steps)
            torch.manual_seed(seed_of(*key, "dropout", step) % 2**63)
            losses.append(_step(step, loss_of_step, list(parameters.values()), optimizer, course.clip))
            completed = step + 1
            if looking := [watcher for watcher in watchers if watcher.wants(completed)]:
                model.eval()
                with torch.no_grad():
                    for watcher in looking:
                        watcher.after(completed)
                model.train()
            report(completed, losses[-1])
            wanted = preemption.is_wanted()
            if checkpoint is not None and (completed % checkpoint_every == 0 or wanted):
                _store(checkpoint, losses, parameters, optimizer, watchers)
            if wanted:
                preemption.leave()
    return losses


def _optimizer(parameters: Mapping[str, nn.Parameter], course: Course) -> torch.optim.Optimizer:
    matrices = [tensor for tensor in parameters.values() if tensor.dim() > 1]
    others = [tensor for tensor in parameters.values() if tensor.dim() <= 1]
    groups: list[dict[str, Any]] = [{"params": matrices}, {"params": others, "weight_decay": 0.0}]
    return course.optimizer_of([group for group in groups if group["params"]], fused=True)


@contextlib.contextmanager
def _training(model: nn.Module) -> Iterator[None]:
    """Put the model into training mode, with random numbers of its own."""
    device, before = next(model.parameters()).device, model.training
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []), torch.enable_grad():
        model.train()
        try:
            yield
        finally:
            model.train(before)


def _step(
    step: int, loss_of_step: LossOfStep, parameters: list[nn.Parameter], optimizer: torch.optim.Optimizer, clip: float | None
) -> float:
    optimizer.zero_grad(set_to_none=True)
    total = 0.0
    for term in loss_of_step(step):
        total += float(term.detach())
        if not math.isfinite(total):
            raise MergeError(f"the loss of step {step + 1} is {total}: lower the learning rate, or look for bad values in the data")
        torch.autograd.backward(term, inputs=parameters)
    norm = nn.utils.clip_grad_norm_(parameters, math.inf if clip is None else clip)
    if not bool(torch.isfinite(norm)):
        raise MergeError(f"the gradient of step {step + 1} is not finite (norm {float(norm)}): lower the learning rate")
    optimizer.step()
    return total


def _store(
    path: Path, losses: list[float], parameters: Mapping[str, nn.Parameter], optimizer: torch.optim.Optimizer,
    watchers: Sequence[Watcher],
) -> None:
    state = {
        "losses": losses, "parameters": {name: tensor.detach() for name, tensor in parameters.items()},
        "optimizer": optimizer.state_dict(), "watchers": [watcher.state_dict() for watcher in watchers],
    }
    with atomic_file(path) as temporary, temporary.open("wb") as file:  # torch hides a full disk behind a path
        torch.save(state, file)


def _restore(
    path: Path | None, steps: int, parameters: Mapping[str, nn.Parameter], optimizer: torch.optim.Optimizer,
    watchers: Sequence[Watcher],
) -> list[float]:
    """Return the losses of the steps that are done already."""
    if path is None or not path.is_file():
        return []
    state = torch.load(path, weights_only=True, map_location="cpu")
    if len(state["losses"]) > steps:
        raise InputError(f"{path} is of step {len(state['losses'])}, the training has {steps}: remove it")
    with torch.no_grad():
        for name, tensor in parameters.items():
            tensor.copy_(state["parameters"][name])
    optimizer.load_state_dict(state["optimizer"])
    for watcher, stored in zip(watchers, state["watchers"], strict=True):
        watcher.load_state_dict(stored)
    return list(state["losses"])

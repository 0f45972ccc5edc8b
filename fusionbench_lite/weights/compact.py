"""Tensors of methods that keep one model per task, stored as the papers count them and unfolded when asked for."""

from __future__ import annotations

import dataclasses
from collections.abc import Hashable, Iterator
from typing import TYPE_CHECKING, NamedTuple, Protocol

import numpy as np

from fusionbench_lite.lazy import torch
from fusionbench_lite.weights.experts import Experts

if TYPE_CHECKING:
    from numpy.typing import NDArray
    from torch import Tensor


class Buffer(NamedTuple):
    """Bytes that have to be stored beside the pretrained model; equal keys are stored once."""

    key: Hashable
    nbytes: int
    shared: bool


class PerTask(Protocol):
    """One tensor of T models. `on_base`: the stored form is a difference from the pretrained tensor."""

    on_base: bool

    def tensor(self, task: str) -> Tensor:
        """Return the tensor of this task's model, in its own memory."""

    def buffers(self) -> Iterator[Buffer]:
        """Yield what is stored."""


@dataclasses.dataclass(frozen=True)
class Own:
    """The expert's own tensor."""

    experts: Experts
    name: str
    on_base = False

    def tensor(self, task: str) -> Tensor:
        return self.experts.expert(task, self.name)

    def buffers(self) -> Iterator[Buffer]:
        for task in self.experts.tasks:
            yield Buffer((task, self.name), self.experts.layout[self.name].nbytes, False)


@dataclasses.dataclass(frozen=True)
class Masked:
    """θ0 + ρ_t M_t ⊙ τ with one vector τ [flattened] for all tasks, a bit per entry and task, and a factor per task.

    `bits` [T, ⌈d/8⌉] are the packed masks in task order; `scales` [T] the factors ρ, one tensor for the whole model, or
    None for 1.
    """

    experts: Experts
    name: str
    vector: Tensor
    bits: NDArray[np.uint8]
    scales: Tensor | None = None
    on_base = True

    def tensor(self, task: str) -> Tensor:
        number = self.experts.tasks.index(task)
        mask = np.unpackbits(self.bits[number], count=len(self.vector)).view(np.bool_)
        update = self.vector * torch.from_numpy(mask).to(self.vector.device)
        if self.scales is not None:
            update *= self.scales[number]
        return self.experts.base(self.name) + update.reshape(self.experts.shape(self.name))

    def buffers(self) -> Iterator[Buffer]:
        yield Buffer(("vector", self.name), self.vector.nbytes, True)
        yield Buffer(("bits", self.name), self.bits.nbytes, False)
        if self.scales is not None:
            yield Buffer(id(self.scales), self.scales.nbytes, False)


@dataclasses.dataclass(frozen=True)
class LowRank:
    """θ0 + L_t R_t, with L_t [m, k] and R_t [k, n] per task, the singular values multiplied into L_t."""

    experts: Experts
    name: str
    left: tuple[Tensor, ...]
    right: tuple[Tensor, ...]
    on_base = True

    def tensor(self, task: str) -> Tensor:
        number = self.experts.tasks.index(task)
        base = self.experts.base(self.name)
        return base + (self.left[number] @ self.right[number]).to(base.dtype)

    def buffers(self) -> Iterator[Buffer]:
        for task, left, right in zip(self.experts.tasks, self.left, self.right, strict=True):
            yield Buffer((task, self.name), left.nbytes + right.nbytes, False)


def pack(mask: Tensor) -> NDArray[np.uint8]:
    """Return boolean rows [T, length] as bits [T, ⌈length/8⌉], eight to a byte."""
    return np.packbits(mask.cpu().numpy(), axis=1)

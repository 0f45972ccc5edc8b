"""Tensors of methods that keep one model per task, stored as the papers count them and unfolded when asked for."""

from __future__ import annotations

import dataclasses
from collections.abc import Hashable, Iterator
from typing import TYPE_CHECKING, NamedTuple, Protocol

from fusionbench_lite.lazy import torch
from fusionbench_lite.weights.experts import Experts

if TYPE_CHECKING:
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
    """The expert's own tensor, which may be an integer or boolean one."""

    experts: Experts
    name: str
    on_base = False

    def tensor(self, task: str) -> Tensor:
        if not self.experts.specs[self.name].dtype.is_floating_point:
            return self.experts.stored(task, self.name)
        return self.experts.expert(task, self.name)

    def buffers(self) -> Iterator[Buffer]:
        for task in self.experts.tasks:
            yield Buffer((task, self.name), self.experts.specs[self.name].nbytes, False)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Masked:
    """θ0 + ρ_t M_t ⊙ τ with one vector τ [flattened] for all tasks, a bit per entry and task, and a factor per task.

    `bits` uint8 [T, ⌈d/8⌉] are the packed masks in task order; `scales` [T] the factors ρ, one tensor for the whole model, or
    None for 1.
    """

    experts: Experts
    name: str
    vector: Tensor
    bits: Tensor
    scales: Tensor | None = None
    on_base = True

    def tensor(self, task: str) -> Tensor:
        number = self.experts.tasks.index(task)
        update = self.vector * unpack(self.bits[number], len(self.vector)).to(self.vector.device)
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


def pack(mask: Tensor) -> Tensor:
    """Return boolean rows [T, length] as bits, uint8 [T, ⌈length/8⌉], on the CPU."""
    import numpy as np

    return torch.from_numpy(np.packbits(mask.cpu().numpy(), axis=1))


def unpack(bits: Tensor, length: int) -> Tensor:
    """Return the boolean vector [length] of one row of bits."""
    import numpy as np

    return torch.from_numpy(np.unpackbits(bits.numpy(), count=length).view(np.bool_))

"""State dicts behind files whose tensors are wanted on a device, and the choice of what is held in memory meanwhile."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING

from fusionbench_lite.errors import MergeError, did_you_mean
from fusionbench_lite.lazy import torch
from fusionbench_lite.weights.specs import StateDict, TensorSpec, specs_of

if TYPE_CHECKING:
    from torch import Tensor

HELD = ("device", "cpu", "disk")
_ALIGNMENT = 64
"""Bytes to which torch aligns its own memory."""


class PlacedWeights(Mapping[str, "Tensor"]):
    """The tensors of `source` on a device; bits, names and order are those of the source.

    `place`: with "disk" every access reads the source, with "cpu" tensors are held in the processor's memory from the first
    access on and copied to the device, with "device" they are held there. `source` is a mapping that reads files, such
    as `SafetensorsWeights`. What is held is never to be modified; `drop_held` lets go of it, and it is read again when it
    is asked for. Raises MergeError for an unknown place.
    """

    def __init__(self, source: StateDict, device: str | torch.device = "cpu", place: str = "disk") -> None:
        if place not in HELD:
            raise MergeError(f"unknown place {place!r}: {did_you_mean(place, HELD)}")
        self.source, self.place = source, place
        self.device = torch.empty(0, device=device).device  # with its number: cuda is cuda:0
        self._held: dict[str, Tensor] = {}
        self._specs: dict[str, TensorSpec] = {}
        if callable(getattr(source, "factors", None)):
            self.factors = self._factors

    def __getitem__(self, name: str) -> Tensor:
        if self.place == "disk":
            return self.source[name].to(self.device)
        if name not in self._held:
            read = self.source[name].detach()
            self._held[name] = _in_memory(read) if self.place == "cpu" or self.device.type == "cpu" else read.to(self.device)
        return self._held[name].to(self.device)

    def spec(self, name: str) -> TensorSpec:
        """Return shape and dtype without reading the tensor where the source can tell."""
        if name not in self._specs:
            declared = getattr(self.source, "spec", None)
            self._specs = {name: declared(name)} | self._specs if callable(declared) else specs_of(self.source, "weights")
        return self._specs[name]

    def drop_held(self) -> None:
        """Let go of what is held in memory."""
        self._held.clear()

    def _factors(self, name: str) -> tuple[Tensor, Tensor] | None:
        """Return the factors of a low-rank adapter on the device."""
        factors: tuple[Tensor, Tensor] | None = self.source.factors(name)  # type: ignore[attr-defined]
        return None if factors is None else (factors[0].to(self.device), factors[1].to(self.device))

    def __iter__(self) -> Iterator[str]:
        return iter(self.source)

    def __len__(self) -> int:
        return len(self.source)


def _in_memory(tensor: Tensor) -> Tensor:
    """Return a copy in the processor's memory that torch does not own: who checks whether a result is an input sees it."""
    import numpy as np

    buffer = torch.from_numpy(np.empty(tensor.nbytes + _ALIGNMENT, dtype=np.uint8))
    start = -buffer.data_ptr() % _ALIGNMENT
    copy = buffer[start : start + tensor.nbytes].view(tensor.dtype).view(tensor.shape)
    return copy.copy_(tensor)

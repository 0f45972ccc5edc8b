"""What is measured of a device, and what it is asked for."""

from __future__ import annotations

import dataclasses
import os


@dataclasses.dataclass(frozen=True, kw_only=True)
class Asked:
    """A device, a precision, and a product as the perceptrons of a model have it: [rows, width] with [width, 4 width]."""

    device: str
    precision: str
    rows: int
    width: int


@dataclasses.dataclass(frozen=True, kw_only=True)
class Rates:
    """What was measured of a `device` of this `name`, and when.

    `flops`: operations per second of the product that was asked for. `decompositions`: those of a singular decomposition through
    the Gram matrix in float64, and `elements`: multiplied and added numbers per second, both on the processor, where merges take
    place. `images`: photographs decoded and resized per second by one core, of which a run uses `cores`.
    """

    device: str
    name: str
    precision: str
    rows: int
    width: int
    flops: float
    decompositions: float
    elements: float
    images: float
    cores: int
    measured: str

    @property
    def kind(self) -> str:
        """The device's type, cpu or cuda."""
        return self.device.partition(":")[0]

    @property
    def decoding(self) -> float:
        """Images decoded per second by all cores."""
        return self.images * self.cores

    @property
    def product(self) -> str:
        """The rate of the product, with its shape."""
        return f"{_flops(self.flops)} in a product [{self.rows}, {self.width}] x [{self.width}, {4 * self.width}], {self.precision}"

    @property
    def others(self) -> str:
        """The other rates."""
        return (
            f"{_flops(self.decompositions)} in decompositions, {self.elements / 1e9:.2g} G numbers/s in sums, "
            f"{self.images:,.0f} images of 500 x 375 pixels decoded a second on each of {self.cores} cores"
        )


def _flops(rate: float) -> str:
    return f"{rate / 1e12:.3g} TFLOP/s" if rate >= 1e12 else f"{rate / 1e9:.3g} GFLOP/s"


def cores() -> int:
    """Return how many cores this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1

"""How many examples run at once where no gradient is needed: as many as fit."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from typing import TypeVar

import numpy as np
import torch
from numpy.typing import NDArray

from fusionbench_lite.errors import InputError
from fusionbench_lite.evaluation.pass_sizes import MOST, PLACES, of_images, of_places

log = logging.getLogger(__name__)

PROBE = 16
"""Examples of the first pass on a GPU, which shows what an example costs."""
SHARE = 0.4
"""Of the GPU memory that is free after the first pass, the part that passes may take."""

Result = TypeVar("Result")

_earlier_peaks: dict[torch.device, int] = {}


def earlier_peak(device: torch.device) -> int:
    """Return the most GPU memory that was in use before a first pass was measured, which counts anew."""
    return _earlier_peaks.get(device, 0)


def begin_peak(device: torch.device) -> None:
    """Have the peak of a GPU begin anew at what is in use, and keep the earlier one."""
    _earlier_peaks[device] = max(earlier_peak(device), torch.cuda.max_memory_allocated(device))
    torch.cuda.reset_peak_memory_stats(device)


class Passes:
    """The number of examples in one pass: the one given, or one that is found; halved when memory runs out.

    Examples of unequal lengths run in order of length, the longest first: a pass holds as many as fill the places of so many
    of the longest.
    """

    def __init__(self, size: int | None, pixels: int, device: torch.device) -> None:
        self.device, self.given = device, size is not None
        self.size = size
        self._longest, self._places = 1, None if device.type == "cuda" else PLACES
        if size is None and device.type != "cuda":
            self.size = of_images(pixels)

    def run(
        self, compute: Callable[[NDArray[np.int64]], Result], examples: int, lengths: NDArray[np.int64] | None = None
    ) -> Iterator[tuple[NDArray[np.int64], Result]]:
        """Yield rows and `compute(rows)` until all examples had their turn. Raises InputError where one example is too much.

        Rows are consecutive, or where `lengths` [N] are given in their order.
        """
        order = np.arange(examples) if lengths is None else np.argsort(-lengths, kind="stable")
        start = 0
        while start < examples:
            rows = order[start : start + self._count(order[start:], lengths)]
            if self.size is None and lengths is not None:
                self._longest = max(int(lengths[rows[0]]), 1)
            try:
                result = compute(rows) if self.size else self._probed(compute, rows)
            except torch.OutOfMemoryError as error:
                if len(rows) == 1:
                    raise InputError("out of memory with one example at a time: use a smaller model or device=cpu") from error
                self.size = -(-len(rows) // 2)
                if lengths is not None:  # so many of these, else as many would be tried again
                    self._longest, self._places = max(int(lengths[rows[0]]), 1), None
                log.warning("out of memory with %d examples in a pass: trying %d", len(rows), self.size)
                continue
            yield rows, result
            start += len(rows)

    def _count(self, coming: NDArray[np.int64], lengths: NDArray[np.int64] | None) -> int:
        """Return how many of the coming rows run at once."""
        size = self.size or PROBE
        if lengths is None or self.given or self.size is None:
            return size
        places = size * self._longest if self._places is None else self._places
        return of_places(places, int(lengths[coming[0]]), self.device.type)

    def _probed(self, compute: Callable[[NDArray[np.int64]], Result], rows: NDArray[np.int64]) -> Result:
        """Run a first small pass on a GPU and set the size from what an example took."""
        torch.cuda.synchronize(self.device)
        before = torch.cuda.memory_allocated(self.device)
        begin_peak(self.device)
        result = compute(rows)
        torch.cuda.synchronize(self.device)
        each = max(1, (torch.cuda.max_memory_allocated(self.device) - before) // len(rows))
        free, _ = torch.cuda.mem_get_info(self.device)
        held = torch.cuda.memory_reserved(self.device) - torch.cuda.memory_allocated(self.device)
        wanted = int(SHARE * (free + held)) // each
        self.size = max(1, min(MOST["cuda"], 1 << max(0, wanted.bit_length() - 1)))
        return result

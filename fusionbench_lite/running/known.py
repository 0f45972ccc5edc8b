"""What frozen networks say about examples, computed once: a row per example, or a row per place of one."""

from __future__ import annotations

from collections.abc import Callable, Iterable

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from fusionbench_lite.adaptation.engine import memory

Rows = NDArray[np.int64]
Known = Callable[[Rows], Tensor]
"""`known(rows)` returns what is known of some of the examples, [B, ...]."""


def known(wanted: Rows, probe: Tensor, computing: Iterable[tuple[Rows, Tensor | None]], lengths: Rows | None = None) -> Known:
    """Return what is known of the examples `wanted`, once all of `computing` has run, which yields places in it and values.

    `probe` are values of one example. With `lengths` of the wanted examples values are [B, L, ...], of which an example has its
    own length, and are filled up with 0 to the longest of those that are asked for; without, they are [B, ...]. They stay on the
    probe's device where its memory allows, else in the processor's.
    """
    rows = len(wanted) if lengths is None else int(lengths.sum())
    shape = probe.shape[1:] if lengths is None else probe.shape[2:]
    nbytes = rows * int(np.prod(shape)) * probe.element_size()
    table = probe.new_empty((rows, *shape), device=None if memory.allows(nbytes, probe.device) else memory.CPU)
    starts = np.arange(len(wanted)) if lengths is None else np.cumsum(lengths) - lengths
    for some, values in computing:
        assert values is not None
        if lengths is None:
            table[torch.from_numpy(some)] = values.to(table.device)
        else:
            there = _places(lengths[some], values.shape[1])
            table[torch.from_numpy(_flat(starts[some], there))] = values[torch.from_numpy(there).to(values.device)].to(table.device)
    place = np.full(int(wanted.max(initial=-1)) + 1, -1)
    place[wanted] = np.arange(len(wanted))

    def look_up(rows: Rows) -> Tensor:
        some = place[rows]
        if lengths is None:
            return table[torch.from_numpy(some)]
        there = _places(lengths[some], int(lengths[some].max(initial=0)))
        values = table.new_zeros((*there.shape, *shape))
        values[torch.from_numpy(there)] = table[torch.from_numpy(_flat(starts[some], there))]
        return values

    return look_up


def _places(lengths: Rows, longest: int) -> NDArray[np.bool_]:
    """Return which places [B, L] examples of these lengths have."""
    return np.arange(longest) < lengths[:, None]


def _flat(starts: Rows, there: NDArray[np.bool_]) -> Rows:
    """Return the rows of a table of all places, of the places that examples have from `starts` on."""
    rows: Rows = (starts[:, None] + np.arange(there.shape[1]))[there]
    return rows

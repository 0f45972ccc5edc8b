"""Blocks of one tensor of every model: they cover it, sums over them are exact, and a band keeps the ranks it names."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from fusionbench_lite.weights import walks
from fusionbench_lite.weights.order import Band
from fusionbench_lite.weights.walks import Walk, added


def walk(dtype: torch.dtype, count: int = 3, size: int = 10_007, base: bool = True) -> Walk:
    generator = torch.Generator().manual_seed(count)
    tensors = [torch.randn(size, generator=generator).to(dtype) for _ in range(count + 1)]
    return Walk(tensors[0] if base else None, tensors[1:], torch.float64 if dtype == torch.float64 else torch.float32)


@pytest.mark.parametrize("base", [True, False])
@pytest.mark.parametrize("unit", [1, 7, 6000, 20_000])
def test_blocks_cover_the_vectors_in_multiples_of_the_unit(unit: int, base: bool, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(walks, "BLOCK", 1)
    given = walk(torch.bfloat16, base=base)
    whole = torch.stack([flat.float() - (given.base.float() if base else 0) for flat in given.flat])
    parts, end = [], 0
    for part, block in given.blocks(unit):
        assert part.start == end
        assert (part.stop - part.start) % unit == 0 or part.stop == whole.shape[1]
        parts.append(block.clone())
        end = part.stop
    assert torch.equal(torch.cat(parts, dim=1), whole)
    alone = torch.cat([block.clone() for _, block in given.blocks(unit, only=1)], dim=1)
    assert torch.equal(alone, whole[1:2])


@pytest.mark.parametrize("count", [1, 2, 8, 9])
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_inner_products_are_those_in_float64(dtype: torch.dtype, count: int, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(walks, "BLOCK", 1)
    given = walk(dtype, count)
    whole = torch.stack([flat.to(given.dtype) - given.base.to(given.dtype) for flat in given.flat]).double()
    torch.testing.assert_close(given.products(), whole @ whole.T, rtol=1e-13, atol=1e-10)


@pytest.mark.parametrize("scaling", [1.0, -0.3])
def test_what_is_added_to_the_base_keeps_the_memory_of_the_vectors(scaling: float):
    base, vectors = torch.randn(300_000).bfloat16(), torch.randn(300_000)
    expected = base.float() + scaling * vectors
    result = added(vectors, base, scaling)
    assert result.data_ptr() == vectors.data_ptr()
    assert torch.equal(result, expected)


@pytest.mark.parametrize(("first", "kept"), [(0, 0), (0, 30), (3, 10), (5, 25), (29, 1), (0, 1), (12, 6), (30, 0)])
@pytest.mark.parametrize("values", [2, 5, 1000])
def test_a_band_keeps_ranks_where_the_first_of_equals_counts_as_larger(values: int, first: int, kept: int):
    sizes = np.random.default_rng(values).integers(0, values, (4, 30)).astype(np.float32)
    order = np.argsort(-sizes, axis=1, kind="stable")[:, first : first + kept]
    expected = np.zeros_like(sizes, dtype=bool)
    np.put_along_axis(expected, order, True, axis=1)
    given = torch.from_numpy(sizes)
    band = Band.of(given, first, kept)
    pieces = [band.mask(given[:, :11]), band.mask(given[:, 11:12]), band.mask(given[:, 12:])]
    assert np.array_equal(torch.cat(pieces, dim=1).numpy(), expected)
    for row, wanted in zip(given, expected, strict=True):
        alone = Band.of(row[None].clone(), first, kept, overwrite=True)
        assert np.array_equal(alone.mask(row[None])[0].numpy(), wanted)

"""Laws of TSV-M, CART and Iso-C that need no oracle."""

from __future__ import annotations

import numpy as np
import torch
from hypothesis import assume, given
from hypothesis import strategies as st

from tests.laws.test_methods_laws import DOUBLE, SEED, close, draw, merge
from tests.oracles.data_free import array, truncated
from tests.support.helpers import experts_of, rng

SPECTRAL = ["tsv_m", "cart", "iso_c"]


def rotations(seed: int, rows: int, columns: int) -> tuple[torch.Tensor, torch.Tensor]:
    g = rng(seed)
    return tuple(torch.linalg.qr(torch.randn(n, n, generator=g, dtype=DOUBLE))[0] for n in (rows, columns))


@given(
    seed=SEED,
    count=st.integers(1, 3),
    shape=st.sampled_from([(6, 6), (9, 5), (5, 9), (3, 8)]),
    method=st.sampled_from(SPECTRAL),
)
def test_spectral_methods_are_orthogonally_equivariant(seed, count, shape, method):
    base = {"attn.w": torch.randn(shape, generator=rng(seed), dtype=DOUBLE)}
    experts = experts_of(base, count, seed % 1009)
    q, r = rotations(seed % 7919, *shape)
    turned = {t: {"attn.w": q @ e["attn.w"] @ r} for t, e in experts.items()}
    want = q @ merge(method, base, experts)["attn.w"] @ r
    close({"attn.w": want}, merge(method, {"attn.w": q @ base["attn.w"] @ r}, turned), 1e-6)


@given(seed=SEED, count=st.integers(1, 4), shape=st.sampled_from([(6, 6), (9, 5), (4, 9)]))
def test_iso_flattens_the_spectrum_and_keeps_the_nuclear_norm(seed, count, shape):
    base = {"w": torch.zeros(shape, dtype=DOUBLE)}
    experts = experts_of(base, count, seed % 1009)
    total = sum(array(e["w"]) for e in experts.values())
    flat = merge("iso_c", base, experts)["w"]
    sums, values = np.linalg.svd(total, compute_uv=False), np.linalg.svd(flat.numpy(), compute_uv=False)
    assume(sums[-1] > 1e-3 * sums[0])
    assert np.allclose(values, sums.mean(), rtol=1e-9)
    assert np.isclose((flat.numpy() * total).sum(), len(sums) * sums.mean() ** 2, rtol=1e-9)
    close(merge("iso_c", base, {"once": {"w": flat}}), {"w": flat}, 1e-9)


@given(seed=SEED)
def test_tsv_of_orthogonal_tasks_is_the_sum_of_truncations(seed):
    g = rng(seed)
    q, r = rotations(seed % 7919, 8, 10)
    experts = {}
    for t in range(2):
        core = torch.zeros(8, 10, dtype=DOUBLE)
        core[4 * t : 4 * t + 4, 5 * t : 5 * t + 5] = torch.randn(4, 5, generator=g, dtype=DOUBLE)
        experts[f"t{t}"] = {"w": q @ core @ r}
    state = merge("tsv_m", {"w": torch.zeros(8, 10, dtype=DOUBLE)}, experts)
    close(state, {"w": sum(e["w"] for e in experts.values())}, 1e-8)


@given(seed=SEED, count=st.integers(2, 5), ratio=st.sampled_from([None, 0.2, 0.34]))
def test_tsv_rank(seed, count, ratio):
    base = {"w": torch.zeros(10, 12, dtype=DOUBLE)}
    experts = experts_of(base, count, seed % 1009)
    values = np.linalg.svd(merge("tsv_m", base, experts, rank_ratio=ratio)["w"].numpy(), compute_uv=False)
    k = 10 // count if ratio is None else int(10 * ratio)
    assert (values[min(10, count * k) :] < 1e-9).all()


@given(seed=SEED, count=st.integers(2, 4), scaling=st.floats(-2, 3))
def test_cart_ignores_the_base_and_full_rank_gives_the_mean(seed, count, scaling):
    base = draw(seed)
    experts = experts_of(base, count, seed % 1009)
    other = draw(seed + 1)
    close(merge("cart", base, experts), merge("cart", other, experts), 1e-9)
    mean = merge("weight_averaging", base, experts)
    close(merge("cart", base, experts, rank_ratio=1.0, scaling=scaling), mean, 1e-9)
    pair = dict(list(experts.items())[:2])
    close(merge("cart", base, pair, scaling=scaling), merge("weight_averaging", base, pair), 1e-9)


@given(seed=SEED)
def test_cart_update_is_the_best_approximation_of_each_deviation(seed):
    base = draw(seed)
    experts = experts_of(base, 3, seed % 1009)
    name = "attn.weight"
    mean = array(merge("weight_averaging", base, experts)[name])
    want = 0
    for expert in experts.values():
        u, s, vt = truncated(array(expert[name]) - mean, 3)
        want = want + (u * s) @ vt
    state = merge("cart", base, experts, scaling=1.0, rank_ratio=0.5)
    close(state, {name: torch.from_numpy(mean + want)}, 1e-9, [name])

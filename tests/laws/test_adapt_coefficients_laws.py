"""Laws of AdaMerging++, AdaMerging on TSV-M, CART and Iso-CTS, AdaRank's variants, doGe AM and AWD AM; what they refuse."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import fusionbench_lite as fbl
from tests.oracles import coefficients, data_free, optimised
from tests.support.adapt_comparison import (
    DOUBLE,
    close_states,
    labelled,
    run,
    same_moves,
    tower_setting,
)
from tests.support.helpers import UNUSED, distance, grid_state, same_bits, setting, snapshot, touched
from tests.support.laws import costly

PP = ["adamerging_pp_taskwise", "adamerging_pp_layerwise"]
ON = ["adamerging_tsvm", "adamerging_cart", "adamerging_iso_cts"]
FEW = {"doge_am": {"delta_steps": 5, "matrices": "attn_mlp"}, "awd_am": {"awd_steps": 5}}
RANK = ["adarank_tsvm", "adarank_iso_cts"]
ALL = [*PP, *ON, *FEW, *RANK]
LAWS = costly(8)
SEED = st.integers(0, 1000)
DTYPES = pytest.mark.parametrize("dtype", [torch.float32, DOUBLE], ids=["f32", "f64"])


def few(method):
    return FEW.get(method, {})


# ---------------------------------------------------------------- zero steps


@DTYPES
@pytest.mark.parametrize(
    ("method", "static", "extra"),
    [
        *((method, "ties_merging", {}) for method in PP),
        ("adamerging_tsvm", "tsv_m", {"matrices": "attn_mlp"}),
        ("adamerging_cart", "cart", {}),
        ("adamerging_iso_cts", "iso_cts", {"matrices": "attn_mlp"}),
        ("adarank_tsvm", "tsv_m", {"matrices": "attn_mlp"}),
        ("adarank_iso_cts", "iso_cts", {"matrices": "attn_mlp"}),
        ("awd_am", "awd_ta", {}),
    ],
)
def test_zero_steps_is_the_static_method(method, static, extra, dtype):
    s = setting(dtype=dtype, seed=4)
    s.batches = {t: [] for t in s.batches}
    want = fbl.merge(static, s.pretrained, s.experts, **extra).state_dict()
    close_states(run(method, s, 0).state_dict(), want, s.pretrained, 1e-9 if dtype == DOUBLE else 1e-5)
    if method == "adarank_tsvm":
        close_states(run(method, s, 0, extra="none").state_dict(), want, s.pretrained, 1e-9 if dtype == DOUBLE else 1e-5)


@DTYPES
@pytest.mark.parametrize("method", PP)
def test_zeros_outside_the_state_dict_count_as_in_ties(method, dtype):
    s = setting(dtype=dtype, seed=4)
    s.batches = {t: [] for t in s.batches}
    zeros = {"virtual_zeros": sum(tensor.numel() for tensor in s.pretrained.values())}
    want = fbl.merge("ties_merging", s.pretrained, s.experts, **zeros).state_dict()
    close_states(run(method, s, 0, **zeros).state_dict(), want, s.pretrained, 1e-9 if dtype == DOUBLE else 1e-5)
    without = fbl.merge("ties_merging", s.pretrained, s.experts).state_dict()
    assert any(not torch.equal(want[name], without[name]) for name in want)


@DTYPES
@pytest.mark.parametrize("keep", [0.3, 1.0])
def test_zero_steps_of_doge_am_without_deltas_is_trimmed_task_arithmetic(keep, dtype):
    s = tower_setting(dtype=dtype)
    got = run("doge_am", s, 0, delta_steps=0, keep=keep)
    selected = [n for n in data_free.merged_names(s.pretrained) if s.pretrained[n].ndim == 2 and n.endswith("weight")]
    kept = optimised.masks(s.pretrained, s.experts, selected, keep)
    for name, value in got.state_dict().items():
        if name not in selected:
            assert torch.equal(value, s.pretrained[name]), name
            continue
        update = sum(m * tau for m, tau in zip(kept[name], data_free.task_vectors(s.pretrained, s.experts, name), strict=True))
        assert distance(value, data_free.array(s.pretrained[name]) + 0.3 * update) < (1e-12 if dtype == DOUBLE else 1e-6)


@LAWS
@given(seed=SEED, ratio=st.sampled_from([0.3, 0.6, 1.0]), fraction=st.sampled_from([0.0, 0.25, 0.5, 0.8, 1.0]))
def test_bits_of_iso_cts_at_the_start(seed, ratio, fraction):
    s = setting(seed=seed)
    got = run("adarank_iso_cts", s, 0, rank_ratio=ratio, common_fraction=fraction)
    matrices = [n for n, v in s.pretrained.items() if v.ndim == 2 and ("attn" in n or "mlp" in n)]
    assert set(got.masks) == {n + end for n in matrices for end in ("", "/common")}
    for name in matrices:
        own, common = got.masks[name], got.masks[name + "/common"]
        assert (len(own), len(common)) == (3, 1)
        assert 3 * own.shape[1] + common.shape[1] == 8
        assert all(torch.equal(m, (torch.arange(m.shape[1]) < int(ratio * m.shape[1])).expand_as(m)) for m in (own, common))
        assert got.coefficients[name].shape == (3,)
        assert got.coefficients[name + "/common"].shape == (1,)


# ---------------------------------------------------------------- ++


@LAWS
@given(seed=SEED, method=st.sampled_from(PP), steps=st.integers(0, 4), tasks=st.integers(1, 4))
def test_entries_of_pp_move_along_the_elected_sign(seed, method, steps, tasks):
    s = setting(seed=seed, tasks=tasks, steps=4, dtype=DOUBLE)
    state = run(method, s, steps, lr=0.02).state_dict()
    names = data_free.merged_names(s.pretrained)
    flat = [coefficients.seen(s.pretrained, e, names) for e in s.experts.values()]
    elected = coefficients.cut(sum(coefficients.elected(flat)), s.pretrained, names)
    for name in names:
        moved = state[name] - s.pretrained[name]
        assert torch.equal(moved.sign(), torch.from_numpy(elected[name]).sign()), name
    changed = sum(int((state[n] != s.pretrained[n]).sum()) for n in names)
    assert changed >= 0.2 * len(flat[0])


@LAWS
@given(seed=SEED, tasks=st.integers(1, 4), dtype=st.sampled_from([torch.float32, DOUBLE]))
def test_pp_starts_at_ties_where_entries_tie_and_cancel(seed, tasks, dtype):
    """Multiples of 1/8: many entries lie at the threshold, and many coordinates have no sign of their own."""
    s = setting(seed=seed, tasks=tasks, steps=0, dtype=dtype)
    shapes = {n: tuple(s.pretrained[n].shape) for n in touched(s.pretrained)}
    s.pretrained.update(grid_state(seed, shapes, dtype))
    for t, expert in enumerate(s.experts.values()):
        step = grid_state(seed + 1 + t, shapes, dtype)
        expert.update({n: s.pretrained[n] + step[n] for n in shapes})
    want = data_free.ties_merging(s.pretrained, s.experts)
    for method in PP:
        got = run(method, s, 0).state_dict()
        assert all(distance(got[n], want[n]) < (1e-12 if dtype == DOUBLE else 1e-6) for n in shapes)


# ---------------------------------------------------------------- equivalences


@LAWS
@given(seed=SEED, steps=st.integers(1, 4), method=st.sampled_from(["tsvm", "iso_cts", "cart"]))
def test_adamerging_is_adarank_with_frozen_masks(seed, steps, method):
    s = setting(seed=seed, steps=4, dtype=DOUBLE)
    got = run(f"adamerging_{method}", s, steps, lr=0.02)
    want = run(f"adarank_{method}", s, steps, lr=0.02, learn="coefficients")
    assert got.masks == {}
    assert set(got.coefficients) == set(want.coefficients)
    assert all(torch.allclose(v, want.coefficients[n], atol=1e-9) for n, v in got.coefficients.items())
    close_states(got.state_dict(), want.state_dict(), s.pretrained, 1e-9)


@LAWS
@given(seed=SEED, steps=st.integers(0, 4), clamp=st.booleans(), group=st.sampled_from(["tensor", "global"]))
def test_awd_without_a_redundant_vector_is_adamerging(seed, steps, clamp, group):
    s = setting(seed=seed, steps=4, dtype=DOUBLE)
    want = run("adamerging_layerwise", s, steps, clamp=clamp, lr=0.02)
    got = run("awd_am", s, steps, clamp=clamp, lr=0.02, awd_steps=0, group=group)
    assert all(torch.allclose(v, want.coefficients[n], atol=1e-12) for n, v in got.coefficients.items())
    close_states(got.state_dict(), want.state_dict(), s.pretrained, 1e-12)


@LAWS
@given(seed=SEED, steps=st.integers(1, 4))
def test_doge_without_deltas_and_trimming_is_adamerging_on_the_matrices(seed, steps):
    s = tower_setting(seed=seed, steps=4, dtype=DOUBLE)
    got = run("doge_am", s, steps, delta_steps=0, keep=1.0, lr=0.02)
    for expert in s.experts.values():
        expert.update({n: v for n, v in s.pretrained.items() if v.ndim != 2 or not n.endswith("weight")})
    want = run("adamerging_layerwise", s, steps, clamp=False, lr=0.02)
    assert all(torch.allclose(v, want.coefficients[n], atol=1e-12) for n, v in got.coefficients.items())
    close_states(got.state_dict(), want.state_dict(), s.pretrained, 1e-12)


@LAWS
@given(seed=SEED, steps=st.integers(1, 4))
def test_the_task_deltas_are_the_shared_delta_but_for_the_epsilon_of_adam(seed, steps):
    s = tower_setting(seed=seed, steps=4, dtype=DOUBLE, size=2.0)
    a, b = (run("doge_am", s, steps, deltas=d, delta_steps=20, eta=5.0) for d in ("shared", "per_task"))
    close_states(a.state_dict(), b.state_dict(), s.pretrained, 1e-6)


def test_the_cross_entropy_falls_and_reads_the_labels():
    s = labelled(setting(steps=1, dtype=DOUBLE))
    s.batches = {t: b * 40 for t, b in s.batches.items()}
    for method in ("adarank_ta", "adarank_cart", "adarank_tsvm", "adarank_iso_cts"):
        losses = run(method, s, 40, lr=0.02, objective="cross_entropy").losses
        assert float(losses[-1]) < float(losses[0])
    other = s.copy()
    other.batches = {t: [(x, (y + 1) % 3) for x, y in b] for t, b in s.batches.items()}
    assert not torch.equal(run("adarank_ta", other, 1, objective="cross_entropy").losses, losses[:1])


# ---------------------------------------------------------------- every method


@LAWS
@given(seed=SEED, method=st.sampled_from(ALL), steps=st.integers(1, 4), lr=st.sampled_from([1e-4, 1e-3, 0.1]))
def test_coefficients_move_at_most_like_adam_and_only_where_the_model_reads(seed, method, steps, lr):
    s = setting(seed=seed, steps=steps)
    start, got = run(method, s, 0, **few(method)), run(method, s, steps, lr=lr, **few(method))
    for name, value in got.coefficients.items():
        assert float((value - start.coefficients[name]).abs().max()) <= 3.17 * lr * steps + 1e-6
        if method != PP[0] and name.removesuffix("/common") in UNUSED:
            assert torch.equal(value, start.coefficients[name]), name


@LAWS
@given(seed=SEED, method=st.sampled_from(ALL), order=st.permutations([0, 1, 2]))
def test_permuted_tasks(seed, method, order):
    s = setting(seed=seed, steps=3, dtype=DOUBLE)
    a = run(method, s, 3, lr=0.01, **few(method))
    b = run(method, s.permuted([f"task{t}" for t in order]), 3, lr=0.01, **few(method))
    same_moves(a.coefficients, b.coefficients, order, 1e-7)
    assert all(torch.equal(m if len(m) == 1 else m[order], b.masks[n]) for n, m in a.masks.items())
    close_states(a.state_dict(), b.state_dict(), s.pretrained, 1e-7)


@pytest.mark.parametrize("method", [*PP, "adamerging_cart", "doge_am", "awd_am"])
def test_duplicated_tasks_move_alike_and_a_task_that_moved_nothing_not_at_all(method):
    s = setting(tasks=3, dtype=DOUBLE)
    for part in (s.experts, s.heads, s.batches):
        part["task1"] = part["task0"]
    given_ = {**few(method), "lr": 0.01}
    got = run(method, s, 5, **given_)
    assert all(torch.allclose(v[0], v[1], atol=1e-9) for v in got.coefficients.values())
    s.experts["task2"] = snapshot(s.pretrained)
    if method in (*PP, "doge_am"):
        got = run(method, s, 5, **{**given_, **({"delta_steps": 0} if method == "doge_am" else {})})
        assert all(bool((v[2] == v.new_tensor(0.3)).all()) for v in got.coefficients.values())


@pytest.mark.parametrize("method", ALL)
def test_inputs_stay_and_the_same_call_gives_the_same_bits(method):
    s = setting(dropout=0.4)
    s.model.train()
    before = [snapshot(x) for x in (s.pretrained, *s.experts.values(), s.model.state_dict())]
    a, b = (run(method, s, 4, **few(method)) for _ in range(2))
    assert all(same_bits(x, y) for x, y in zip(before, (s.pretrained, *s.experts.values(), s.model.state_dict()), strict=True))
    assert s.model.training
    assert same_bits(a.state_dict(), b.state_dict())
    assert torch.equal(run(method, s, 2, **few(method)).losses, a.losses[:2])


@pytest.mark.parametrize("method", ALL)
def test_experts_that_are_the_base(method):
    s = setting()
    s.experts = {t: snapshot(s.pretrained) for t in s.experts}
    state = run(method, s, 3, **few(method)).state_dict()
    assert all(distance(state[n], s.pretrained[n]) < 1e-6 for n in touched(s.pretrained))

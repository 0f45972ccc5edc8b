"""Laws of what adaptive methods learn: symmetries and the parts that move (docs/decisions.md, D20)."""

from __future__ import annotations

import copy

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from tests.laws.test_adapt_laws import ADARANK, ALL, DOUBLE, DTYPES, run
from tests.support.helpers import (
    UNUSED,
    distance,
    expert_of,
    same_bits,
    setting,
    snapshot,
    touched,
)
from tests.support.laws import costly

# ---------------------------------------------------------------- symmetries


@pytest.mark.parametrize("method", ALL)
def test_permuting_the_tasks_permutes_what_is_learned(method):
    order = ["task2", "task0", "task1"]
    s = setting(dtype=DOUBLE, steps=20)
    given_ = {"lr": 0.02, **({"rank_ratio": 0.5} if method.startswith("adarank") else {})}
    a, b = run(method, s, 20, **given_), run(method, s.permuted(order), 20, **given_)
    index = [list(s.experts).index(t) for t in order]
    assert all(torch.allclose(v[index], b.coefficients[n], atol=1e-7) for n, v in a.coefficients.items())
    assert all(torch.equal(m[index], b.masks[n]) for n, m in a.masks.items())
    assert method not in ADARANK or any(bool(m[:, 4:].any()) for m in a.masks.values())  # bits have flipped
    assert torch.allclose(a.losses, b.losses, atol=1e-8)
    assert all(distance(a.state_dict()[n], b.state_dict()[n]) < 1e-6 for n in touched(s.pretrained))


@costly(8)
@given(seed=st.integers(0, 1000), method=st.sampled_from(ALL), order=st.permutations(["task0", "task1", "task2"]))
def test_permutation_over_random_settings(seed, method, order):
    s = setting(seed=seed, dtype=DOUBLE, steps=2)
    a, b = run(method, s, 2), run(method, s.permuted(order), 2)
    index = [list(s.experts).index(t) for t in order]
    assert all(torch.allclose(v[index], b.coefficients[n], atol=1e-6) for n, v in a.coefficients.items())


@DTYPES
@pytest.mark.parametrize("method", ["adamerging_taskwise", "adamerging_layerwise", "adarank_ta", "adarank_cart"])
def test_identical_tasks_stay_identical(method, dtype):
    s = setting(dtype=dtype, steps=20)
    for part in (s.experts, s.batches, s.heads):
        part["task2"] = copy.deepcopy(part["task1"])
    got = run(method, s, 20, lr=0.02)
    tolerance = 1e-10 if dtype == DOUBLE else 1e-6
    assert all(abs(float(v[1] - v[2])) <= tolerance for v in got.coefficients.values())
    assert all(torch.equal(m[1], m[2]) for m in got.masks.values())


@DTYPES
@pytest.mark.parametrize("method", ["adamerging_taskwise", "adamerging_layerwise", "adarank_ta"])
def test_a_zero_task_vector_has_no_gradient(method, dtype):
    s = setting(dtype=dtype)
    s.experts["task1"] = snapshot(s.pretrained)
    got = run(method, s, 10, lr=0.05)
    values = torch.stack(list(got.coefficients.values()))
    assert bool((values[:, 1] == torch.tensor(0.3, dtype=values.dtype)).all())
    assert bool((values[:, 0] != values[:, 1]).any())
    assert all(bool(m[1].all()) for m in got.masks.values())


@DTYPES
@pytest.mark.parametrize("method", ["adamerging_layerwise", *ADARANK])
def test_tensors_that_forward_never_reads_keep_their_start(method, dtype):
    s = setting(dtype=dtype)
    start, got = run(method, s, 0), run(method, s, 10, lr=0.05)
    for name in (*UNUSED, "empty"):
        if name in got.coefficients:
            assert torch.equal(got.coefficients[name], start.coefficients[name]), name
        assert torch.equal(got.state_dict()[name], start.state_dict()[name]), name
        if name in got.masks:
            assert torch.equal(got.masks[name], start.masks[name]), name
    moved = [n for n in touched(s.pretrained) if n not in UNUSED]
    assert all(bool((got.coefficients[n] != start.coefficients[n]).all()) for n in moved)


@pytest.mark.parametrize("method", ["adamerging_layerwise", *ADARANK])
def test_weights_that_the_model_does_not_have_are_merged_all_the_same(method):
    """The text-side leftovers of open_clip checkpoints: merged, never read, coefficient never moved."""
    s = setting(dtype=DOUBLE)
    plain = run(method, s, 5, lr=0.02)
    g = torch.Generator().manual_seed(3)
    for state in (s.pretrained, *s.experts.values()):
        state["token_embedding.weight"] = torch.randn(5, 4, generator=g, dtype=DOUBLE)
    start, got = run(method, s, 0), run(method, s, 5, lr=0.02)
    name = "token_embedding.weight"
    assert torch.equal(got.coefficients[name], start.coefficients[name])
    assert torch.equal(got.state_dict()[name], start.state_dict()[name])
    assert not torch.equal(got.state_dict()[name], s.pretrained[name])
    assert same_bits({n: v for n, v in got.coefficients.items() if n != name}, plain.coefficients)


@pytest.mark.parametrize("method", ["adamerging_layerwise", "adarank_cart"])
def test_nothing_is_left_behind(method, tmp_path, monkeypatch, capfd):
    monkeypatch.chdir(tmp_path)
    grad, dtype, threads = torch.is_grad_enabled(), torch.get_default_dtype(), torch.get_num_threads()
    run(method, setting(dtype=DOUBLE), 3)
    assert (grad, dtype, threads) == (torch.is_grad_enabled(), torch.get_default_dtype(), torch.get_num_threads())
    assert not list(tmp_path.iterdir())
    assert capfd.readouterr().out == ""


@pytest.mark.parametrize("method", ["adamerging_layerwise", "adarank_cart"])
def test_callers_without_gradients_get_the_same_result(method):
    s = setting()
    want = run(method, s)
    with torch.no_grad():
        got = run(method, s)
    assert same_bits(got.coefficients, want.coefficients)


# ---------------------------------------------------------------- what is learned


@pytest.mark.parametrize("method", ADARANK)
def test_learning_one_part_freezes_the_other(method):
    s = setting(steps=25, dtype=DOUBLE)
    start = run(method, s, 0, rank_ratio=0.5)
    only_masks = run(method, s, 25, rank_ratio=0.5, learn="masks", lr=0.03)
    only_coefficients = run(method, s, 25, rank_ratio=0.5, learn="coefficients", lr=0.03)
    both = run(method, s, 25, rank_ratio=0.5, lr=0.03)
    assert same_bits(only_masks.coefficients, start.coefficients)
    assert same_bits(only_coefficients.masks, start.masks)
    assert not same_bits(only_masks.masks, start.masks)
    assert not same_bits(only_coefficients.coefficients, start.coefficients)
    assert not same_bits(both.masks, start.masks)
    assert not same_bits(both.coefficients, start.coefficients)


@pytest.mark.parametrize("method", ADARANK)
def test_top_only_stays_inside_the_initial_rank(method):
    s = setting(steps=25, dtype=DOUBLE)
    got, free = (run(method, s, 25, rank_ratio=0.5, lr=0.03, top_only=flag) for flag in (True, False))
    assert all(m.shape[1] == free.masks[n].shape[1] for n, m in got.masks.items())
    assert not any(bool(m[:, 4:].any()) for m in got.masks.values())
    assert any(bool((~m[:, :4]).any()) for m in got.masks.values())
    assert any(bool(m[:, 4:].any()) for m in free.masks.values())


def test_all_components_and_frozen_masks_are_unclamped_adamerging():
    s = setting(dtype=DOUBLE)
    rank = run("adarank_ta", s, 10, learn="coefficients", lr=0.02)
    layer = run("adamerging_layerwise", s, 10, clamp=False, lr=0.02)
    assert all(torch.allclose(rank.coefficients[n], layer.coefficients[n], atol=1e-9) for n in touched(s.pretrained))
    assert all(distance(rank.state_dict()[n], layer.state_dict()[n]) < 1e-8 for n in touched(s.pretrained))


def test_the_bits_explain_the_weights():
    """After flips, theta is origin + sum_t lambda_t U diag(b s) V^T rebuilt from the reported values alone."""
    s = setting(steps=30, dtype=DOUBLE)
    got = run("adarank_ta", s, 30, rank_ratio=0.5, lr=0.04)
    state = got.state_dict()
    for name, mask in got.masks.items():
        want = s.pretrained[name].clone()
        for t, expert in enumerate(s.experts.values()):
            u, values, vt = torch.linalg.svd(expert[name] - s.pretrained[name], full_matrices=False)
            want += got.coefficients[name][t].double() * (u * (values * mask[t])) @ vt
        assert distance(state[name], want) < 1e-9


def test_temperature_hardly_matters_to_adam():
    s = setting(steps=50, dtype=DOUBLE)
    a = run("adarank_cart", s, 50, rank_ratio=0.5, lr=0.004)
    b = run("adarank_cart", s, 50, rank_ratio=0.5, lr=0.004, temperature=1.0)
    assert all(float((m != b.masks[n]).double().mean()) <= 0.02 for n, m in a.masks.items())


RATES = st.sampled_from([1e-4, 1e-3, 0.1])


@costly(12)
@given(seed=st.integers(0, 1000), method=st.sampled_from(ALL), steps=st.integers(1, 4), lr=RATES)
def test_coefficients_move_at_most_like_adam(seed, method, steps, lr):
    s = setting(seed=seed, steps=steps)
    start, got = run(method, s, 0), run(method, s, steps, lr=lr)
    for name, value in got.coefficients.items():
        assert float((value - start.coefficients[name]).abs().max()) <= 3.17 * lr * steps + 1e-6


@pytest.mark.parametrize("method", ALL)
def test_entropy_falls_when_one_batch_is_repeated(method):
    s = setting(steps=1)
    s.batches.update({t: b * 25 for t, b in s.batches.items()})
    losses = run(method, s, 25, lr=0.01).losses
    assert float(losses[-1]) < float(losses[0])


def test_an_expert_equal_to_the_base_everywhere_is_legal():
    s = setting()
    for task in s.experts:
        s.experts[task] = snapshot(s.pretrained)
    for method in ALL:
        got = run(method, s, 3)
        assert all(distance(got.state_dict()[n], s.pretrained[n]) < 1e-6 for n in touched(s.pretrained)), method


def test_a_rank_one_expert_is_legal():
    s = setting(dtype=DOUBLE)
    g = torch.Generator().manual_seed(5)
    low = expert_of(s.pretrained, 9, 0.1)
    for name, value in s.pretrained.items():
        if value.ndim == 2:
            low[name] = value + 0.1 * torch.outer(
                *(torch.randn(n, generator=g, dtype=DOUBLE) for n in value.shape)
            )
    s.experts["task1"] = low
    for method in ALL:
        got = run(method, s, 5, lr=0.05)
        assert all(bool(torch.isfinite(v).all()) for v in got.state_dict().values()), method

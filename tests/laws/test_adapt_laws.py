"""Laws of the adaptive methods (methods_adaptive.md section 14) that need no oracle."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import fusionbench_lite as fbl
from tests.support.helpers import (
    PRECISION,
    UNUSED,
    Setting,
    check_passthrough,
    distance,
    expert_of,
    same_bits,
    setting,
    snapshot,
    touched,
)
from tests.support.laws import costly

DOUBLE = torch.float64
ADAMERGING = ["adamerging_taskwise", "adamerging_layerwise"]
ADARANK = ["adarank_ta", "adarank_cart", "adarank_tsvm"]
ALL = ADAMERGING + ADARANK
DTYPES = pytest.mark.parametrize("dtype", [torch.float32, DOUBLE], ids=["f32", "f64"])


def run(method, s, steps=5, **given):
    return fbl.adapt(method, *s.arguments(), steps, **given)


# ---------------------------------------------------------------- zero steps


@DTYPES
@pytest.mark.parametrize("method", ADAMERGING)
@pytest.mark.parametrize("scaling", [0.3, 0.0, 1.0, 0.77])
def test_zero_steps_of_adamerging_is_task_arithmetic(method, scaling, dtype):
    """To a few roundings: task arithmetic adds up the experts before it takes the pretrained weights off."""
    s = setting(dtype=dtype)
    static = fbl.merge("task_arithmetic", s.pretrained, s.experts, scaling=scaling).state_dict()
    state = run(method, s, 0, scaling=scaling).state_dict()
    assert list(state) == list(static)
    assert all(distance(state[name], static[name]) <= PRECISION[dtype] for name in touched(static))


def test_zero_steps_clamps_the_coefficients_of_adamerging():
    s = setting(dtype=DOUBLE)
    for given_, effective in (({"scaling": 1.7}, 1.0), ({"scaling": -1}, 0.0), ({"scaling": 1.7, "clamp": False}, 1.7)):
        static = fbl.merge("task_arithmetic", s.pretrained, s.experts, scaling=effective).state_dict()
        state = run("adamerging_layerwise", s, 0, **given_).state_dict()
        assert all(torch.allclose(state[n], static[n], atol=1e-12) for n in touched(static))


@DTYPES
@pytest.mark.parametrize(
    ("method", "static", "extra"),
    [
        ("adarank_ta", "task_arithmetic", {}),
        ("adarank_cart", "cart", {}),
        ("adarank_tsvm", "tsv_m", {"matrices": "attn_mlp"}),
    ],
)
def test_zero_steps_of_adarank_is_its_static_start(method, static, extra, dtype):
    s = setting(dtype=dtype, seed=4)
    want = fbl.merge(static, s.pretrained, s.experts, **extra).state_dict()
    got = run(method, s, 0)
    check_passthrough(got.state_dict(), s.pretrained)
    tolerance = 1e-10 if dtype == DOUBLE else 1e-5
    assert all(distance(got.state_dict()[n], want[n]) <= tolerance for n in touched(want))
    assert got.losses.shape == (0,)


@pytest.mark.parametrize("kind", ["zero", "rank one"])
def test_zero_steps_of_adarank_tsvm_is_tsv_m_when_a_task_has_fewer_components(kind):
    """Directions of a zero singular value are arbitrary; neither method may let them enter the whitening."""
    s = setting(dtype=DOUBLE)
    g = torch.Generator().manual_seed(5)
    for name, value in s.pretrained.items():
        if value.ndim == 2:
            a, b = (torch.randn(n, generator=g, dtype=DOUBLE) for n in value.shape)
            s.experts["task1"][name] = value + 0.1 * torch.outer(a, b) * (kind == "rank one")
    want = fbl.merge("tsv_m", s.pretrained, s.experts, matrices="attn_mlp").state_dict()
    got = run("adarank_tsvm", s, 0).state_dict()
    assert all(distance(got[n], want[n]) <= 1e-8 for n in touched(want))


@pytest.mark.parametrize("method", ["adarank_ta", "adarank_cart", "adarank_tsvm"])
@pytest.mark.parametrize("ratio", [0.25, 0.6, 1.0])
def test_number_of_bits_at_the_start(method, ratio):
    s = setting(dtype=DOUBLE)
    masks = run(method, s, 0, rank_ratio=ratio).masks
    matrices = [n for n, v in s.pretrained.items() if v.ndim == 2 and ("attn" in n or "mlp" in n)]
    assert set(masks) == set(matrices)
    for name, mask in masks.items():
        rank = min(s.pretrained[name].shape)
        assert mask.shape == (3, rank)
        assert torch.equal(mask, (torch.arange(rank) < int(ratio * rank)).expand(3, rank))


def test_default_ranks():
    s = setting(tasks=4, dtype=DOUBLE)
    for method, kept in (("adarank_ta", 8), ("adarank_cart", 1), ("adarank_tsvm", 2)):
        assert all(bool((mask.sum(1) == kept).all()) for mask in run(method, s, 0).masks.values()), method


@pytest.mark.parametrize("method", ALL)
def test_zero_steps_reads_no_batch(method):
    s = setting()
    got = run(method, Setting(s.model, s.pretrained, s.experts, s.heads, {t: [] for t in s.experts}), 0)
    assert all(bool((v == next(iter(got.coefficients.values()))[0]).all()) for v in got.coefficients.values())


# ---------------------------------------------------------------- shapes of the result


@DTYPES
@pytest.mark.parametrize("method", ALL)
def test_what_comes_back(method, dtype):
    s = setting(dtype=dtype)
    got = run(method, s, 4)
    state = got.state_dict()
    check_passthrough(state, s.pretrained)
    assert all(not v.requires_grad and bool(torch.isfinite(v).all()) for v in state.values())
    assert got.losses.shape == (4,)
    assert got.losses.is_floating_point()
    assert not got.losses.requires_grad
    assert bool((got.losses > 0).all())
    assert float(got.losses.max()) <= sum(float(np.log(3 + i)) for i in range(3))
    assert all(v.shape == (3,) and v.is_floating_point() and not v.requires_grad for v in got.coefficients.values())
    if method == "adamerging_taskwise":
        assert len({tuple(v.tolist()) for v in got.coefficients.values()}) == 1
    else:
        assert set(got.coefficients) >= set(touched(s.pretrained))
    assert bool(got.masks) == method.startswith("adarank")
    assert all(m.dtype == torch.bool and len(m) == 3 for m in got.masks.values())


@pytest.mark.parametrize("method", ALL)
def test_state_dict_is_not_shared(method):
    s = setting()
    got = run(method, s, 2)
    first = snapshot(got.state_dict())
    for value in got.state_dict().values():
        value.zero_()
    assert same_bits(got.state_dict(), first)


@pytest.mark.parametrize("method", ALL)
def test_same_call_same_bits(method):
    s = setting()
    a, b = run(method, s, 5, lr=0.02), run(method, s, 5, lr=0.02)
    assert same_bits(a.state_dict(), b.state_dict())
    assert same_bits(a.coefficients, b.coefficients)
    assert torch.equal(a.losses, b.losses)


@pytest.mark.parametrize("method", ALL)
def test_fewer_steps_are_a_prefix(method):
    s = setting()
    assert torch.equal(run(method, s, 8, lr=0.02).losses[:5], run(method, s, 5, lr=0.02).losses)


# ---------------------------------------------------------------- inputs untouched


@DTYPES
@pytest.mark.parametrize("method", ALL)
@pytest.mark.parametrize("training", [True, False])
def test_model_heads_and_inputs_are_left_as_they_were(method, dtype, training):
    s = setting(dtype=dtype, dropout=0.5, blocks=2)
    s.model.train(training)
    s.model.resblocks[1].train(not training)
    for i, parameter in enumerate(s.model.parameters()):
        parameter.requires_grad_(i % 3 != 0)
    s.heads["task1"].requires_grad_(False)
    s.heads["task2"].train(not training)

    def picture(s):
        modules = [s.model, *s.heads.values()]
        flags = [[p.requires_grad for p in m.parameters()] + [c.training for c in m.modules()] for m in modules]
        grads = [[p.grad is None for p in m.parameters()] for m in modules]
        hooks = [[len(c._forward_hooks) + len(c._forward_pre_hooks) for c in m.modules()] for m in modules]
        states = [snapshot(x) for x in (*(m.state_dict() for m in modules), s.pretrained, *s.experts.values())]
        return flags, grads, hooks, states, [[b.clone() for b in x] for x in s.batches.values()]

    before, parameters = picture(s), [id(p) for p in s.model.parameters()]
    run(method, s, 3, lr=0.05)
    after = picture(s)
    assert before[:3] == after[:3]
    assert all(same_bits(a, b) for a, b in zip(before[3], after[3], strict=True))
    assert all(torch.equal(a, b) for x, y in zip(before[4], after[4], strict=True) for a, b in zip(x, y, strict=True))
    assert parameters == [id(p) for p in s.model.parameters()]
    assert not any(v.requires_grad for v in s.pretrained.values())


@pytest.mark.parametrize("method", ["adamerging_layerwise", "adarank_cart"])
def test_weights_inside_the_model_do_not_matter(method):
    s = setting()
    other = s.copy()
    with torch.no_grad():
        for parameter in other.model.parameters():
            parameter.add_(1.0)
    assert same_bits(run(method, s).coefficients, run(method, other).coefficients)


@pytest.mark.parametrize("method", ["adamerging_layerwise", "adarank_ta"])
def test_dropout_is_off_during_adaptation(method):
    noisy, plain = setting(dropout=0.5), setting()
    noisy.model.train()
    assert same_bits(run(method, noisy).coefficients, run(method, plain).coefficients)


@pytest.mark.parametrize("method", ALL)
def test_plain_functions_serve_as_heads_and_iterators_as_batches(method):
    s = setting()
    want = run(method, s)
    heads = {t: (lambda f, h=h: h(f)) for t, h in s.heads.items()}
    streams = {t: iter(b) for t, b in s.batches.items()}
    got = fbl.adapt(method, s.model, s.pretrained, s.experts, heads, streams, 5)
    assert same_bits(got.coefficients, want.coefficients)


@pytest.mark.parametrize("method", ALL)
def test_views_and_parameters_are_accepted(method):
    s = setting()
    want = run(method, s)
    for state in (s.pretrained, *s.experts.values()):
        for name in ("proj", "resblocks.0.mlp.c_fc.weight"):
            state[name] = torch.nn.Parameter(state[name].T.contiguous().T)
    got = run(method, s)
    assert all(torch.allclose(got.coefficients[n], v, atol=1e-5) for n, v in want.coefficients.items())
    assert not any(v.requires_grad for v in got.state_dict().values())


def test_more_batches_than_steps_are_left_alone():
    s = setting(steps=10)
    streams = {t: iter(b) for t, b in s.batches.items()}
    fbl.adapt("adamerging_layerwise", s.model, s.pretrained, s.experts, s.heads, streams, 4)
    assert all(len(list(stream)) >= 5 for stream in streams.values())  # reading one ahead is fine


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
    for name in (*UNUSED, "logit_scale", "empty"):
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

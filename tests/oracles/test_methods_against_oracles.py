"""Every data-free method against its float64 oracle, over dtypes, shapes, settings and awkward values."""

from __future__ import annotations

import math
import types

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import fusionbench_lite as fbl
from tests.oracles.data_free import ORACLES
from tests.support.helpers import (
    PRECISION,
    SVD_PRECISION,
    check_rounded,
    check_state,
    clip_state,
    experts_of,
    grid_state,
    rng,
    same_bits,
    snapshot,
    touched,
)

ELEMENTWISE = [
    ("weight_averaging", {}),
    ("task_arithmetic", {}),
    ("task_arithmetic", {"scaling": -1.25}),
    ("task_arithmetic", {"scaling": 0}),
    ("ties_merging", {}),
    ("ties_merging", {"keep": 0.35, "reduce": "mean", "scaling": 1.0}),
    ("ties_merging", {"keep": 0.5, "reduce": "max"}),
    ("ties_merging", {"keep": 1.0}),
    ("ties_merging", {"keep": 1}),
    ("ties_merging", {"keep": 0.001}),
    ("ties_merging", {"virtual_zeros": 300}),
    ("ties_merging", {"virtual_zeros": 100_000, "reduce": "mean"}),
]
FACTORISED = [
    ("tsv_m", {}),
    ("tsv_m", {"scaling": 0.4, "matrices": "attn_mlp"}),
    ("tsv_m", {"rank_ratio": 0.2}),
    ("tsv_m", {"rank_ratio": 0.7}),  # T k > p: more vectors than dimensions
    ("tsv_m", {"rank_ratio": 1.0}),
    ("tsv_m", {"rank_ratio": 0.05}),  # k = 0: matrices stay at the base
    ("cart", {}),
    ("cart", {"scaling": 1.1, "rank_ratio": 0.5}),
    ("cart", {"rank_ratio": 0.01}),  # at least one component
    ("cart", {"rank_ratio": 1}),
    ("cart", {"matrices": "all_2d", "rank_ratio": 0.3}),
    ("iso_c", {}),
    ("iso_c", {"scaling": 1.5, "matrices": "attn_mlp"}),
]


def identify(case):
    method, given_ = case
    return method + "".join(f"-{k}={v}" for k, v in given_.items())


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=["f32", "f64"])
@pytest.mark.parametrize("case", ELEMENTWISE + FACTORISED, ids=identify)
@pytest.mark.parametrize("count", [1, 2, 3, 5])
def test_method_equals_its_oracle(case, dtype, count):
    method, given_ = case
    base = clip_state(3, dtype)
    experts = experts_of(base, count, seed=40 + count)
    tolerance = (PRECISION if case in ELEMENTWISE else SVD_PRECISION)[dtype]
    state = fbl.merge(method, base, experts, **given_).state_dict()
    check_state(state, ORACLES[method](base, experts, **given_), base, tolerance)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=["bf16", "f16"])
@pytest.mark.parametrize("case", [*ELEMENTWISE, ("tsv_m", {}), ("cart", {}), ("iso_c", {})], ids=identify)
def test_half_precision_is_within_one_unit_of_the_rounded_oracle(case, dtype):
    method, given_ = case
    base = clip_state(5, dtype)
    experts = experts_of(base, 3, seed=60)
    state = fbl.merge(method, base, experts, **given_).state_dict()
    check_rounded(state, ORACLES[method](base, experts, **given_), base)


SHAPES = {"b": (7,), "a.weight": (5, 9), "c.attn.w": (9, 5), "d": (2, 3, 4), "e": (1,), "f.mlp.w": (6, 6)}


@given(
    seed=st.integers(0, 2**31),
    count=st.integers(1, 5),
    keep=st.sampled_from([0.01, 0.1, 0.2, 0.5, 0.9, 0.999, 1.0]),
    reduce=st.sampled_from(["sum", "mean", "max"]),
    zeros=st.sampled_from([0, 1, 40, 500]),
    dtype=st.sampled_from([torch.float32, torch.float64, torch.bfloat16]),
)
def test_ties_with_equal_magnitudes_zeros_and_cancellation(seed, count, keep, reduce, zeros, dtype):
    base = grid_state(seed, SHAPES, dtype)
    experts = {f"t{i}": grid_state(seed + 1 + i, SHAPES, dtype) for i in range(count)}
    options = {"keep": keep, "reduce": reduce, "virtual_zeros": zeros, "scaling": 0.5}
    state = fbl.merge("ties_merging", base, experts, **options).state_dict()
    expected = ORACLES["ties_merging"](base, experts, **options)
    if dtype == torch.bfloat16:
        check_rounded(state, expected, base)
    else:
        check_state(state, expected, base, PRECISION[dtype])


@given(seed=st.integers(0, 2**31), count=st.integers(1, 4), case=st.sampled_from(ELEMENTWISE + FACTORISED))
def test_random_shapes_and_counts(seed, count, case):
    method, given_ = case
    g = rng(seed)
    shapes = {}
    for i, kind in enumerate(["attn.w", "mlp.w", "w", "ln.w", "attn.bias_w"]):
        rows, columns = torch.randint(1, 9, (2,), generator=g).tolist()
        shapes[f"layer{i}.{kind}"] = (rows, columns)
    base = {n: torch.randn(s, generator=g, dtype=torch.float64) for n, s in shapes.items()}
    experts = experts_of(base, count, seed=seed % 1000)
    state = fbl.merge(method, base, experts, **given_).state_dict()
    check_state(state, ORACLES[method](base, experts, **given_), base, 1e-6 if case in FACTORISED else 1e-10)


@given(
    seed=st.integers(0, 2**31),
    smallest=st.sampled_from([1e-2, 1e-3, 1e-4]),
    shape=st.sampled_from([(8, 8), (12, 6), (6, 12)]),
    case=st.sampled_from([("tsv_m", {}), ("tsv_m", {"rank_ratio": 0.5}), ("cart", {"rank_ratio": 0.7}), ("iso_c", {})]),
)
def test_decaying_spectra(seed, smallest, shape, case):
    """Task matrices of real models lose orders of magnitude from the first to the last singular value."""
    method, given_ = case
    g = rng(seed)
    rank = min(shape)
    values = torch.logspace(0, math.log10(smallest), rank, dtype=torch.float64)
    base = {"attn.w": torch.zeros(shape, dtype=torch.float64)}
    experts = {}
    for t in range(2):
        u, v = (torch.linalg.qr(torch.randn(n, rank, generator=g, dtype=torch.float64))[0] for n in shape)
        experts[f"t{t}"] = {"attn.w": (u * values) @ v.T}
    state = fbl.merge(method, base, experts, **given_).state_dict()
    check_state(state, ORACLES[method](base, experts, **given_), base, 1e-6)


@pytest.mark.parametrize("condition", [1e4, 3e5, 9e5, 1.1e6, 1e8])
@pytest.mark.parametrize("seed", range(3))
def test_iso_of_an_ill_conditioned_sum(condition, seed):
    """A Gram matrix squares the condition number; the smallest directions count as much as the largest here."""
    g = rng(seed)
    u, v = (torch.linalg.qr(torch.randn(n, 8, generator=g, dtype=torch.float64))[0] for n in (12, 8))
    values = torch.logspace(0, -math.log10(condition), 8, dtype=torch.float64)
    base = {"w": torch.zeros(12, 8, dtype=torch.float64)}
    experts = {"only": {"w": (u * values) @ v.T}}
    check_state(fbl.merge("iso_c", base, experts).state_dict(), ORACLES["iso_c"](base, experts), base, 1e-6)


@pytest.mark.parametrize("case", ELEMENTWISE + FACTORISED, ids=identify)
def test_mixed_precisions_in_one_state_dict(case):
    method, given_ = case
    g = rng(12)
    base = {
        "a.attn": torch.randn(5, 5, generator=g, dtype=torch.float64),
        "b": torch.randn(7, generator=g),
        "c.mlp": torch.randn(6, 4, generator=g),
        "d": torch.randn(9, generator=g, dtype=torch.float64),
    }
    experts = experts_of(base)
    state = fbl.merge(method, base, experts, **given_).state_dict()
    check_state(state, ORACLES[method](base, experts, **given_), base, 1e-5 if case in FACTORISED else 1e-6)


@pytest.mark.parametrize("method", ["tsv_m", "cart"])
def test_encoder_linear_policy(method):
    g = rng(8)
    shapes = {
        "vision_model.encoder.layers.0.self_attn.q_proj.weight": (8, 8),
        "vision_model.encoder.layers.0.layer_norm1.weight": (8,),
        "vision_model.encoder.layers.0.mlp.fc1.weight": (12, 8),
        "vision_model.encoder.layers.0.mlp.fc1.bias": (12,),
        "vision_model.embeddings.position_embedding.weight": (5, 8),
    }
    base = {n: torch.randn(s, generator=g, dtype=torch.float64) for n, s in shapes.items()}
    experts = experts_of(base)
    options = {"matrices": "encoder_linear"}
    state = fbl.merge(method, base, experts, **options).state_dict()
    check_state(state, ORACLES[method](base, experts, **options), base, 1e-8)


# ---------------------------------------------------------------- the three reference rows


def test_pretrained_is_the_base_and_individual_the_expert():
    base = clip_state(1)
    experts = experts_of(base)
    assert same_bits(fbl.merge("pretrained", base, experts).state_dict(), base)
    merged = fbl.merge("individual", base, experts)
    for task, expert in experts.items():
        state = merged.state_dict(task)
        assert set(state) == set(base)
        assert all(torch.equal(state[n], expert[n]) and state[n].dtype == base[n].dtype for n in touched(base))
        assert torch.equal(merged.state_dict(task=task)["visual.proj"], expert["visual.proj"])


def test_individual_needs_a_known_task():
    base = clip_state(1)
    merged = fbl.merge("individual", base, experts_of(base))
    with pytest.raises(fbl.MergeError, match="task"):
        merged.state_dict()
    with pytest.raises(fbl.MergeError, match="task1"):
        merged.state_dict("tusk1")


def test_traditional_mtl_is_the_given_model():
    base = clip_state(1)
    experts = experts_of(base)
    joint = experts_of(base, 1, seed=900)["task0"]
    state = fbl.merge("traditional_mtl", base, experts, multitask=joint).state_dict()
    assert set(state) == set(base)
    assert all(torch.equal(state[n], joint[n]) for n in touched(base))
    with pytest.raises(fbl.MergeError, match="multitask"):
        fbl.merge("traditional_mtl", base, experts)


# ---------------------------------------------------------------- how inputs may come


@pytest.mark.parametrize("method", list(ORACLES))
def test_views_parameters_and_other_mappings_are_accepted(method):
    base = clip_state(2)
    experts = experts_of(base)
    expected = fbl.merge(method, base, experts).state_dict()
    name = "visual.proj"

    def awkward(state):
        state = dict(state)
        state[name] = state[name].T.contiguous().T
        state["visual.class_embedding"] = torch.nn.Parameter(state["visual.class_embedding"])
        return types.MappingProxyType(state)

    odd = types.MappingProxyType({t: awkward(e) for t, e in experts.items()})
    state = fbl.merge(method, awkward(base), odd).state_dict()
    for key in touched(base):
        assert torch.allclose(state[key], expected[key], rtol=1e-5, atol=1e-6)
        assert not state[key].requires_grad


@pytest.mark.parametrize("method", [*ORACLES, "pretrained", "individual", "traditional_mtl"])
def test_inputs_are_neither_changed_nor_shared(method):
    base = clip_state(2)
    experts = experts_of(base)
    extra = {"multitask": experts["task1"]} if method == "traditional_mtl" else {}
    before = snapshot(base), {t: snapshot(e) for t, e in experts.items()}
    state = fbl.merge(method, base, experts, **extra).state_dict("task1" if method == "individual" else None)
    for value in state.values():
        value.zero_()
    assert same_bits(base, before[0])
    assert all(same_bits(experts[t], before[1][t]) for t in experts)


@pytest.mark.parametrize("method", list(ORACLES))
def test_key_order_of_experts_does_not_matter(method):
    base = clip_state(2)
    experts = experts_of(base)
    turned = {t: dict(reversed(list(e.items()))) for t, e in experts.items()}
    assert same_bits(fbl.merge(method, base, turned).state_dict(), fbl.merge(method, base, experts).state_dict())


@pytest.mark.parametrize("method", list(ORACLES))
def test_result_is_reproducible(method):
    base = clip_state(2)
    experts = experts_of(base)
    assert same_bits(fbl.merge(method, base, experts).state_dict(), fbl.merge(method, base, experts).state_dict())


@pytest.mark.parametrize("method", list(ORACLES))
def test_order_of_the_base_keys_does_not_matter(method):
    base = clip_state(2)
    experts = experts_of(base)
    turned = dict(reversed(list(base.items())))
    a, b = fbl.merge(method, base, experts).state_dict(), fbl.merge(method, turned, experts).state_dict()
    assert all(torch.equal(a[n], b[n]) for n in base)

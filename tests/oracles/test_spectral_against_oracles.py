"""TSV-C, Iso-CTS, STAR, KnOTS and the numerical-rank modes against their float64 oracles."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import fusionbench_lite as fbl
from tests.oracles.data_free import iso_c, tsv_m
from tests.oracles.spectral import ORACLES, iso_c_numerical, tsv_c, tsv_m_numerical
from tests.support.helpers import SVD_PRECISION, check_rounded, check_state, clip_state, experts_of, rng, same_bits, touched
from tests.support.spectral_cases import FAMILIES, TIED, decades, lora_experts, still, t5_state, tie

pytestmark = pytest.mark.filterwarnings("ignore:.*numerical rank:UserWarning")  # rank="fixed" on deficient matrices

CASES = [
    ("iso_cts", {}),
    ("iso_cts", {"scaling": 1.5, "common_fraction": 0.5}),
    ("iso_cts", {"common_fraction": 0.0}),
    ("iso_cts", {"common_fraction": 1}),  # no task directions: Iso-C
    ("iso_cts", {"matrices": "attn_mlp", "common_fraction": 0.3}),
    ("star", {}),
    ("star", {"eta": 1}),
    ("star", {"eta": 73.5}),
    ("star", {"eta": 100}),
    ("knots_ta", {}),
    ("knots_ta", {"scaling": -0.4, "cutoff": 0}),
    ("knots_ta", {"cutoff": 1.0}),
    ("knots_ta", {"cutoff": 1e6}),  # nothing is left: the base
    ("knots_ties", {}),
    ("knots_ties", {"keep": 1.0, "scaling": 1}),
    ("knots_ties", {"keep": 0.5, "cutoff": 0.8}),
    ("knots_ties", {"keep": 0.001}),
]
TSV_C = [{}, {"rank_ratio": 0.3}, {"rank_ratio": 1}, {"rank_ratio": 0.05}]
FLOATS = pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=["f32", "f64"])


def identify(case):
    method, given_ = case if isinstance(case, tuple) else ("tsv_c", case)
    return method + "".join(f"-{k}={v}" for k, v in given_.items())


def compare(method, given_, base, experts, tolerance):
    if method == "tsv_c":
        merged, expected = fbl.merge(method, base, experts, **given_), tsv_c(base, experts, **given_)
        for task in experts:
            check_state(merged.state_dict(task), expected[task], base, tolerance)
        return
    state = fbl.merge(method, base, experts, **given_).state_dict()
    check_state(state, ORACLES[method](base, experts, **given_), base, tolerance)


@FLOATS
@pytest.mark.parametrize("case", CASES, ids=identify)
@pytest.mark.parametrize("count", [1, 2, 3, 5])
def test_method_equals_its_oracle(case, dtype, count):
    base = clip_state(3, dtype)
    compare(*case, base, experts_of(base, count, seed=40 + count), SVD_PRECISION[dtype])


@FLOATS
@pytest.mark.parametrize("given_", TSV_C, ids=identify)
@pytest.mark.parametrize("count", [1, 2, 3, 5])
def test_tsv_c_equals_its_oracle_and_keeps_the_rest(given_, dtype, count):
    base = clip_state(3, dtype)
    experts = experts_of(base, count, seed=40 + count)
    compare("tsv_c", given_, base, experts, SVD_PRECISION[dtype])
    merged = fbl.merge("tsv_c", base, experts, **given_)
    for task, expert in experts.items():
        state = merged.state_dict(task)
        assert all(torch.equal(state[n], expert[n]) for n in touched(base) if base[n].ndim != 2)


@pytest.mark.parametrize("case", [*CASES, *[("tsv_c", g) for g in TSV_C]], ids=identify)
@pytest.mark.parametrize("family", FAMILIES)
def test_key_sets_of_other_models(case, family):
    base = FAMILIES[family](1)
    compare(*case, base, decades(base), SVD_PRECISION[torch.float32])
    base = FAMILIES[family](2, torch.float64)
    compare(*case, base, decades(base, 2), SVD_PRECISION[torch.float64])


@pytest.mark.parametrize("method", [*ORACLES, "tsv_c"])
def test_tied_embeddings_are_merged_once_and_counted_as_listed(method):
    base = t5_state(4)
    experts = decades(base)
    base, experts = tie(base), {t: tie(e) for t, e in experts.items()}
    compare(method, {}, base, experts, 1e-5)
    state = fbl.merge(method, base, experts).state_dict("task1" if method == "tsv_c" else None)
    assert all(torch.equal(state[n], state[TIED[0]]) for n in TIED)
    assert len({state[n].data_ptr() for n in TIED}) == 1
    assert state["lm_head.weight"].data_ptr() != state[TIED[0]].data_ptr()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=["bf16", "f16"])
@pytest.mark.parametrize("case", [c for c in CASES if c[1].get("common_fraction") != 0.0], ids=identify)
def test_half_precision_is_within_one_unit_of_the_rounded_oracle(case, dtype):
    method, given_ = case
    base = clip_state(5, dtype)
    experts = experts_of(base, 3, seed=60)
    state = fbl.merge(method, base, experts, **given_).state_dict()
    check_rounded(state, ORACLES[method](base, experts, **given_), base)


def test_tsv_c_in_half_precision():
    base = clip_state(5, torch.bfloat16)
    experts = experts_of(base, 3, seed=60)
    merged, expected = fbl.merge("tsv_c", base, experts), tsv_c(base, experts)
    for task in experts:
        check_rounded(merged.state_dict(task), expected[task], base)


# ---------------------------------------------------------------- degenerate task vectors


@FLOATS
@pytest.mark.parametrize("where", ["tensor", "tensor of one expert", "expert", "all"])
@pytest.mark.parametrize("case", [*[c for c in CASES if c[0] != "iso_cts"], *[("tsv_c", g) for g in TSV_C]], ids=identify)
def test_zero_task_vectors(case, where, dtype):
    base = clip_state(6, dtype)
    compare(*case, base, still(experts_of(base, 3, seed=70), base, where), SVD_PRECISION[dtype])


@pytest.mark.parametrize("where", ["tensor", "tensor of one expert", "expert", "all"])
@pytest.mark.parametrize("fraction", [0.0, 0.5, 0.8, 1.0])
def test_iso_cts_with_zero_task_vectors(fraction, where):
    """The directions of a zero matrix are arbitrary, so only what holds for each choice is asked for."""
    base = clip_state(6, torch.float64)
    experts = still(experts_of(base, 3, seed=70), base, where)
    state = fbl.merge("iso_cts", base, experts, common_fraction=fraction).state_dict()
    assert all(bool(torch.isfinite(v).all()) for v in state.values())
    if where in ("tensor", "all"):
        check_state(state, ORACLES["iso_cts"](base, experts, common_fraction=fraction), base, 1e-8)
    if fraction == 1.0:
        check_state(state, iso_c(base, experts), base, 1e-8)


@pytest.mark.parametrize("method", [*ORACLES, "tsv_c"])
def test_empty_tensors_and_integers_pass_through(method):
    base = {"n": torch.zeros(0, 4), "i": torch.arange(3), "f": torch.tensor([True, False])}
    experts = {"a": dict(base), "b": dict(base)}
    assert same_bits(fbl.merge(method, base, experts).state_dict("a" if method == "tsv_c" else None), base)


# ---------------------------------------------------------------- numerical rank

NUMERICAL = {"tsv_m": tsv_m_numerical, "iso_c": iso_c_numerical}


@FLOATS
@pytest.mark.parametrize("method", NUMERICAL)
@pytest.mark.parametrize(("count", "rank"), [(1, 1), (1, 3), (2, 1), (2, 3), (3, 2), (5, 1)])
@pytest.mark.parametrize("family", FAMILIES)
def test_numerical_rank_of_low_rank_task_vectors(method, family, count, rank, dtype):
    base = FAMILIES[family](7, dtype)
    experts = lora_experts(base, count, rank)
    state = fbl.merge(method, base, experts, rank="numerical").state_dict()
    check_state(state, NUMERICAL[method](base, experts), base, SVD_PRECISION[dtype])


@FLOATS
@pytest.mark.parametrize("given_", [{}, {"scaling": 0.4}, {"matrices": "attn_mlp"}], ids=str)
@pytest.mark.parametrize("method", NUMERICAL)
@pytest.mark.parametrize("count", [1, 2, 3, 5])
def test_numerical_rank_of_full_rank_task_vectors_is_the_fixed_one(method, given_, count, dtype):
    base = clip_state(8, dtype)
    experts = experts_of(base, count, seed=80)
    state = fbl.merge(method, base, experts, rank="numerical", **given_).state_dict()
    check_state(state, {"tsv_m": tsv_m, "iso_c": iso_c}[method](base, experts, **given_), base, SVD_PRECISION[dtype])


@pytest.mark.parametrize("ratio", [0.2, 0.5, 1.0])
def test_numerical_rank_and_rank_ratio(ratio):
    base = clip_state(8, torch.float64)
    experts = lora_experts(base, 2, 3)
    state = fbl.merge("tsv_m", base, experts, rank="numerical", rank_ratio=ratio).state_dict()
    check_state(state, tsv_m_numerical(base, experts, rank_ratio=ratio), base, 1e-8)


@pytest.mark.parametrize("where", ["tensor", "tensor of one expert", "expert", "all"])
@pytest.mark.parametrize("method", NUMERICAL)
def test_numerical_rank_with_zero_task_vectors(method, where):
    base = clip_state(9, torch.float64)
    experts = still(lora_experts(base, 3, 2), base, where)
    state = fbl.merge(method, base, experts, rank="numerical").state_dict()
    check_state(state, NUMERICAL[method](base, experts), base, 1e-8)


@pytest.mark.parametrize("method", NUMERICAL)
def test_numerical_rank_does_not_follow_rounding_noise(method):
    """The fixed rank changes by as much as the update itself, the numerical one by as much as the noise."""
    base = {"w": torch.zeros(12, 12, dtype=torch.float64)}
    experts = lora_experts(base, 2, 2)
    noisy = {t: {"w": e["w"] + 1e-15 * torch.randn(12, 12, generator=rng(i), dtype=torch.float64)}
             for i, (t, e) in enumerate(experts.items())}  # fmt: skip
    a, b = (fbl.merge(method, base, e, rank="numerical").state_dict()["w"] for e in (experts, noisy))
    assert float((a - b).norm() / a.norm()) < 1e-10


@pytest.mark.parametrize("method", NUMERICAL)
def test_fixed_is_the_default_rank(method):
    base = clip_state(8)
    experts = experts_of(base)
    assert same_bits(
        fbl.merge(method, base, experts).state_dict(), fbl.merge(method, base, experts, rank="fixed").state_dict()
    )


# ---------------------------------------------------------------- random shapes


@given(seed=st.integers(0, 2**31), count=st.integers(1, 4), case=st.sampled_from(CASES + [("tsv_c", g) for g in TSV_C]))
def test_random_shapes_and_counts(seed, count, case):
    g = rng(seed)
    base = {}
    for i, kind in enumerate(["attn.w", "mlp.w", "w", "ln.w"]):
        rows, columns = torch.randint(1, 9, (2,), generator=g).tolist()
        base[f"layer{i}.{kind}"] = torch.randn(rows, columns, generator=g, dtype=torch.float64)
    # Nearly singular draws lose digits in the polar factors of Iso-CTS.
    compare(*case, base, experts_of(base, count, seed=seed % 1000), 1e-6)

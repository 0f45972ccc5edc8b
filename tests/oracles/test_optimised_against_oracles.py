"""doGe TA, AWD TA and WUDI against float64 autograd."""

from __future__ import annotations

import pytest
import torch

import fusionbench_lite as fbl
from tests.oracles.data_free import array, is_factorised
from tests.oracles.optimised import ORACLES
from tests.support.helpers import check_rounded, check_state, clip_state, distance, experts_of, same_bits, touched
from tests.support.spectral_cases import FAMILIES, TIED, decades, hf_clip_state, lora_experts, still, t5_state, tie

pytestmark = pytest.mark.filterwarnings("ignore:.*numerical rank:UserWarning")  # rank="fixed" on deficient matrices

FLOATS = pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=["f32", "f64"])
PRECISION = {torch.float64: 1e-8, torch.float32: 1e-5}
UPDATE = {torch.float64: 1e-7, torch.float32: 1e-3}
"""Of the update alone: in float32 it has lost three digits to the base it was subtracted from and added to."""

DOGE = [
    {},
    {"eta": 0.15},
    {"keep": 1.0},
    {"keep": 0.05},
    {"lr": 1e-3},
    {"subspace_divisor": 2},
    {"subspace_divisor": 1000},
    {"matrices": "all_2d"},
    {"coefficients": "task"},
    {"coefficients": "uniform"},
    {"coefficients": "uniform", "scaling": 0.1},
    {"projection": "none"},
    {"projection": "onto"},
    {"loss": "matrix"},
    {"loss": "matrix", "projection": "onto", "coefficients": "uniform"},
    {"rank": "numerical"},
    {"steps": 0},
    {"steps": 1},
]
AWD = [
    {"group": group, "optimizer": optimizer, **more}
    for group in ("tensor", "global")
    for optimizer in ("gd", "adam")
    for more in ({}, {"alpha": 0}, {"scaling": 1.5, "lr": 0.003}, {"steps": 0}, {"steps": 1}, {"alpha": 1e3, "steps": 3})
]
WUDI = [{}, {"lr": 1e-3}, {"steps": 0}, {"steps": 1}]


def identify(given_):
    return "-".join(f"{k}={v}" for k, v in given_.items()) or "default"


def compare(method, given_, base, experts, tolerance, update=None):
    state = fbl.merge(method, base, experts, **given_).state_dict()
    expected = ORACLES[method](base, experts, **given_)
    check_state(state, expected, base, tolerance)
    for name in touched(base) if update else ():
        want = expected[name] - array(base[name])
        slack = update * max(float(abs(want).max()), 1e-4)
        error = float(abs(array(state[name]) - array(base[name]) - want).max())
        assert error <= slack, f"{name}: the update is off by {error:.1e}, allowed {slack:.1e}"


# ---------------------------------------------------------------- doGe


@FLOATS
@pytest.mark.parametrize("given_", DOGE, ids=identify)
@pytest.mark.parametrize("count", [2, 3, 5])
def test_doge_equals_its_oracle(given_, dtype, count):
    base = hf_clip_state(1, dtype)
    compare("doge_ta", {"steps": 30, **given_}, base, decades(base, count), PRECISION[dtype], UPDATE[dtype])


@FLOATS
@pytest.mark.parametrize(
    # The votes of one task are all equal: the shared space is defined where it is everything or not used.
    "given_",
    [{"projection": "none"}, {"projection": "none", "loss": "matrix"}, {"subspace_divisor": 1}, {"steps": 0}],
    ids=identify,
)
def test_doge_of_one_expert(given_, dtype):
    base = hf_clip_state(1, dtype)
    compare("doge_ta", {"steps": 30, **given_}, base, decades(base, 1), PRECISION[dtype], UPDATE[dtype])


@pytest.mark.slow
@FLOATS
def test_doge_with_the_published_settings(dtype):
    base = hf_clip_state(2, dtype)
    compare("doge_ta", {}, base, decades(base, 3), PRECISION[dtype], UPDATE[dtype])


@pytest.mark.parametrize("given_", DOGE, ids=identify)
def test_doge_leaves_everything_else_alone(given_):
    base = hf_clip_state(3)
    experts = experts_of(base, 3)
    state = fbl.merge("doge_ta", base, experts, **{"steps": 3, **given_}).state_dict()
    policy = given_.get("matrices", "encoder_linear")
    for name, value in base.items():
        chosen = name in touched(base) and is_factorised(name, tuple(value.shape), policy)
        assert torch.equal(state[name], value) != chosen, name


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("matrices", ["encoder_linear", "all_2d", "attn_mlp", "block_linear", "query_value"])
def test_doge_on_the_key_sets_of_other_models(family, matrices):
    base = FAMILIES[family](4)
    compare("doge_ta", {"steps": 10, "matrices": matrices}, base, decades(base), 1e-5)


def test_doge_counts_tied_embeddings_as_listed_and_merges_them_once():
    base = t5_state(4)
    experts = decades(base)
    base, experts = tie(base), {t: tie(e) for t, e in experts.items()}
    compare("doge_ta", {"steps": 10, "matrices": "all_2d"}, base, experts, 1e-5)
    state = fbl.merge("doge_ta", base, experts, steps=3, matrices="all_2d").state_dict()
    assert len({state[n].data_ptr() for n in TIED}) == 1


@FLOATS
@pytest.mark.parametrize("given_", [{}, {"projection": "onto"}, {"coefficients": "task"}, {"keep": 1.0}], ids=identify)
@pytest.mark.parametrize("where", ["tensor", "tensor of one expert", "expert", "all"])
def test_doge_with_zero_task_vectors(given_, where, dtype):
    """A zero matrix has coefficient 0 and no singular vectors to vote with."""
    base = hf_clip_state(5, dtype)
    experts = still(decades(base, 3), base, where)
    compare("doge_ta", {"steps": 20, **given_}, base, experts, PRECISION[dtype])


@pytest.mark.parametrize("given_", [{"projection": "none"}, {"steps": 0}, {"rank": "numerical"}], ids=identify)
@pytest.mark.parametrize(("count", "rank"), [(2, 1), (2, 3), (3, 2), (5, 1)])
def test_doge_of_low_rank_task_vectors(given_, count, rank):
    base = hf_clip_state(6, torch.float64)
    experts = lora_experts(base, count, rank, size=3e-3)
    compare("doge_ta", {"steps": 30, **given_}, base, experts, 1e-8, 1e-7)


def test_doge_of_low_rank_task_vectors_in_single_precision():
    base = hf_clip_state(6)
    experts = lora_experts(base, 3, 2, size=3e-2)
    compare("doge_ta", {"steps": 30, "rank": "numerical"}, base, experts, 1e-5, 1e-3)


def test_doge_in_half_precision():
    base = hf_clip_state(7, torch.bfloat16)
    experts = decades(base, 3)
    state = fbl.merge("doge_ta", base, experts, steps=30).state_dict()
    check_rounded(state, ORACLES["doge_ta"](base, experts, steps=30), base)


# ---------------------------------------------------------------- AWD


@FLOATS
@pytest.mark.parametrize("given_", AWD, ids=identify)
@pytest.mark.parametrize("count", [1, 2, 4])
def test_awd_equals_its_oracle(given_, dtype, count):
    base = clip_state(3, dtype)
    compare("awd_ta", {"steps": 8, **given_}, base, experts_of(base, count), PRECISION[dtype])


@pytest.mark.slow
@pytest.mark.parametrize("group", ["tensor", "global"])
@pytest.mark.parametrize(("optimizer", "lr"), [("gd", 1e-6), ("adam", 1e-4)])
def test_awd_after_many_steps(group, optimizer, lr):
    """The gradient grows as 1 / |tau|: at lr 1e-4 descent overshoots tensors of norm 1e-3 and follows rounding noise."""
    base = hf_clip_state(3, torch.float64)
    compare("awd_ta", {"lr": lr, "steps": 100, "group": group, "optimizer": optimizer}, base, decades(base, 3), 1e-8)


@pytest.mark.slow
def test_awd_with_the_published_settings():
    base = clip_state(3, torch.float64)
    compare("awd_ta", {}, base, experts_of(base, 3), 1e-8)


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("group", ["tensor", "global"])
def test_awd_on_the_key_sets_of_other_models(family, group):
    base = FAMILIES[family](4, torch.float64)
    compare("awd_ta", {"steps": 10, "group": group}, base, decades(base, 3, low=0.02, high=0.1), 1e-8)


@FLOATS
@pytest.mark.parametrize("given_", [g for g in AWD if "lr" not in g], ids=identify)
@pytest.mark.parametrize("where", ["tensor", "tensor of one expert", "expert", "all"])
def test_awd_with_zero_task_vectors(given_, where, dtype):
    base = clip_state(5, dtype)
    experts = still(experts_of(base, 3), base, where)
    compare("awd_ta", {"steps": 1, **given_}, base, experts, PRECISION[dtype])
    state = fbl.merge("awd_ta", base, experts, **{"steps": 5, **given_}).state_dict()
    assert all(bool(torch.isfinite(v).all()) for v in state.values())


# ---------------------------------------------------------------- WUDI


@FLOATS
@pytest.mark.parametrize("given_", WUDI, ids=identify)
@pytest.mark.parametrize("count", [1, 2, 3, 5])
def test_wudi_equals_its_oracle(given_, dtype, count):
    base = hf_clip_state(1, dtype)
    compare("wudi", {"steps": 30, **given_}, base, decades(base, count, low=1e-2), PRECISION[dtype], UPDATE[dtype])


@pytest.mark.slow
@pytest.mark.parametrize("low", [1e-4, 1e-2])
def test_wudi_with_the_published_settings(low):
    base = hf_clip_state(1, torch.float64)
    compare("wudi", {}, base, decades(base, 3, low=low), 1e-8, 1e-7)


@pytest.mark.parametrize("family", [*FAMILIES, "clip"])
def test_wudi_on_other_key_sets(family):
    base = {**FAMILIES, "clip": clip_state}[family](4, torch.float64)
    compare("wudi", {"steps": 10}, base, decades(base), 1e-8)


@FLOATS
@pytest.mark.parametrize("where", ["tensor", "tensor of one expert", "expert", "all"])
def test_wudi_with_zero_task_vectors(where, dtype):
    base = hf_clip_state(5, dtype)
    compare("wudi", {"steps": 20}, base, still(decades(base, 3), base, where), PRECISION[dtype])


@pytest.mark.parametrize("count", [1, 3])
def test_wudi_of_low_rank_task_vectors(count):
    base = hf_clip_state(6, torch.float64)
    compare("wudi", {"steps": 30}, base, lora_experts(base, count, 2, size=1e-2), 1e-8)


@pytest.mark.parametrize("method", ["awd_ta", "wudi"])
def test_half_precision(method):
    base = clip_state(7, torch.bfloat16)
    experts = experts_of(base, 3)
    state = fbl.merge(method, base, experts, steps=5).state_dict()
    check_rounded(state, ORACLES[method](base, experts, steps=5), base)


@pytest.mark.parametrize("method", ["awd_ta", "wudi"])
def test_tied_embeddings_are_merged_once(method):
    base = t5_state(4, torch.float64)
    experts = decades(base)
    base, experts = tie(base), {t: tie(e) for t, e in experts.items()}
    compare(method, {"steps": 5}, base, experts, 1e-8)
    state = fbl.merge(method, base, experts, steps=5).state_dict()
    assert len({state[n].data_ptr() for n in TIED}) == 1
    assert distance(state[TIED[0]], state[TIED[1]]) == 0


@pytest.mark.parametrize("method", ORACLES)
def test_empty_tensors_and_integers_pass_through(method):
    base = {"n": torch.zeros(0, 4), "i": torch.arange(3), "f": torch.tensor([True, False])}
    experts = {"a": dict(base), "b": dict(base)}
    assert same_bits(fbl.merge(method, base, experts, steps=2).state_dict(), base)

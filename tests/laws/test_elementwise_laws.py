"""Laws that several elementwise, interpolating or data-light methods share (docs/decisions.md, D20)."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from tests.support.helpers import expert_of, experts_of, grid_state, same_bits, snapshot
from tests.support.merging import PAIRS, all_close, arguments, close, draw, merge, models, update, zeros_like

SEED = st.integers(0, 2**31)
COUNT = st.integers(1, 4)
DOUBLE = torch.float64
FLOATS = [torch.float32, torch.float16, torch.bfloat16, DOUBLE]
SCALED = [
    "ta_dare", "ties_dare", "consensus_ta", "consensus_ties", "pcb_merging", "breadcrumbs", "magmax", "tatr", "tatr_zero_shot",
]
MASKING = ["tall_masks", "consensus_ta", "consensus_ties", "emr_merging"]
METHODS = [*SCALED, "tall_masks", "emr_merging", "fisher_merging", "regmean", "metagpt", "slerp", "nuslerp", "model_stock"]
METHOD = st.sampled_from(METHODS)
VARIANTS = [
    *((m, {}) for m in METHODS),
    ("tall_masks", {"base": "ties"}),
    ("emr_merging", {"rescale": "global"}),
    ("pcb_merging", {"variant": "A"}),
    ("pcb_merging", {"variant": "C"}),
    ("breadcrumbs", {"granularity": "tensor", "keep": 0.4, "outliers": 0.1}),
    ("fisher_merging", {"normalize": False}),
    ("tatr", {"left_out": 0.4}),
    ("tatr_zero_shot", {"left_out": 0.2, "scaling": 1.0}),
    ("nuslerp", {"vectors": "weights", "dimension": "last"}),
    ("nuslerp", {"dimension": "first"}),
    ("model_stock", {"average": "cosines", "granularity": "row"}),
]
VARIANT = st.sampled_from(VARIANTS)


def some_experts(method, base, count, seed, size=0.3):
    return experts_of(base, 2 if method in PAIRS else count, seed % 1009, size)


@given(seed=SEED, count=st.integers(2, 5), variant=VARIANT, data=st.data())
def test_permuting_the_tasks_changes_nothing(seed, count, variant, data):
    method, options = variant
    base = draw(seed)
    experts = some_experts(method, base, count, seed)
    options = arguments(method, base, list(experts), options)
    order = data.draw(st.permutations(list(experts)))
    # At t = 1/2 the two ends of an interpolation are alike.
    all_close(models(method, base, {t: experts[t] for t in order}, **options), models(method, base, experts, **options))


@given(seed=SEED, count=COUNT, dtype=st.sampled_from(FLOATS), method=st.sampled_from(SCALED))
def test_scale_zero_returns_the_base(seed, count, dtype, method):
    base = draw(seed, dtype)
    state = merge(method, base, experts_of(base, count, seed % 1009), scaling=0)
    assert all(torch.equal(state[n], base[n]) for n in base)


@given(seed=SEED, count=COUNT, method=st.sampled_from(SCALED), scaling=st.floats(-3, 3))
def test_update_is_linear_in_the_scale(seed, count, method, scaling):
    base = draw(seed)
    experts = experts_of(base, count, seed % 1009)
    one = update(merge(method, base, experts, scaling=1.0), base)
    close(merge(method, base, experts, scaling=scaling), {n: base[n] + scaling * one[n] for n in base})


NEUTRAL = [
    ("ta_dare", {"drop_rate": 0, "scaling": 1}),
    ("ties_dare", {"drop_rate": 0.0, "scaling": 1, "keep": 1}),
    ("tall_masks", {}),
    ("tall_masks", {"threshold": 1e6}),
    ("consensus_ta", {"min_tasks": 1, "scaling": 1}),
    ("emr_merging", {}),
    ("emr_merging", {"rescale": "global"}),
    ("breadcrumbs", {"keep": 1, "outliers": 0, "scaling": 1}),
    ("breadcrumbs", {"keep": 1.0, "outliers": 0.0, "scaling": 1.0, "granularity": "tensor"}),
    ("magmax", {"scaling": 1}),
    ("fisher_merging", {}),
    ("fisher_merging", {"epsilon": 0, "normalize": False}),
    ("regmean", {}),
    ("tatr", {"left_out": 1, "scaling": 1}),
    ("tatr_zero_shot", {"left_out": 0.5, "scaling": 1}),
    ("metagpt", {}),
    ("model_stock", {}),
    ("model_stock", {"granularity": "row", "average": "cosines"}),
]


@given(seed=SEED, variant=st.sampled_from(NEUTRAL), dtype=st.sampled_from([torch.float32, DOUBLE]))
def test_one_expert_with_a_neutral_scale_is_returned(seed, variant, dtype):
    method, options = variant
    base = draw(seed, dtype)
    expert = expert_of(base, seed % 1009)
    (state,) = models(method, base, {"only": expert}, **options).values()
    close(state, expert, 1e-12 if dtype == DOUBLE else 1e-6, beside=base)


HOMOGENEOUS = [v for v in VARIANTS if v[0] not in ("fisher_merging", "regmean") and v[1].get("variant") != "A"]


@given(seed=SEED, count=st.integers(2, 4), variant=st.sampled_from(HOMOGENEOUS), factor=st.sampled_from([0.01, 0.5, 3.0, 1e6]))
def test_positive_homogeneity(seed, count, variant, factor):
    method, options = variant
    if method == "pcb_merging":
        options = {"variant": "C"}  # the other two take the tanh of raw values
    base = zeros_like(draw(seed))
    experts = some_experts(method, base, count, seed)
    scaled = {t: {n: factor * v for n, v in e.items()} for t, e in experts.items()}
    one, many = models(method, base, experts, **options), models(method, base, scaled, **options)
    all_close({t: {n: v / factor for n, v in s.items()} for t, s in many.items()}, one, 1e-7)


@given(seed=SEED, count=COUNT, method=st.sampled_from(
    ["ta_dare", "ties_dare", "consensus_ta", "consensus_ties", "tall_masks", "emr_merging", "breadcrumbs", "magmax", "metagpt"]
))  # fmt: skip
def test_a_task_that_did_not_move_adds_nothing(seed, count, method):
    base = draw(seed)
    experts = experts_of(base, count, seed % 1009)
    one, more = models(method, base, experts), models(method, base, {**experts, "idle": dict(base)})
    idle = more.pop("idle", base)
    assert all(torch.equal(idle[n], base[n]) for n in base)
    all_close(more, one, 1e-12)


@given(seed=SEED, count=COUNT, variant=VARIANT, where=st.sampled_from(["first", "last", "tensor", "rows"]))
def test_zero_task_vectors_give_finite_results(seed, count, variant, where):
    method, options = variant
    base = draw(seed)
    experts = some_experts(method, base, count, seed)
    for i, expert in enumerate(experts.values()):
        if (where == "first" and i == 0) or (where == "last" and i == len(experts) - 1):
            expert |= snapshot(base)
        elif where == "tensor":
            expert["a.weight"] = base["a.weight"].clone()
        elif where == "rows":
            expert["b.weight"][: 2 * i + 1] = base["b.weight"][: 2 * i + 1]
    for state in models(method, base, experts, **options).values():
        assert all(bool(torch.isfinite(v).all()) for v in state.values())
        if where == "tensor":
            close(state, base, 1e-12, ["a.weight"])


@given(seed=SEED, count=COUNT, dtype=st.sampled_from([DOUBLE, torch.float32, torch.float16]), variant=VARIANT)
def test_experts_equal_to_the_base_return_the_base(seed, count, dtype, variant):
    method, options = variant
    base = draw(seed, dtype)
    experts = {f"t{i}": dict(base) for i in range(2 if method in PAIRS else count)}
    for state in models(method, base, experts, **options).values():
        close(state, base, {DOUBLE: 1e-12, torch.float32: 1e-6, torch.float16: 1e-3}[dtype])


@given(seed=SEED, count=COUNT, data=st.data())
def test_identical_experts(seed, count, data):
    base = draw(seed)
    expert = expert_of(base, seed % 1009)
    tau = update(expert, base)
    scale = data.draw(st.sampled_from([0.25, 1.0]))
    method, options, factor = data.draw(st.sampled_from([
        ("fisher_merging", {}, 1), ("fisher_merging", {"epsilon": 0}, 1), ("regmean", {}, 1), ("model_stock", {}, 1),
        ("model_stock", {"granularity": "row"}, 1), ("slerp", {"t": 0.3}, 1), ("nuslerp", {"t": 0.8}, 1),
        ("metagpt", {}, 1), ("emr_merging", {}, 1), ("emr_merging", {"rescale": "global"}, 1),
        ("magmax", {"scaling": scale}, scale), ("ta_dare", {"drop_rate": 0, "scaling": scale}, count * scale),
        ("breadcrumbs", {"keep": 1, "outliers": 0, "scaling": scale}, count * scale),
        ("tall_masks", {"threshold": 0.2}, count), ("consensus_ta", {"threshold": 0.2, "min_tasks": count}, 0.3 * count),
    ]))  # fmt: skip
    experts = {f"t{i}": dict(expert) for i in range(2 if method in PAIRS else count)}
    for state in models(method, base, experts, **options).values():
        close(state, {n: base[n] + factor * tau[n] for n in base}, 1e-9)


@given(seed=SEED, count=COUNT, dtype=st.sampled_from(FLOATS), variant=VARIANT)
def test_dtypes_and_inputs_are_kept(seed, count, dtype, variant):
    method, options = variant
    base = draw(seed, dtype)
    experts = some_experts(method, base, count, seed)
    before = snapshot(base), {t: snapshot(e) for t, e in experts.items()}
    for state in models(method, base, experts, **options).values():
        assert list(state) == list(base)
        assert all(state[n].dtype == dtype and state[n].shape == base[n].shape for n in base)
        assert all(bool(torch.isfinite(v).all()) for v in state.values())
        for value in state.values():
            value.zero_()
    assert same_bits(base, before[0])
    assert all(same_bits(experts[t], before[1][t]) for t in experts)


@given(seed=SEED, count=COUNT, variant=VARIANT, dtype=st.sampled_from([DOUBLE, torch.float32]), data=st.data())
def test_the_order_of_the_keys_does_not_matter(seed, count, variant, dtype, data):
    method, options = variant
    base = draw(seed, dtype)
    experts = some_experts(method, base, count, seed)
    options = arguments(method, base, list(experts), options)
    want = models(method, base, experts, **options)
    order = data.draw(st.permutations(list(base)))
    got = models(method, base, {t: {n: e[n] for n in order} for t, e in experts.items()}, **options)
    assert all(same_bits(got[t], want[t]) for t in want)
    got = models(method, {n: base[n] for n in order}, experts, **options)
    # Global sums (EMR, Fisher and MetaGPT norms) are taken in the order of the tensors.
    for task in want:
        close(got[task], want[task], 1e-12 if dtype == DOUBLE else 1e-6, beside=base)


LOCAL = [
    v for v in VARIANTS
    if v[0] in ("ta_dare", "consensus_ta", "breadcrumbs", "magmax", "regmean", "slerp", "nuslerp", "model_stock")
]  # fmt: skip


@given(seed=SEED, count=COUNT, variant=st.sampled_from([*LOCAL, ("tall_masks", {})]), name=st.sampled_from(list(draw(0))))
def test_methods_without_global_statistics_merge_each_tensor_alone(seed, count, variant, name):
    method, options = variant
    base = draw(seed)
    experts = some_experts(method, base, count, seed)
    options = arguments(method, base, list(experts), options)
    together = models(method, base, experts, **options)
    if method == "regmean":
        options["gram"] = {t: {n: g for n, g in grams.items() if n == name} for t, grams in options["gram"].items()}
    alone = models(method, {name: base[name]}, {t: {name: e[name]} for t, e in experts.items()}, **options)
    assert all(torch.equal(alone[t][name], together[t][name]) for t in together)


@given(seed=SEED, count=COUNT, variant=VARIANT, dtype=st.sampled_from([DOUBLE, torch.float32]))
def test_integers_and_empty_tensors_pass_through(seed, count, variant, dtype):
    method, options = variant
    rest = {"n": torch.zeros(0, 4), "i": torch.arange(3), "f": torch.tensor([True, False])}
    shapes = {"w": (3, 4), "v": (5,)}
    base = grid_state(seed, shapes, dtype)
    experts = {f"t{i}": grid_state(seed + 1 + i, shapes, dtype) for i in range(2 if method in PAIRS else count)}
    options = arguments(method, base | rest, list(experts), options)
    with_rest = {t: {**e, **rest} for t, e in experts.items()}
    got, want = models(method, base | rest, with_rest, **options), models(method, base, experts, **options)
    for task in want:
        assert all(torch.equal(got[task][n], v) and got[task][n].dtype == v.dtype for n, v in (want[task] | rest).items())


@pytest.mark.parametrize("variant", VARIANTS, ids=lambda v: v[0] + "".join(f"-{x}" for x in v[1].values()))
def test_nothing_but_the_rest(variant):
    method, options = variant
    base = {"n": torch.zeros(0, 4), "i": torch.arange(3), "f": torch.tensor([True, False])}
    experts = {"a": dict(base), "b": dict(base)}
    for state in models(method, base, experts, **options).values():
        assert same_bits(state, base)

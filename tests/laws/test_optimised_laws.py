"""Algebraic laws of doGe TA, AWD TA and WUDI (docs/decisions.md, D20)."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import assume, given
from hypothesis import strategies as st

from tests.oracles.data_free import array
from tests.oracles.optimised import awd_loss, wudi_loss
from tests.support.helpers import expert_of, rng, same_bits, snapshot, touched
from tests.support.optimised_cases import DOUBLE, FEW, SEED, SHAPE, A, close, draw, matrix, merge, tuned

pytestmark = pytest.mark.filterwarnings("ignore:.*numerical rank:UserWarning")  # rank="fixed" on deficient matrices

METHODS = ["doge_ta", "awd_ta", "wudi"]
GROUP, OPTIMIZER = st.sampled_from(["tensor", "global"]), st.sampled_from(["gd", "adam"])


def mapped(state, function):
    return {n: function(v) if v.ndim == 2 else v for n, v in state.items()}


def options(method, optimizer):
    """Few steps; a shared subspace although the matrices are smaller than the divisor."""
    return {**FEW, **{"awd_ta": {"optimizer": optimizer}, "doge_ta": {"subspace_divisor": 2}, "wudi": {}}[method]}


# ---------------------------------------------------------------- laws of all three


@given(seed=SEED, count=st.integers(2, 4), method=st.sampled_from(METHODS), optimizer=OPTIMIZER, data=st.data())
def test_permuting_the_tasks_changes_nothing(seed, count, method, optimizer, data):
    base = draw(seed)
    experts = tuned(base, count, seed)
    given_ = options(method, optimizer)
    order = data.draw(st.permutations(list(experts)))
    close(merge(method, base, {t: experts[t] for t in order}, **given_), merge(method, base, experts, **given_), 1e-6)


@given(
    seed=SEED,
    count=st.integers(1, 4),
    dtype=st.sampled_from([DOUBLE, torch.float32, torch.bfloat16]),
    case=st.sampled_from([
        ("doge_ta", {}),
        ("doge_ta", {"coefficients": "task", "rank": "numerical"}),
        ("doge_ta", {"coefficients": "uniform", "loss": "matrix"}),
        ("awd_ta", {}),
        ("awd_ta", {"group": "global"}),
        ("awd_ta", {"optimizer": "adam"}),
        ("awd_ta", {"group": "global", "optimizer": "adam"}),
        ("wudi", {}),
    ]),
)
def test_experts_equal_to_the_base_return_the_base(seed, count, dtype, case):
    method, given_ = case
    base = draw(seed, dtype)
    experts = {f"t{i}": dict(base) for i in range(count)}
    assert same_bits(merge(method, base, experts, **given_, **FEW), base)


@given(
    seed=SEED,
    count=st.integers(1, 3),
    dtype=st.sampled_from([torch.float32, torch.float16, torch.bfloat16, DOUBLE]),
    method=st.sampled_from(METHODS),
)
def test_dtypes_and_inputs_are_kept(seed, count, dtype, method):
    base = draw(seed, dtype)
    experts = tuned(base, count, seed)
    before = snapshot(base), {t: snapshot(e) for t, e in experts.items()}
    state = merge(method, base, experts, steps=2)
    assert list(state) == list(base)
    assert all(state[n].dtype == dtype and state[n].shape == base[n].shape for n in base)
    assert all(bool(torch.isfinite(v).all()) and not v.requires_grad for v in state.values())
    for value in state.values():
        value.zero_()
    assert same_bits(base, before[0])
    assert all(same_bits(experts[t], before[1][t]) for t in experts)


@given(seed=SEED, method=st.sampled_from(METHODS), optimizer=OPTIMIZER, kind=st.sampled_from(["equal", "opposite", "parallel"]))
def test_collinear_tasks_give_finite_numbers(seed, method, optimizer, kind):
    base = draw(seed)
    expert = expert_of(base, seed % 1009, 1e-2)
    factor = {"equal": 1.0, "opposite": -1.0, "parallel": 1e-3}[kind]
    experts = {"a": expert, "b": {n: base[n] + factor * (v - base[n]) for n, v in expert.items()}}
    assert all(bool(torch.isfinite(v).all()) for v in merge(method, base, experts, **options(method, optimizer)).values())


@given(seed=SEED, count=st.integers(1, 3), method=st.sampled_from(METHODS), optimizer=OPTIMIZER)
def test_negated_tasks_give_the_negated_update(seed, count, method, optimizer):
    origin = {n: torch.zeros_like(v) for n, v in draw(seed).items()}
    experts = tuned(origin, count, seed)
    negated = {t: {n: -v for n, v in e.items()} for t, e in experts.items()}
    given_ = options(method, optimizer)
    given_ |= {"projection": "none"} if method == "doge_ta" and count == 1 else {}
    a, b = merge(method, origin, experts, **given_), merge(method, origin, negated, **given_)
    close(a, {n: -v for n, v in b.items()}, 1e-6)


@given(seed=SEED, count=st.integers(2, 3), shape=SHAPE, method=st.sampled_from(METHODS), optimizer=OPTIMIZER)
def test_the_order_of_rows_and_columns_does_not_matter(seed, count, shape, method, optimizer):
    """Adam and the masks are elementwise: permutations are all that is left of the orthogonal equivariance."""
    base = matrix(seed, shape)
    experts = tuned(base, count, seed)
    rows, columns = (torch.randperm(n, generator=rng(seed)) for n in shape)
    given_ = options(method, optimizer)

    def turn(v):
        return v[rows][:, columns]

    turned = {t: mapped(e, turn) for t, e in experts.items()}
    close(mapped(merge(method, base, experts, **given_), turn), merge(method, mapped(base, turn), turned, **given_), 1e-6)


@pytest.mark.parametrize("method", METHODS)
def test_merging_one_tensor_at_a_time_equals_merging_them_together(method):
    base = draw(3)
    experts = tuned(base, 3, 3)
    given_ = {**FEW, **({"keep": 1.0} if method == "doge_ta" else {})}  # the doGe mask is global
    together = merge(method, base, experts, **given_)
    for name in base:
        alone = merge(method, {name: base[name]}, {t: {name: e[name]} for t, e in experts.items()}, **given_)
        assert torch.equal(alone[name], together[name]), name


@pytest.mark.parametrize("method", METHODS)
def test_result_is_reproducible_and_independent_of_the_order_of_names(method):
    base = draw(5)
    experts = tuned(base, 3, 5)
    expected = merge(method, base, experts, **FEW)
    turned = merge(method, dict(reversed(base.items())), {t: dict(reversed(e.items())) for t, e in experts.items()}, **FEW)
    assert all(torch.equal(turned[n], expected[n]) for n in base)
    assert same_bits(merge(method, base, experts, **FEW), expected)


# ---------------------------------------------------------------- AWD


def redundant(state, base, experts, scaling=0.3):
    """The vector that AWD took off every task vector, {name: array}."""
    total = {n: sum(array(e[n]) for e in experts.values()) - len(experts) * array(base[n]) for n in touched(base)}
    return {n: (total[n] - (array(state[n]) - array(base[n])) / scaling) / len(experts) for n in total}


def flat(parts) -> torch.Tensor:
    return torch.from_numpy(np.concatenate([np.ravel(parts[n]) for n in sorted(parts)]))


@given(seed=SEED, count=st.integers(1, 4), group=GROUP, optimizer=OPTIMIZER)
def test_awd_without_steps_or_without_pairs_is_task_arithmetic(seed, count, group, optimizer):
    base = draw(seed)
    experts = tuned(base, count, seed, 0.3)
    given_ = {"group": group, "optimizer": optimizer}
    close(merge("awd_ta", base, experts, steps=0, **given_), merge("task_arithmetic", base, experts))
    one = {"only": experts["task0"]}
    close(merge("awd_ta", base, one, scaling=1.0, **given_, **FEW), one["only"])
    idle = {**one, "idle": dict(base)}  # no angle with a zero vector
    close(merge("awd_ta", base, idle, **given_, **FEW), merge("task_arithmetic", base, idle))
    assert same_bits(merge("awd_ta", base, experts, scaling=0, **given_, **FEW), base)


@given(seed=SEED, count=st.integers(2, 3), group=GROUP, optimizer=OPTIMIZER)
def test_awd_leaves_orthogonal_tasks_alone(seed, count, group, optimizer):
    origin = {n: torch.zeros(6, 6, dtype=DOUBLE) for n in ("a", "b")}
    experts = {}
    for t in range(count):
        support = torch.zeros(6, 6, dtype=DOUBLE)
        support[2 * t : 2 * t + 2] = 1.0
        experts[f"t{t}"] = {n: support * torch.randn(6, 6, generator=rng(seed + t), dtype=DOUBLE) for n in origin}
    state = merge("awd_ta", origin, experts, group=group, optimizer=optimizer, scaling=1.0, **FEW)
    close(state, {n: sum(e[n] for e in experts.values()) for n in origin}, 1e-12)


@given(seed=SEED, count=st.integers(2, 4), group=GROUP)
def test_awd_descends_for_a_small_step(seed, count, group):
    origin = {n: torch.zeros(s, dtype=DOUBLE) for n, s in (("a", (5, 6)), ("b", (9,)))}
    experts = tuned(origin, count, seed, 1.0)
    given_ = {"group": group, "lr": 1e-5, "alpha": 1e-3, "scaling": 1.0}
    previous = None
    for steps in (0, 2, 6):
        delta = redundant(merge("awd_ta", origin, experts, steps=steps, **given_), origin, experts, 1.0)
        groups = [list(origin)] if group == "global" else [["a"], ["b"]]
        losses = []
        for names in groups:
            vectors = [flat({n: array(e[n]) for n in names}) for e in experts.values()]
            pairs = [torch.cosine_similarity(a, b, dim=0).abs() for i, a in enumerate(vectors) for b in vectors[:i]]
            assume(all(float(p) > 0.01 for p in pairs))  # away from the kinks of the absolute values
            losses.append(float(awd_loss(vectors, flat({n: delta[n] for n in names}), 1e-3)))
        if previous is not None:
            assert all(a <= b + 1e-12 for a, b in zip(losses, previous, strict=True))
        previous = losses


@given(seed=SEED, count=st.integers(2, 4), alpha=st.sampled_from([0.0, 0.1, 3.0]))
def test_awd_by_gradient_descent_only_reweights_the_tasks(seed, count, alpha):
    origin = {n: torch.zeros_like(v) for n, v in draw(seed).items()}
    experts = tuned(origin, count, seed, 1.0)
    delta = flat(redundant(merge("awd_ta", origin, experts, group="global", alpha=alpha, **FEW), origin, experts))
    span = torch.stack([flat({n: array(v) for n, v in e.items()}) for e in experts.values()], dim=1)
    weights = torch.linalg.lstsq(span, delta[:, None]).solution
    assert float((span @ weights - delta[:, None]).norm()) <= 1e-10 * float(span.norm())


@given(seed=SEED, count=st.integers(2, 4), shape=SHAPE)
def test_awd_by_gradient_descent_is_orthogonally_equivariant(seed, count, shape):
    base = matrix(seed, shape)
    experts = tuned(base, count, seed, 1.0)
    g = rng(seed % 7919)
    q, r = (torch.linalg.qr(torch.randn(n, n, generator=g, dtype=DOUBLE))[0] for n in shape)
    turned = {t: {A: q @ e[A] @ r} for t, e in experts.items()}
    want = q @ merge("awd_ta", base, experts, **FEW)[A] @ r
    close({A: want}, merge("awd_ta", {A: q @ base[A] @ r}, turned, **FEW), 1e-9)


@given(seed=SEED, count=st.integers(1, 4), optimizer=OPTIMIZER, scaling=st.floats(-2, 2))
def test_awd_groups_of_one_tensor_and_the_scale(seed, count, optimizer, scaling):
    base = matrix(seed, (6, 5))
    experts = tuned(base, count, seed, 0.3)
    a, b = (merge("awd_ta", base, experts, group=g, optimizer=optimizer, **FEW) for g in ("tensor", "global"))
    close(a, b, 1e-12)
    scaled = merge("awd_ta", base, experts, optimizer=optimizer, scaling=scaling, **FEW)
    close(scaled, {A: base[A] + scaling / 0.3 * (a[A] - base[A])}, 1e-9)


@given(seed=SEED, count=st.integers(2, 4), alpha=st.sampled_from([50.0, 1e4]))
def test_awd_with_a_large_alpha_stays_near_task_arithmetic(seed, count, alpha):
    """The minimiser is delta = 0; descent with a fixed step ends within one step of it."""
    base = matrix(seed, (6, 5))
    experts = tuned(base, count, seed, 0.3)
    state = merge("awd_ta", base, experts, alpha=alpha, lr=1e-7, steps=20, scaling=1.0)
    shift = (state[A] - merge("task_arithmetic", base, experts, scaling=1.0)[A]).norm() / count
    assert float(shift) <= 2e-7 * alpha


# ---------------------------------------------------------------- WUDI


@given(seed=SEED, count=st.integers(1, 4), shape=SHAPE)
def test_wudi_starts_at_the_sum_and_averages_what_is_no_matrix(seed, count, shape):
    base = draw(seed, shape=shape)
    experts = tuned(base, count, seed)
    rest = [n for n, v in base.items() if v.ndim != 2]
    start = merge("wudi", base, experts, steps=0)
    matrices = [n for n in base if n not in rest]
    close(start, merge("task_arithmetic", base, experts, scaling=1.0), 1e-9, matrices)
    state = merge("wudi", base, experts, **FEW)
    for moved in (start, state):
        close(moved, merge("weight_averaging", base, experts), 1e-9, rest)
    # No Adam step is longer than lr sqrt(10) per entry.
    assert all(float((state[n] - start[n]).abs().max()) <= 6 * 3.2e-5 for n in matrices)


@given(seed=SEED, shape=SHAPE)
def test_wudi_of_one_task_or_of_orthogonal_rows_is_the_sum(seed, shape):
    base = draw(seed, shape=shape)
    expert = expert_of(base, seed % 1009, 1e-2)
    close(merge("wudi", base, {"only": expert}, steps=30), expert, 1e-9)
    origin = {A: torch.zeros(5, 6, dtype=DOUBLE)}
    halves = {}
    for t in range(2):
        halves[f"t{t}"] = {A: torch.zeros(5, 6, dtype=DOUBLE)}
        halves[f"t{t}"][A][:, 3 * t : 3 * t + 3] = 1e-2 * torch.randn(5, 3, generator=rng(seed + t), dtype=DOUBLE)
    close(merge("wudi", origin, halves, steps=30), {A: halves["t0"][A] + halves["t1"][A]}, 1e-9)


@given(seed=SEED, count=st.integers(2, 4), shape=SHAPE, size=st.sampled_from([1e-3, 1e-2, 0.3]))
def test_wudi_reduces_the_interference(seed, count, shape, size):
    base = matrix(seed, shape)
    experts = tuned(base, count, seed, size)
    taus = [e[A] - base[A] for e in experts.values()]
    losses = [float(wudi_loss(taus, merge("wudi", base, experts, steps=s)[A] - base[A])) for s in (0, 5, 20)]
    assert losses[1] < losses[0]
    assert losses[2] < losses[1]


@given(seed=SEED, count=st.integers(1, 4))
def test_wudi_skips_a_task_that_does_not_move(seed, count):
    base = draw(seed)
    experts = tuned(base, count, seed)
    idle = {"idle": dict(base), **experts}
    matrices = [n for n, v in base.items() if v.ndim == 2]
    close(merge("wudi", base, idle, **FEW), merge("wudi", base, experts, **FEW), 1e-9, matrices)

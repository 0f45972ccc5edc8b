"""Laws of Fisher merging, RegMean, MetaGPT, SLERP, NuSLERP and Model Stock."""

from __future__ import annotations

import torch
from hypothesis import assume, given
from hypothesis import strategies as st

from tests.support.helpers import distance, expert_of, experts_of, grid_state, rng
from tests.support.key_sets import fisher_of, gram_of
from tests.support.merging import close, draw, merge, update, zeros_like

SEED = st.integers(0, 2**31)
COUNT = st.integers(1, 4)
UNIT = st.floats(0, 1)
DOUBLE = torch.float64
MATRICES = ["a.weight", "b.weight"]


def inputs(seed, count, size=0.3):
    base = draw(seed)
    return base, experts_of(base, count, seed % 1009, size)


# ---------------------------------------------------------------- Fisher


@given(seed=SEED, count=COUNT, epsilon=st.sampled_from([0, 1e-6, 0.3]), normalize=st.booleans())
def test_equal_fishers_average(seed, count, epsilon, normalize):
    base, experts = inputs(seed, count)
    fisher = dict.fromkeys(experts, fisher_of(base, ["any"], seed % 1009)["any"])
    state = merge("fisher_merging", base, experts, fisher=fisher, epsilon=epsilon, normalize=normalize)
    close(state, merge("weight_averaging", base, experts))


@given(seed=SEED, count=COUNT, factor=st.sampled_from([1e-12, 0.1, 7.0, 1e12]), which=st.integers(0, 3))
def test_normalised_fisher_ignores_the_scale_of_each_task(seed, count, factor, which):
    base, experts = inputs(seed, count)
    fisher = fisher_of(base, list(experts), seed % 1009)
    scaled = {**fisher, f"task{which % count}": {n: factor * v for n, v in fisher[f"task{which % count}"].items()}}
    one, many = (merge("fisher_merging", base, experts, fisher=f, epsilon=0) for f in (fisher, scaled))
    close(many, one)
    every = {t: {n: factor * v for n, v in f.items()} for t, f in fisher.items()}
    one, many = (merge("fisher_merging", base, experts, fisher=f, epsilon=0, normalize=False) for f in (fisher, every))
    close(many, one)


@given(seed=SEED, count=COUNT, epsilon=st.sampled_from([0, 1e-6, 0.3]), normalize=st.booleans())
def test_fisher_is_a_convex_combination(seed, count, epsilon, normalize):
    base, experts = inputs(seed, count)
    fisher = fisher_of(base, list(experts), seed % 1009)
    for t, part in fisher.items():
        zeros = grid_state(seed + len(t), {n: tuple(v.shape) for n, v in part.items()}, DOUBLE)
        fisher[t] = {n: torch.where(zeros[n] > 0, 0, v) for n, v in part.items()}
    state = merge("fisher_merging", base, experts, fisher=fisher, epsilon=epsilon, normalize=normalize)
    for name in base:
        stack = torch.stack([e[name] for e in experts.values()])
        assert bool((state[name] >= stack.amin(0) - 1e-12).all())
        assert bool((state[name] <= stack.amax(0) + 1e-12).all())


@given(seed=SEED, count=COUNT)
def test_a_large_epsilon_averages(seed, count):
    base, experts = inputs(seed, count)
    state = merge("fisher_merging", base, experts, epsilon=1e12)
    close(state, merge("weight_averaging", base, experts), 1e-6)


# ---------------------------------------------------------------- RegMean


@given(seed=SEED, count=COUNT, off_diagonal=UNIT)
def test_equal_grams_average(seed, count, off_diagonal):
    base, experts = inputs(seed, count)
    gram = dict.fromkeys(experts, gram_of(base, ["any"], seed=seed % 1009)["any"])
    state = merge("regmean", base, experts, gram=gram, off_diagonal=off_diagonal)
    close(state, merge("weight_averaging", base, experts), 1e-8)


@given(seed=SEED, count=COUNT, off_diagonal=UNIT, rank=st.sampled_from([None, 1, 2]))
def test_regmean_solves_the_normal_equations(seed, count, off_diagonal, rank):
    """Σ_t (W - W_t) G~_t = 0: W minimises Σ_t tr((W - W_t) G~_t (W - W_t)^T), with singular Gram matrices too."""
    base, experts = inputs(seed, count)
    gram = gram_of(base, list(experts), seed=seed % 1009, rank=rank)
    state = merge("regmean", base, experts, gram=gram, off_diagonal=off_diagonal)
    for name in MATRICES:
        residual, size = 0, 0.0
        for task, expert in experts.items():
            g = gram[task][name]
            mixed = off_diagonal * g + (1 - off_diagonal) * torch.diag(g.diag())
            residual = residual + (state[name] - expert[name]) @ mixed
            size += float(mixed.abs().max())
        assert float(residual.abs().max()) <= 1e-9 * size


@given(seed=SEED, count=COUNT)
def test_regmean_without_off_diagonals_weighs_columns(seed, count):
    base, experts = inputs(seed, count)
    gram = gram_of(base, list(experts), seed=seed % 1009)
    state = merge("regmean", base, experts, gram=gram, off_diagonal=0)
    for name in MATRICES:
        shares = torch.stack([gram[t][name].diag() for t in experts])
        values = torch.stack([e[name] for e in experts.values()])
        want = (shares[:, None] * values).sum(0) / shares.sum(0)
        assert distance(state[name], want) <= 1e-9


@given(seed=SEED, count=COUNT)
def test_a_task_without_inputs_changes_no_regressed_matrix(seed, count):
    base, experts = inputs(seed, count)
    gram = gram_of(base, list(experts), seed=seed % 1009)
    more = experts_of(base, 1, 5000, 1.0)["task0"]
    idle = {n: torch.zeros_like(g) for n, g in gram["task0"].items()}
    state = merge("regmean", base, {**experts, "idle": more}, gram={**gram, "idle": idle})
    close(state, merge("regmean", base, experts, gram=gram), 1e-8, MATRICES)


@given(seed=SEED, count=COUNT, factor=st.sampled_from([1e-9, 0.01, 1e6]))
def test_regmean_ignores_a_common_scale(seed, count, factor):
    base, experts = inputs(seed, count)
    gram = gram_of(base, list(experts), seed=seed % 1009)
    scaled = {t: {n: factor * g for n, g in grams.items()} for t, grams in gram.items()}
    close(merge("regmean", base, experts, gram=scaled), merge("regmean", base, experts, gram=gram), 1e-8)


# ---------------------------------------------------------------- MetaGPT


@given(seed=SEED, count=COUNT, size=st.sampled_from([1e-6, 0.3, 100.0]))
def test_metagpt_weighs_by_squared_norms_that_sum_to_one(seed, count, size):
    base = zeros_like(draw(seed))
    experts = {f"t{i}": expert_of(base, seed % 1009 + i, size * (i + 1)) for i in range(count)}
    squares = {t: sum(float(v.square().sum()) for v in e.values()) for t, e in experts.items()}
    want = {n: sum(squares[t] * e[n] for t, e in experts.items()) / sum(squares.values()) for n in base}
    state = merge("metagpt", base, experts)
    for name in base:
        assert float((state[name] - want[name]).abs().max()) <= 1e-12 * max(float(e[name].abs().max()) for e in experts.values())


@given(seed=SEED, count=COUNT)
def test_metagpt_of_equal_norms_averages(seed, count):
    base = draw(seed)
    expert = experts_of(base, 1, seed % 1009)["task0"]
    shapes = {n: tuple(v.shape) for n, v in base.items()}
    signs = [{n: torch.where(v > 0, 1, -1) for n, v in grid_state(seed + i, shapes, DOUBLE).items()} for i in range(count)]
    experts = {f"t{i}": {n: base[n] + s[n] * (expert[n] - base[n]) for n in base} for i, s in enumerate(signs)}
    close(merge("metagpt", base, experts), merge("weight_averaging", base, experts))


# ---------------------------------------------------------------- SLERP, NuSLERP

NUSLERP = {
    "vectors": st.sampled_from(["task_vectors", "weights"]), "dimension": st.sampled_from(["flat", "last", "first"]),
}  # fmt: skip


@given(seed=SEED, dtype=st.sampled_from([DOUBLE, torch.float32, torch.bfloat16]), size=st.sampled_from([0.001, 0.3]), **NUSLERP)
def test_end_points(seed, dtype, size, vectors, dimension):
    base = draw(seed, dtype)
    experts = experts_of(base, 2, seed % 1009, size)
    for t, task in ((0, "task0"), (1.0, "task1")):
        state = merge("slerp", base, experts, t=t)
        assert all(torch.equal(state[n], experts[task][n]) for n in base)
        state = merge("nuslerp", base, experts, t=t, vectors=vectors, dimension=dimension)
        close(state, experts[task], {DOUBLE: 1e-12, torch.float32: 1e-6, torch.bfloat16: 1e-2}[dtype], beside=base)


@given(seed=SEED, t=UNIT, size=st.sampled_from([0.003, 0.3]), **NUSLERP)
def test_turning_the_pair_round_mirrors_t(seed, t, size, vectors, dimension):
    base, experts = inputs(seed, 2, size)
    turned = dict(reversed(list(experts.items())))
    close(merge("slerp", base, turned, t=1 - t), merge("slerp", base, experts, t=t))
    options = {"vectors": vectors, "dimension": dimension}
    close(merge("nuslerp", base, turned, t=1 - t, **options), merge("nuslerp", base, experts, t=t, **options), 1e-7)


@given(seed=SEED, t=UNIT)
def test_between_vectors_of_one_norm_the_norm_is_kept_and_the_angle_divided(seed, t):
    zero = {"w": torch.zeros(3, 4, dtype=DOUBLE)}
    a, b = torch.randn(2, 3, 4, generator=rng(seed), dtype=DOUBLE)
    b = b * a.norm() / b.norm()
    angle = torch.acos((a * b).sum() / a.norm() ** 2)
    assume(0.1 < float(angle) < 3.0)
    for method in ("slerp", "nuslerp"):
        w = merge(method, zero, {"a": {"w": a}, "b": {"w": b}}, t=t)["w"]
        assert abs(float(w.norm() / a.norm()) - 1) <= 1e-9
        assert abs(float((w * a).sum() / a.norm() ** 2) - float(torch.cos(t * angle))) <= 1e-9


@given(seed=SEED, t=UNIT, dimension=st.sampled_from(["flat", "last", "first"]))
def test_nuslerp_of_task_vectors_is_that_of_weights_around_zero(seed, t, dimension):
    base, experts = inputs(seed, 2)
    taus = {task: update(e, base) for task, e in experts.items()}
    around = merge("nuslerp", zeros_like(base), taus, t=t, dimension=dimension, vectors="weights")
    state = merge("nuslerp", base, experts, t=t, dimension=dimension)
    close(state, {n: base[n] + around[n] for n in base}, 1e-7)
    other = merge("nuslerp", draw(seed + 1), experts, t=t, dimension=dimension, vectors="weights")
    close(other, merge("nuslerp", base, experts, t=t, dimension=dimension, vectors="weights"))


@given(seed=SEED, t=UNIT, dimension=st.sampled_from(["last", "first"]))
def test_nuslerp_along_a_dimension_is_that_of_each_vector(seed, t, dimension):
    base, experts = inputs(seed, 2)
    state = merge("nuslerp", base, experts, t=t, dimension=dimension)["b.weight"]
    for i in range(6 if dimension == "last" else 3):
        pick = (lambda w, i=i: w[i]) if dimension == "last" else (lambda w, i=i: w[:, i])
        alone = merge("nuslerp", {"w": pick(base["b.weight"])}, {k: {"w": pick(e["b.weight"])} for k, e in experts.items()}, t=t)
        assert distance(alone["w"], pick(state)) <= 1e-7


# ---------------------------------------------------------------- Model Stock

STOCK = {"average": st.sampled_from(["angles", "cosines"]), "granularity": st.sampled_from(["tensor", "row"])}


@given(seed=SEED, count=st.integers(2, 4), **STOCK)
def test_model_stock_of_orthogonal_tasks_is_the_base(seed, count, average, granularity):
    base = {"w": torch.randn(3, 8, generator=rng(seed), dtype=DOUBLE)}
    experts = {f"t{i}": {"w": base["w"].clone()} for i in range(count)}
    for i, expert in enumerate(experts.values()):
        expert["w"][:, 2 * i : 2 * i + 2] += torch.randn(3, 2, generator=rng(seed + i + 1), dtype=DOUBLE)
    close(merge("model_stock", base, experts, average=average, granularity=granularity), base, 1e-12)


@given(seed=SEED, count=st.integers(2, 4), **STOCK)
def test_model_stock_lies_on_the_line_through_base_and_mean(seed, count, average, granularity):
    base, experts = inputs(seed, count)
    state = merge("model_stock", base, experts, average=average, granularity=granularity)
    mean = update(merge("weight_averaging", base, experts), base)
    for name in base:
        rows = (len(base[name]), -1) if granularity == "row" else (1, -1)
        for moved, direction in zip((state[name] - base[name]).reshape(rows), mean[name].reshape(rows), strict=True):
            ratio = (moved * direction).sum() / direction.square().sum()
            assert float((moved - ratio * direction).abs().max()) <= 1e-9 * max(1.0, float(moved.abs().max()))


@given(seed=SEED, granularity=st.sampled_from(["tensor", "row"]))
def test_two_tasks_have_one_angle(seed, granularity):
    base, experts = inputs(seed, 2)
    angles, cosines = (merge("model_stock", base, experts, average=a, granularity=granularity) for a in ("angles", "cosines"))
    close(angles, cosines, 1e-7)


@given(seed=SEED, count=st.integers(2, 4), average=st.sampled_from(["angles", "cosines"]))
def test_model_stock_by_row_is_that_of_each_row(seed, count, average):
    base, experts = inputs(seed, count)
    state = merge("model_stock", base, experts, average=average, granularity="row")["conv"]
    for i in range(3):
        alone = merge("model_stock", {"w": base["conv"][i]}, {k: {"w": e["conv"][i]} for k, e in experts.items()}, average=average)
        assert distance(alone["w"], state[i]) <= 1e-9

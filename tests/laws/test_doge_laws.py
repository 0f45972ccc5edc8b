"""Algebraic laws of doGe TA (Wei et al. 2025)."""

from __future__ import annotations

import pytest
import torch
from hypothesis import assume, given
from hypothesis import strategies as st

from tests.support.helpers import expert_of, same_bits
from tests.support.laws import costly
from tests.support.optimised_cases import DOUBLE, FEW, SEED, SHAPE, A, B, close, draw, matrix, merge, tuned

pytestmark = pytest.mark.filterwarnings("ignore:.*numerical rank:UserWarning")  # rank="fixed" on deficient matrices

PROJECTION = st.sampled_from(["orthogonal", "none", "onto"])
COEFFICIENTS = st.sampled_from(["layer", "task", "uniform"])


@given(
    seed=SEED,
    count=st.integers(1, 4),
    coefficients=COEFFICIENTS,
    projection=PROJECTION,
    dtype=st.sampled_from([DOUBLE, torch.bfloat16]),
)
def test_doge_touches_encoder_matrices_only(seed, count, coefficients, projection, dtype):
    base = draw(seed, dtype)
    state = merge("doge_ta", base, tuned(base, count, seed), steps=2, coefficients=coefficients, projection=projection)
    assert all(torch.equal(state[n], base[n]) for n in base if n not in (A, B))
    assert not torch.equal(state[A], base[A])


@given(seed=SEED, count=st.integers(1, 4), eta=st.floats(0.01, 1.0), shape=SHAPE)
def test_doge_without_steps_or_trimming_gives_every_task_the_norm_eta(seed, count, eta, shape):
    base = draw(seed, shape=shape)
    experts = tuned(base, count, seed)
    state = merge("doge_ta", base, experts, steps=0, keep=1.0, eta=eta)
    for name in (A, B):
        taus = [e[name] - base[name] for e in experts.values()]
        close(state, {name: base[name] + sum(eta * tau / tau.norm() for tau in taus)}, 1e-9, [name])
    alone = merge("doge_ta", base, {"t": experts["task0"]}, steps=0, keep=1.0, eta=eta)
    assert float((alone[A] - base[A]).norm()) == pytest.approx(eta, rel=1e-9)
    total = sum(float((alone[n] - base[n]).norm()) for n in (A, B))
    assert total == pytest.approx(2 * eta, rel=1e-9)
    shared = merge("doge_ta", base, {"t": experts["task0"]}, steps=0, keep=1.0, eta=eta, coefficients="task")
    assert sum(float((shared[n] - base[n]).square().sum()) for n in (A, B)) == pytest.approx(2 * eta**2, rel=1e-8)


@given(seed=SEED, count=st.integers(1, 4), factor=st.sampled_from([1e-3, 0.5, 40.0]), keep=st.sampled_from([0.3, 1.0]))
def test_doge_without_steps_ignores_the_length_of_the_task_vectors(seed, count, factor, keep):
    origin = {n: torch.zeros_like(v) for n, v in draw(seed).items()}
    experts = tuned(origin, count, seed)
    scaled = {t: {n: factor * v for n, v in e.items()} for t, e in experts.items()}
    for coefficients in ("layer", "task"):
        given_ = {"steps": 0, "keep": keep, "coefficients": coefficients}
        close(merge("doge_ta", origin, scaled, **given_), merge("doge_ta", origin, experts, **given_), 1e-9)


@given(seed=SEED, count=st.integers(1, 4), scaling=st.floats(-1, 2))
def test_doge_with_uniform_coefficients_starts_from_task_arithmetic(seed, count, scaling):
    base = draw(seed)
    experts = tuned(base, count, seed)
    state = merge("doge_ta", base, experts, steps=0, keep=1, coefficients="uniform", scaling=scaling)
    close(state, merge("task_arithmetic", base, experts, scaling=scaling), 1e-9, [A, B])
    assert same_bits(merge("doge_ta", base, experts, coefficients="uniform", scaling=0, **FEW), base)


@given(seed=SEED, count=st.integers(1, 4), eta=st.sampled_from([1e-2, 1e-5, 1e-9]), steps=st.integers(0, 8))
def test_doge_goes_to_the_base_with_eta(seed, count, eta, steps):
    base = draw(seed)
    experts = tuned(base, count, seed)
    state = merge("doge_ta", base, experts, eta=eta, steps=steps)
    for name in (A, B):
        # No Adam step is longer than lr sqrt(10) per entry.
        longest = 3.2e-4 * steps * base[name].numel() ** 0.5
        reach = sum(eta * (1 + longest / float((e[name] - base[name]).norm())) for e in experts.values())
        assert float((state[name] - base[name]).norm()) <= reach * (1 + 1e-9) + 1e-15


@given(seed=SEED, keep=st.floats(0.01, 0.99), matrices=st.sampled_from(["encoder_linear", "all_2d"]))
def test_doge_keeps_the_floor_plus_one_over_all_selected_matrices(seed, keep, matrices):
    origin = {n: torch.zeros_like(v) for n, v in draw(seed).items()}
    expert = expert_of(origin, seed % 1009, 1e-2)
    state = merge("doge_ta", origin, {"only": expert}, keep=keep, steps=2, matrices=matrices, projection="none")
    selected = [A, B] if matrices == "encoder_linear" else [A, B, "head.weight"]
    d = sum(expert[n].numel() for n in selected)
    kept = sorted((float(v) for n in selected for v in expert[n].abs().ravel()), reverse=True)[: int(keep * d) + 1]
    assert sum(int((state[n] != 0).sum()) for n in selected) == len(kept)
    # The mask is of the task vector, not of what the optimiser made of it.
    assert all(torch.equal(state[n] != 0, expert[n].abs() >= kept[-1]) for n in selected)


@given(seed=SEED, count=st.integers(2, 4), shape=SHAPE)
def test_doge_projections_at_their_limits(seed, count, shape):
    base = matrix(seed, shape)
    experts = tuned(base, count, seed)

    def run(**given_):
        return merge("doge_ta", base, experts, keep=1.0, **{**FEW, **given_})

    # No shared direction: nothing is removed, and nothing is left to project onto.
    close(run(subspace_divisor=99), run(projection="none"), 1e-9)
    close(run(subspace_divisor=99, projection="onto"), run(steps=0), 1e-9)
    # One task shares everything with itself; its column space holds every gradient.
    one = {"only": experts["task0"]}
    full = merge("doge_ta", base, one, keep=1.0, subspace_divisor=1, **FEW)
    if shape[0] <= shape[1]:
        close(full, merge("doge_ta", base, one, keep=1.0, steps=0), 1e-9)
        onto = merge("doge_ta", base, one, keep=1.0, subspace_divisor=1, projection="onto", **FEW)
        close(onto, merge("doge_ta", base, one, keep=1.0, projection="none", **FEW), 1e-9)


@given(seed=SEED, count=st.integers(1, 3), projection=PROJECTION)
def test_doge_variants_that_coincide(seed, count, projection):
    row = {A: torch.zeros(1, 9, dtype=DOUBLE)}
    experts = tuned(row, count, seed)
    a, b = (merge("doge_ta", row, experts, loss=loss, projection=projection, **FEW) for loss in ("row", "matrix"))
    close(a, b, 1e-9)
    single = matrix(seed, (6, 5))
    experts = tuned(single, count, seed)
    given_ = {"projection": projection if count > 1 else "none", "subspace_divisor": 2, **FEW}
    a, b = (merge("doge_ta", single, experts, coefficients=c, **given_) for c in ("layer", "task"))
    close(a, b, 1e-7)
    close(merge("doge_ta", single, experts, rank="numerical", **given_), a, 1e-7)


def row_loss(taus, update) -> float:
    return float(sum(((tau * (tau - update)).sum(1) ** 2).sum() for tau in taus))


@costly(8)  # 400 steps each
@given(seed=SEED, count=st.integers(1, 2), shape=st.sampled_from([(6, 12), (4, 16), (9, 10)]))
def test_doge_removes_the_loss_in_400_steps(seed, count, shape):
    """At zero loss the merged vector has the inner products of each task vector with itself, row by row."""
    base = matrix(seed, shape)
    experts = tuned(base, count, seed, 3e-3)
    given_ = {"keep": 1.0, "projection": "none"} if count == 1 else {"keep": 1.0}
    taus = [e[A] - base[A] for e in experts.values()]
    if count == 2:  # nearly parallel rows ask for nearly contradictory inner products
        assume(float(torch.cosine_similarity(*taus, dim=1).abs().max()) < 0.7)
    first, last = (merge("doge_ta", base, experts, steps=s, **given_)[A] - base[A] for s in (0, 400))
    assert row_loss(taus, last) <= 1e-6 * row_loss(taus, first)
    for tau in taus:
        want = (tau * tau).sum(1)
        assert torch.allclose((tau * last).sum(1), want, rtol=0, atol=2e-3 * float(want.max()))

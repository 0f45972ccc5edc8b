"""Results do not depend on the processor: kernels that round otherwise change nothing, or the user is warned."""

from __future__ import annotations

import warnings

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

import fusionbench_lite as fbl
from fusionbench_lite.weights.linalg import orthonormalise_
from fusionbench_lite.weights.ranks import TieWarning
from fusionbench_lite.weights.rounding import Still, rounding
from tests.support.helpers import State, distance, rng
from tests.support.noisy_kernels import NoisyKernels

NAME = "encoder.attn.a.weight"
SHAPE = 12, 10
DOUBLE = torch.float64
PRECISION = {torch.float64: 1e-8, torch.float32: 1e-5}
"""Those of the comparisons with oracles."""

FLOATS = pytest.mark.parametrize("dtype", PRECISION, ids=["f64", "f32"])
LAWS = settings(max_examples=25, deadline=None)
SEED = st.integers(0, 2**20)


@pytest.fixture(autouse=True)
def one_thread():
    """The noise is that of the thread which asks for it."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def draw(seed: int) -> Tensor:
    return torch.randn(SHAPE, generator=rng(seed), dtype=DOUBLE)


def supported(seed: int, rows: slice, columns: slice) -> Tensor:
    """Entries in a block, zeros around it."""
    mask = torch.zeros(SHAPE, dtype=DOUBLE)
    mask[rows, columns] = 1
    return mask * draw(seed)


def vectors(kind: str, seed: int = 0) -> list[Tensor]:
    """Task vectors of a degenerate kind."""
    everything, low, high = slice(None), slice(0, 5), slice(5, None)
    one, two = draw(seed), draw(seed + 1)
    if kind == "rotated":  # orthogonal up to the rounding of their own entries
        turn = torch.linalg.qr(torch.randn(10, 10, generator=rng(seed), dtype=DOUBLE))[0]
        return [part @ turn for part in vectors("columns", seed)]
    return {
        "one": [one],
        "equal": [one] * 3,
        "opposite": [one, -one],
        "parallel": [one, 0.5 * one, 3 * one],
        "rows": [supported(seed, low, everything), supported(seed + 1, high, everything)],
        "columns": [supported(seed, everything, low), supported(seed + 1, everything, high)],
        "blocks": [supported(seed, low, low), supported(seed + 1, high, high) + supported(seed + 2, low, high)],
        "idle": [one, two, torch.zeros_like(one)],
    }[kind]


KINDS = ["one", "equal", "opposite", "parallel", "rows", "columns", "rotated", "blocks", "idle"]


def states(taus: list[Tensor], dtype: torch.dtype, *, base: bool) -> tuple[State, dict[str, State]]:
    origin = draw(99).to(dtype) if base else torch.zeros(SHAPE, dtype=dtype)
    return {NAME: origin}, {f"task{i}": {NAME: (origin.double() + tau).to(dtype)} for i, tau in enumerate(taus)}


def merge(method: str, base: State, experts: dict[str, State], given_: dict) -> Tensor:
    merged = fbl.merge(method, base, experts, **given_)
    return merged.state_dict("task0" if method == "tsv_c" else None)[NAME]


def deviation(method: str, taus: list[Tensor], dtype: torch.dtype, given_: dict, seeds: int = 3) -> float:
    """The largest deviation under other kernels, from zeros and from other weights; TieWarning is an error."""
    worst = 0.0
    for with_base in (False, True):
        base, experts = states(taus, dtype, base=with_base)
        with warnings.catch_warnings():
            warnings.simplefilter("error", TieWarning)
            clean = merge(method, base, experts, given_)
            for seed in range(seeds):
                with NoisyKernels(seed):
                    worst = max(worst, distance(merge(method, base, experts, given_), clean))
    return worst


# ---------------------------------------------------------------- gradients that are rounding

FLAT = {"coefficients": "uniform", "projection": "none", "lr": 1e-2, "steps": 20}
"""λ of 1, or of 1/T, makes the gradient vanish for task vectors that are orthogonal, or equal."""

OPTIMISED = [
    ("wudi", {"steps": 30, "lr": 1e-3}),
    ("awd_ta", {"steps": 20}),
    ("awd_ta", {"steps": 20, "optimizer": "adam"}),
    ("doge_ta", {**FLAT, "scaling": 1.0}),
    ("doge_ta", {**FLAT, "scaling": 1 / 3}),
    ("doge_ta", {**FLAT, "scaling": 1.0, "loss": "matrix"}),
    ("doge_ta", {"projection": "none", "steps": 20}),
]


def identify(value):
    if not isinstance(value, dict):
        return None
    return "-".join(f"{k}={v:.2g}" if isinstance(v, float) else f"{k}={v}" for k, v in value.items())


@FLOATS
@pytest.mark.parametrize(("method", "given_"), OPTIMISED, ids=identify)
@pytest.mark.parametrize("kind", KINDS)
def test_optimised_methods_do_not_follow_rounding(kind, method, given_, dtype):
    assert deviation(method, vectors(kind), dtype, given_) <= PRECISION[dtype]


@FLOATS
@pytest.mark.parametrize("size", [1e-3, 1.0, 1e3])
def test_doge_with_a_space_that_holds_everything_stays_where_it_starts(size, dtype):
    """Task vectors so large that Adam's ε does not hide the rounding of the projection."""
    base = {NAME: torch.zeros(8, 10, dtype=dtype)}
    experts = {f"t{i}": {NAME: (size * torch.randn(8, 10, generator=rng(i), dtype=DOUBLE)).to(dtype)} for i in range(2)}
    given_ = {"subspace_divisor": 1, "eta": size}
    start = merge("doge_ta", base, experts, {**given_, "steps": 0})
    assert torch.equal(merge("doge_ta", base, experts, {**given_, "steps": 10}), start)
    assert not torch.equal(merge("doge_ta", base, experts, {**given_, "steps": 10, "projection": "none"}), start)


@LAWS
@given(seed=SEED, kind=st.sampled_from(["one", "columns", "rotated"]), noise=SEED)
def test_wudi_of_orthogonal_task_vectors_is_their_sum_on_every_processor(seed, kind, noise):
    base, experts = states(vectors(kind, seed), DOUBLE, base=False)
    with NoisyKernels(noise):
        state = merge("wudi", base, experts, {"steps": 10, "lr": 1e-2})
    assert distance(state, sum(e[NAME] for e in experts.values())) <= 1e-12


@LAWS
@given(
    seed=SEED, noise=SEED, kind=st.sampled_from(["one", "equal", "columns", "rotated", "rows"]),
    optimizer=st.sampled_from(["gd", "adam"]),
)
def test_awd_of_equal_or_orthogonal_task_vectors_is_task_arithmetic_on_every_processor(seed, kind, noise, optimizer):
    base, experts = states(vectors(kind, seed), DOUBLE, base=False)
    with NoisyKernels(noise):
        state = merge("awd_ta", base, experts, {"steps": 5, "optimizer": optimizer})
    assert distance(state, merge("task_arithmetic", base, experts, {"scaling": 0.3})) <= 1e-12


@LAWS
@given(seed=SEED, length=st.integers(1, 400), noise=SEED, dtype=st.sampled_from(list(PRECISION)))
def test_rounding_bounds_what_kernels_make_of_a_product(seed, length, noise, dtype):
    first, second = (
        torch.randn(shape, generator=rng(seed + i), dtype=DOUBLE).to(dtype) for i, shape in enumerate([(7, length), (length, 7)])
    )
    exact, made_of = first.double() @ second.double(), first.double().abs() @ second.double().abs()
    with NoisyKernels(noise):
        result = first @ second
    assert bool(((result.double() - exact).abs() <= rounding(length + 4, dtype) * made_of).all())


def test_rounding_grows_with_the_sum_and_never_beyond_the_worst_case():
    unit = torch.finfo(torch.float32).eps / 2
    assert rounding(9, torch.float32) == 9 * unit
    assert rounding(6400, torch.float32) == pytest.approx(640 * unit)


def test_what_moved_once_is_not_stopped_again():
    still, bound = Still(), torch.ones(4)
    first = torch.tensor([0.5, 2.0, 0.0, 1.0])
    still.settle(first, lambda: bound)
    assert first.tolist() == [0.0, 2.0, 0.0, 0.0]
    later = torch.tensor([0.5, 0.5, 3.0, 0.5])
    still.settle(later, lambda: bound)
    assert later.tolist() == [0.0, 0.5, 3.0, 0.0]


def test_what_is_made_of_zeros_is_not_looked_at_again():
    still = Still(dim=1)
    still.settle(torch.zeros(3, 2), lambda: torch.zeros(3, 1))
    still.settle(torch.zeros(3, 2), lambda: pytest.fail("asked for the bound a second time"))


# ---------------------------------------------------------------- equal singular values

SPECTRAL = [
    ("tsv_m", {"rank_ratio": 0.3}),
    ("tsv_c", {"rank_ratio": 0.3}),
    ("cart", {"rank_ratio": 0.3}),
    ("iso_c", {}),
    ("iso_cts", {"common_fraction": 0.5}),
    ("star", {}),
    ("star", {"eta": 50}),
    ("knots_ta", {}),
    ("knots_ties", {}),
    ("doge_ta", {"steps": 5}),
]


def spectrum(values: list[float], seed: int) -> Tensor:
    u, _, v = torch.linalg.svd(draw(seed), full_matrices=False)
    return (u * torch.tensor(values, dtype=DOUBLE)) @ v


@FLOATS
@pytest.mark.parametrize(("method", "given_"), SPECTRAL, ids=identify)
def test_spectral_methods_of_different_singular_values_are_the_same_everywhere(method, given_, dtype):
    assert deviation(method, [draw(1), draw(2)], dtype, given_) <= PRECISION[dtype]


@pytest.mark.parametrize(
    ("method", "given_"), [case for case in SPECTRAL if case[0] in ("iso_c", "knots_ta", "tsv_m", "tsv_c", "star")], ids=identify
)
def test_equal_singular_values_that_are_not_parted_do_no_harm(method, given_):
    """Three components are kept where a method cuts: 5, 5, 5 | 2, 2, …; STAR keeps 38 % with two and 57 % with three."""
    values = [5.0, 5, 5, 2, 2, 2, 2, 1, 1, 1]
    given_ = {**given_, **({"eta": 55} if method == "star" else {})}
    assert deviation(method, [spectrum(values, 1), spectrum(values, 2)], DOUBLE, given_) <= 1e-8


PARTED = {
    "tsv_m": ({"rank_ratio": 0.3}, 3, "'encoder.attn.a.weight' of expert 'task0'"),
    "tsv_c": ({"rank_ratio": 0.3}, 3, "'encoder.attn.a.weight' of expert 'task0'"),
    "star": ({"eta": 50}, 5, "'encoder.attn.a.weight' of expert 'task0'"),
    "iso_cts": ({"common_fraction": 0.5}, 2, "'encoder.attn.a.weight' of expert 'task0' outside the common space"),
    "doge_ta": ({"steps": 5}, 1, "the shared space of 'encoder.attn.a.weight'"),
}


@pytest.mark.parametrize("method", PARTED)
def test_a_cut_between_equal_singular_values_is_warned_of_with_its_place(method):
    given_, rank, what = PARTED[method]
    base, experts = states([spectrum([3.0] * 10, seed) for seed in (1, 2)], DOUBLE, base=False)
    if method == "doge_ta":  # orthogonal column spaces: every direction has one vote
        base, experts = states(vectors("rows"), DOUBLE, base=False)
    with pytest.warns(TieWarning) as caught:
        merge(method, base, experts, given_)
    (message,) = {str(one.message) for one in caught if issubclass(one.category, TieWarning)}
    assert message.startswith(f"{method} keeps {rank} singular components of {what}, but singular values {rank} and {rank + 1} are")
    assert issubclass(TieWarning, fbl.MergeWarning)


def test_cart_warns_of_a_cut_between_equal_singular_values():
    tau = spectrum([3.0] * 10, 1)
    base, experts = states([tau, -tau], DOUBLE, base=False)
    with pytest.warns(TieWarning, match="cart keeps 3 singular components of 'encoder.attn.a.weight' of expert 'task0'"):
        merge("cart", base, experts, {"rank_ratio": 0.3})


def test_knots_ties_warns_of_an_arbitrary_basis():
    base, experts = states([spectrum([4.0, 3, 3, 1, 0.5, 0.4, 0.3, 0.2, 0.1, 0.05], 1)], DOUBLE, base=False)
    with pytest.warns(TieWarning, match="joint task vectors of 'encoder.attn.a.weight' in the basis .* 2 and 3 are equal"):
        merge("knots_ties", base, experts, {})


@LAWS
@given(
    seed=SEED, ratio=st.sampled_from([0.1, 0.3, 0.7]),
    method=st.sampled_from(["tsv_m", "tsv_c", "cart", "star", "knots_ties", "iso_cts"]),
)
def test_random_singular_values_are_not_taken_for_equal(seed, ratio, method):
    base, experts = states([draw(seed), draw(seed + 1)], torch.float32, base=True)
    given_ = {"rank_ratio": ratio} if method in ("tsv_m", "tsv_c", "cart") else {}
    with warnings.catch_warnings():
        warnings.simplefilter("error", TieWarning)
        merge(method, base, experts, given_)


@pytest.mark.parametrize("count", [2, 3, 4, 6, 7])
def test_star_takes_a_part_that_is_reached_but_for_rounding(count):
    """η is the part that `kept` of equal values hold, whose sum rounds either way."""
    tau = torch.zeros(SHAPE, dtype=DOUBLE)
    tau[range(count), range(count)] = 0.1 * 3
    base, experts = states([tau], DOUBLE, base=False)
    for kept in range(1, count):
        with pytest.warns(TieWarning, match=f"star keeps {kept} singular"):
            merge("star", base, experts, {"eta": 100 * kept / count})


# ---------------------------------------------------------------- ill-conditioned factors


@pytest.mark.parametrize("smallest", [1e-2, 1.1e-4, 4e-5, 2e-5, 1e-5])
@pytest.mark.parametrize(("dtype", "limit"), [(torch.float64, 1e-4), (torch.float32, 3e-5)], ids=["f64", "f32"])
def test_whitening_is_as_exact_as_its_condition_allows(smallest, dtype, limit):
    """The polar factor of a matrix of condition κ is off by no more than some 2u κ (Higham 2008, Theorem 8.9)."""
    left, right = draw(1), draw(2).T.contiguous()
    for matrix in (left, right):
        u, values, v = torch.linalg.svd(matrix, full_matrices=False)
        values[-1] = smallest * values[0]
        matrix.copy_((u * values) @ v)
    wanted = [torch.linalg.svd(matrix, full_matrices=False) for matrix in (left, right)]
    orthonormalise_(left, right, "a test", dtype)
    # Through the Gram matrix, where it is not so ill-conditioned as to be left, κ counts twice.
    allowed = 1e-15 / (smallest if smallest < limit else smallest**2)
    for matrix, (u, _, v) in zip((left, right), wanted, strict=True):
        assert float((matrix - u @ v).abs().max()) <= 20 * allowed

"""Laws of single elementwise methods: TALL-masks, Consensus, EMR, PCB, Breadcrumbs, MagMax, TATR."""

from __future__ import annotations

import math

import torch
from hypothesis import given
from hypothesis import strategies as st

from tests.oracles.elementwise import clipped, flat, pcb_parts, seen_task_vectors
from tests.support.helpers import experts_of, grid_state
from tests.support.key_sets import fisher_of
from tests.support.merging import close, draw, merge, models, update, zeros_like

SEED = st.integers(0, 2**31)
COUNT = st.integers(1, 3)
BASE = st.sampled_from(["ta", "ties"])
LIMIT = st.floats(0, 3)
CONSENSUS = st.sampled_from(["consensus_ta", "consensus_ties"])
GRID = {"w": (3, 4), "v": (5,)}


def around_zero(seed, count):
    zero = zeros_like(draw(seed))
    return zero, experts_of(zero, count, seed % 1009)


def multitask(zero, experts, base):
    if base == "ta":
        return merge("task_arithmetic", zero, experts, scaling=1.0)
    return merge("ties_merging", zero, experts, keep=0.2, reduce="sum", scaling=1.0)


# ---------------------------------------------------------------- TALL-masks


@given(seed=SEED, count=COUNT, base=BASE, low=LIMIT, step=LIMIT)
def test_tall_masks_select_from_one_vector_and_shrink(seed, count, base, low, step):
    zero, experts = around_zero(seed, count)
    whole = multitask(zero, experts, base)
    wide = models("tall_masks", zero, experts, base=base, threshold=low)
    narrow = models("tall_masks", zero, experts, base=base, threshold=low + step)
    for task in experts:
        for name in zero:
            for state in (wide[task], narrow[task]):
                assert bool(((state[name] == 0) | ((state[name] - whole[name]).abs() <= 1e-12)).all())
            assert not bool(((narrow[task][name] != 0) & (wide[task][name] == 0)).any())


@given(seed=SEED, count=COUNT, dtype=st.sampled_from([torch.float32, torch.float64]))
def test_tall_threshold_zero_masks_what_did_not_move(seed, count, dtype):
    base = grid_state(seed, GRID, dtype)
    experts = {f"t{i}": grid_state(seed + 1 + i, GRID, dtype) for i in range(count)}
    whole = merge("task_arithmetic", base, experts, scaling=1.0)
    for task, state in models("tall_masks", base, experts, threshold=0).items():
        want = {n: torch.where(experts[task][n] != base[n], whole[n], base[n]) for n in base}
        assert all(torch.equal(state[n], want[n]) for n in base)


@given(seed=SEED, count=st.integers(2, 4), limit=LIMIT)
def test_tall_masks_depend_on_ratios_only(seed, count, limit):
    """Powers of two, another for each coordinate, change no comparison."""
    zero, experts = around_zero(seed, count)
    exponents = grid_state(seed + 5, {n: tuple(v.shape) for n, v in zero.items()}, torch.float64)
    factor = {n: torch.exp2(8 * v) for n, v in exponents.items()}
    scaled = {t: {n: factor[n] * v for n, v in e.items()} for t, e in experts.items()}
    one, many = (models("tall_masks", zero, e, threshold=limit) for e in (experts, scaled))
    for task in experts:
        assert all(torch.equal(many[task][n], factor[n] * one[task][n]) for n in zero)


@given(seed=SEED, count=st.integers(1, 2), base=BASE, data=st.data())
def test_thresholds_of_the_other_tasks_do_not_matter(seed, count, base, data):
    zero, experts = around_zero(seed, count)
    limits = {t: data.draw(LIMIT) for t in reversed(experts)}
    together = models("tall_masks", zero, experts, base=base, threshold=limits)
    for task in experts:
        alone = models("tall_masks", zero, experts, base=base, threshold=limits[task])[task]
        assert all(torch.equal(together[task][n], alone[n]) for n in zero)


# ---------------------------------------------------------------- Consensus


@given(seed=SEED, count=COUNT, method=CONSENSUS, limit=LIMIT, scaling=st.floats(-2, 2))
def test_consensus_between_everything_and_nothing(seed, count, method, limit, scaling):
    base = draw(seed)
    experts = experts_of(base, count, seed % 1009)
    options = {"threshold": limit, "scaling": scaling}
    whole = update(multitask(base, experts, method.split("_")[1]), base)
    close(merge(method, base, experts, min_tasks=0, **options), {n: base[n] + scaling * whole[n] for n in base}, 1e-12)
    state = merge(method, base, experts, min_tasks=count + 1, **options)
    assert all(torch.equal(state[n], base[n]) for n in base)


@given(seed=SEED, count=COUNT, method=CONSENSUS, data=st.data())
def test_consensus_support_shrinks_and_values_stay(seed, count, method, data):
    zero, experts = around_zero(seed, count)
    whole = multitask(zero, experts, method.split("_")[1])
    low, fewer = data.draw(LIMIT), data.draw(st.integers(0, count))
    high, more = low + data.draw(LIMIT), fewer + data.draw(st.integers(0, 2))
    wide = merge(method, zero, experts, threshold=low, min_tasks=fewer, scaling=1.0)
    narrow = merge(method, zero, experts, threshold=high, min_tasks=more, scaling=1.0)
    for name in zero:
        for state in (wide, narrow):
            assert bool(((state[name] == 0) | ((state[name] - whole[name]).abs() <= 1e-12)).all())
        assert not bool(((narrow[name] != 0) & (wide[name] == 0)).any())


@given(seed=SEED, count=COUNT, method=CONSENSUS, limit=LIMIT, least=st.integers(0, 5))
def test_consensus_counts_the_tall_masks(seed, count, method, limit, least):
    zero, experts = around_zero(seed, count)
    base = method.split("_")[1]
    whole = multitask(zero, experts, base)
    masked = models("tall_masks", zero, experts, base=base, threshold=limit)
    state = merge(method, zero, experts, threshold=limit, min_tasks=least, scaling=1.0)
    for name in zero:
        votes = sum((masked[t][name] != 0).int() for t in experts)
        assert torch.equal(state[name] != 0, (votes >= least) & (whole[name] != 0))


# ---------------------------------------------------------------- EMR


@given(seed=SEED, count=COUNT, rescale=st.sampled_from(["tensor_mean", "global"]))
def test_emr_keeps_the_size_of_every_task_vector(seed, count, rescale):
    zero, experts = around_zero(seed, count)
    measure = torch.mean if rescale == "tensor_mean" else torch.sum
    for task, state in models("emr_merging", zero, experts, rescale=rescale).items():
        if not any(bool(v.any()) for v in state.values()):
            continue  # nothing agrees with the elected signs, so there is nothing to rescale
        sizes = [sum(float(measure(v.abs())) for v in s.values()) for s in (state, experts[task])]
        assert math.isclose(*sizes, rel_tol=1e-9)


@given(seed=SEED, count=COUNT)
def test_emr_signs_and_magnitudes(seed, count):
    """The entries of a task are 0 or, up to its one rescaler, the unified vector, which dominates every agreeing entry."""
    zero, experts = around_zero(seed, count)
    merged = models("emr_merging", zero, experts)
    signs = {n: torch.where(sum(e[n] for e in experts.values()) > 0, 1.0, -1.0) for n in zero}
    for task, state in merged.items():
        ratios = []
        for name in zero:
            tau, value = experts[task][name], state[name]
            agrees = tau * signs[name] > 0
            assert torch.equal(value != 0, agrees)
            assert bool((value[agrees].sign() == tau[agrees].sign()).all())
            unified = torch.stack([torch.where(e[name] * signs[name] > 0, e[name].abs(), 0) for e in experts.values()]).amax(0)
            assert bool((unified >= tau.abs())[agrees].all())
            ratios.append((value.abs() / unified)[agrees])
        ratio = torch.cat(ratios)
        assert ratio.numel() == 0 or float(ratio.max() - ratio.min()) <= 1e-9 * float(ratio.max())


# ---------------------------------------------------------------- PCB

PCB = {"variant": st.sampled_from("ABC"), "ratio": st.floats(0.01, 1), "virtual_zeros": st.sampled_from([0, 7, 100])}


@given(seed=SEED, count=st.integers(1, 2), scaling=st.floats(-2, 2), **PCB)
def test_pcb_is_a_convex_combination_of_the_clipped_vectors(seed, count, scaling, variant, ratio, virtual_zeros):
    zero, experts = around_zero(seed, count)
    state = merge("pcb_merging", zero, experts, scaling=scaling, variant=variant, ratio=ratio, virtual_zeros=virtual_zeros)
    edge = 1e-4 if variant == "A" else 0.01
    vectors = []
    for tau in seen_task_vectors(zero, experts).values():
        whole = torch.cat([torch.from_numpy(flat(tau)), torch.zeros(virtual_zeros)])
        vectors.append(torch.from_numpy(clipped(whole.abs().numpy(), edge, edge)) * whole.sign() * scaling)
    size = len(whole) - virtual_zeros
    options = torch.stack([*vectors, torch.zeros_like(whole)])[:, :size]
    merged = torch.cat([state[n].flatten() for n in sorted(state)])
    assert bool((merged >= options.amin(0) - 1e-9).all())
    assert bool((merged <= options.amax(0) + 1e-9).all())
    assert int(merged.count_nonzero()) <= count * math.ceil(ratio * len(whole))


@given(seed=SEED, scaling=st.floats(0.1, 2), **PCB)
def test_pcb_of_one_task_is_its_clipped_vector_where_it_survives(seed, scaling, variant, ratio, virtual_zeros):
    zero, experts = around_zero(seed, 1)
    state = merge("pcb_merging", zero, experts, scaling=scaling, variant=variant, ratio=ratio, virtual_zeros=virtual_zeros)
    edge = 1e-4 if variant == "A" else 0.01
    tau = torch.from_numpy(flat(seen_task_vectors(zero, experts)["task0"]))
    heights = torch.from_numpy(clipped(torch.cat([tau.abs(), torch.zeros(virtual_zeros)]).numpy(), edge, edge))[: len(tau)]
    merged = torch.cat([state[n].flatten() for n in sorted(state)])
    _, (weights,) = pcb_parts([tau.numpy()], ratio, variant, virtual_zeros)
    # The weights are divided by their sum, but by no less than 1e-12: an entry of smaller weight shrinks.
    tiny = torch.from_numpy(weights)[: len(tau)] < 1e-11
    survives = (merged != 0) & ~tiny
    assert bool(((merged - scaling * tau.sign() * heights)[survives].abs() <= 1e-9).all())
    assert bool((merged.abs() <= scaling * heights + 1e-9)[tiny].all())


def test_pcb_shrinks_entries_whose_weight_is_next_to_nothing():
    """As its code does: the weight of 1e-7 beside 1 is some 1e-14, which is divided by 1e-12."""
    zero = {"weight": torch.zeros(3, 4, dtype=torch.float64)}
    expert = {"weight": torch.linspace(0, 1, 12, dtype=torch.float64).reshape(3, 4)}
    expert["weight"][0, 1] = 1e-7
    kept = merge("pcb_merging", zero, {"task0": expert}, scaling=1.0, variant="A", ratio=1.0)["weight"]
    assert 0 < kept[0, 1] < 1e-8
    assert torch.allclose(kept[1], expert["weight"][1], rtol=0, atol=1e-12)


# ---------------------------------------------------------------- Breadcrumbs, MagMax


@given(seed=SEED, count=COUNT, granularity=st.sampled_from(["row", "tensor"]), scaling=st.floats(-2, 2))
def test_breadcrumbs_without_trimming_is_task_arithmetic(seed, count, granularity, scaling):
    base = draw(seed)
    experts = experts_of(base, count, seed % 1009)
    state = merge("breadcrumbs", base, experts, keep=1, outliers=0, granularity=granularity, scaling=scaling)
    close(state, merge("task_arithmetic", base, experts, scaling=scaling), 1e-12)


@given(seed=SEED, keep=st.floats(0.01, 1), outliers=st.floats(0, 0.99), granularity=st.sampled_from(["row", "tensor"]))
def test_breadcrumbs_counts_and_ranks(seed, keep, outliers, granularity):
    zero, experts = around_zero(seed, 1)
    state = merge("breadcrumbs", zero, experts, keep=keep, outliers=outliers, scaling=1.0, granularity=granularity)
    for name, value in state.items():
        size = value.shape[-1] if granularity == "row" else value.numel()
        for row, tau in zip(value.reshape(-1, size), experts["task0"][name].reshape(-1, size), strict=True):
            top, kept = int(outliers * size), int(keep * size)
            assert int(row.count_nonzero()) == min(kept, size - top)
            assert torch.equal(row[row != 0], tau[row != 0])
            ranked = tau.abs().sort(descending=True).values
            assert torch.equal(row.abs().sort(descending=True).values[:kept][: size - top], ranked[top : top + kept])


@given(seed=SEED, count=COUNT, data=st.data())
def test_magmax_takes_the_largest_entry(seed, count, data):
    zero, experts = around_zero(seed, count)
    state = merge("magmax", zero, experts, scaling=1.0)
    stacks = {n: torch.stack([e[n] for e in experts.values()]) for n in zero}
    for name, stack in stacks.items():
        assert torch.equal(state[name].abs(), stack.abs().amax(0))
        assert bool((stack == state[name]).any(0).all())
    again = data.draw(st.sampled_from(list(experts)))
    twice = merge("magmax", zero, {**experts, "again": experts[again]}, scaling=1.0)
    assert all(torch.equal(twice[n], state[n]) for n in zero)


@given(seed=SEED, scaling=st.floats(-2, 2))
def test_magmax_ties_go_to_the_later_task(seed, scaling):
    zero, experts = around_zero(seed, 1)
    tau = experts["task0"]
    opposite = {n: -v for n, v in tau.items()}
    for first, last in ((tau, opposite), (opposite, tau)):
        close(merge("magmax", zero, {"a": first, "b": last}, scaling=scaling), {n: scaling * v for n, v in last.items()}, 1e-12)


# ---------------------------------------------------------------- TATR

TATR = st.sampled_from(["tatr", "tatr_zero_shot"])
LEFT_OUT = st.floats(0, 1)


def kept_by(method, zero, experts, left_out, **given):
    """Where the merged model moves, flattened."""
    state = merge(method, zero, experts, left_out=left_out, scaling=1.0, **given)
    return torch.cat([state[name].reshape(-1) != 0 for name in zero])


@given(seed=SEED, count=st.integers(2, 4), method=TATR, left_out=LEFT_OUT)
def test_tatr_leaves_out_exactly_its_share(seed, count, method, left_out):
    zero, experts = around_zero(seed, count)
    kept = kept_by(method, zero, experts, left_out)
    assert int((~kept).sum()) == int(left_out * kept.numel())


@given(seed=SEED, count=st.integers(2, 4), method=TATR, first=LEFT_OUT, second=LEFT_OUT)
def test_tatr_shrinks_as_more_is_left_out_and_keeps_sums_of_task_vectors(seed, count, method, first, second):
    zero, experts = around_zero(seed, count)
    wide, narrow = (kept_by(method, zero, experts, share) for share in sorted((first, second)))
    assert not bool((narrow & ~wide).any())
    whole = merge("task_arithmetic", zero, experts, scaling=0.7)
    state = merge(method, zero, experts, left_out=first, scaling=0.7)
    for name in zero:
        inside = state[name] != 0
        close({name: state[name]}, {name: whole[name] * inside}, 1e-12, [name])


@given(seed=SEED, count=st.integers(2, 4), factor=st.sampled_from([1e-12, 0.3, 1e6]), left_out=LEFT_OUT)
def test_tatr_ignores_the_scale_of_all_losses_and_the_sign_of_gradients(seed, count, factor, left_out):
    zero, experts = around_zero(seed, count)
    slopes = fisher_of(zero, list(experts), seed % 1009)
    other = {task: {name: -factor * value for name, value in values.items()} for task, values in slopes.items()}
    one, many = (kept_by("tatr", zero, experts, left_out, gradients=given) for given in (slopes, other))
    # The last of those left out may have a neighbour as large up to rounding.
    assert int((one != many).sum()) <= 2


@given(seed=SEED, count=COUNT, method=TATR)
def test_tatr_that_leaves_out_nothing_is_task_arithmetic(seed, count, method):
    base = draw(seed)
    experts = experts_of(base, count, seed % 1009)
    close(merge(method, base, experts, left_out=0.0, scaling=0.4), merge("task_arithmetic", base, experts, scaling=0.4), 1e-12)

"""Hand-computed cases of the elementwise and weighted oracles (no package code involved)."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from tests.oracles import elementwise as oracle
from tests.oracles import weighted

ZERO = {"w": torch.zeros(4, dtype=torch.float64)}


def tensors(**rows: list) -> dict[str, dict[str, torch.Tensor]]:
    return {task: {"w": torch.tensor(row, dtype=torch.float64)} for task, row in rows.items()}


def zero_like(experts) -> dict[str, torch.Tensor]:
    return {n: torch.zeros_like(v) for n, v in next(iter(experts.values())).items()}


def test_dare_from_a_mask():
    experts = tensors(a=[1, 2, 3, 4], b=[-4, 4, 4, 0])
    masks = {"a": {"w": np.array([1, 0, 1, 0])}, "b": {"w": np.array([0, 1, 1, 1])}}
    assert oracle.ta_dare(ZERO, experts, masks, 0.75, scaling=0.5)["w"].tolist() == [2, 8, 14, 0]
    assert oracle.ties_dare(ZERO, experts, masks, 0.5, keep=0.25, scaling=1.0)["w"].tolist() == [2, 8, 14, 0]


def test_survivors_are_checked():
    tau = {"w": torch.tensor([1.0, 2.0, 0.0])}
    masks = oracle.survivors({"w": torch.tensor([2.0, 0.0, 0.0])}, tau, 0.5)
    assert masks["w"].tolist() == [True, False, False]
    with pytest.raises(AssertionError):
        oracle.survivors({"w": torch.tensor([1.0, 0.0, 0.0])}, tau, 0.5)


def test_tall_masks_and_consensus_by_hand():
    experts = tensors(a=[1, 3, 0, 2], b=[1, -1, 5, -2])  # sum [2, 2, 5, 0]
    # |τ| against |sum - τ|: a has 1/1, 3/1, 0/5, 2/2 and b the reverse; equality does not pass.
    per_task = oracle.tall_masks(ZERO, experts, threshold=1.0)
    assert per_task["a"]["w"].tolist() == [0, 2, 0, 0]
    assert per_task["b"]["w"].tolist() == [0, 0, 5, 0]
    per_task = oracle.tall_masks(ZERO, experts, threshold={"a": 0.5, "b": 4})
    assert per_task["a"]["w"].tolist() == [2, 2, 0, 0]
    assert per_task["b"]["w"].tolist() == [0, 0, 5, 0]
    assert oracle.consensus_ta(ZERO, experts, threshold=0.5, scaling=1.0)["w"].tolist() == [2, 0, 0, 0]
    assert oracle.consensus_ta(ZERO, experts, threshold=0.5, min_tasks=1, scaling=2.0)["w"].tolist() == [4, 4, 10, 0]
    # TIES keeps one entry and its ties: a keeps 3; b keeps 5.
    assert oracle.consensus_ties(ZERO, experts, min_tasks=0, scaling=1.0)["w"].tolist() == [0, 3, 5, 0]


def test_emr_by_hand():
    experts = tensors(a=[1, 3, 0, 2], b=[1, -1, -4, -2])  # signs + + - -
    unified, masks, factors = oracle.emr_parts(oracle.seen_task_vectors(ZERO, experts))
    assert unified["w"].tolist() == [1, 3, -4, -2]
    assert masks["a"]["w"].tolist() == [1, 1, 0, 0]
    assert masks["b"]["w"].tolist() == [1, 0, 1, 1]
    assert factors == {"a": 6 / 4, "b": 8 / 7}
    merged = oracle.emr_merging(ZERO, experts)
    assert merged["a"]["w"].tolist() == [1.5, 4.5, 0, 0]


def test_emr_weighs_tensors_or_entries():
    base = {"m": torch.zeros(4, dtype=torch.float64), "v": torch.zeros(1, dtype=torch.float64)}
    a = {"m": torch.tensor([1.0, 1, 1, 1]).double(), "v": torch.tensor([2.0]).double()}
    b = {"m": torch.tensor([3.0, 3, 3, 3]).double(), "v": torch.tensor([-1.0]).double()}
    taus = oracle.seen_task_vectors(base, {"a": a, "b": b})
    assert oracle.emr_parts(taus, "tensor_mean")[2] == {"a": 3 / 5, "b": 4 / 3}
    assert oracle.emr_parts(taus, "global")[2] == {"a": 6 / 14, "b": 13 / 12}


def test_clipping_and_normalising():
    x = np.arange(200.0)
    assert oracle.clipped(x, 0.01, 0.01).min() == 2
    assert oracle.clipped(x, 0.01, 0.01).max() == 197
    assert oracle.clipped(x, 1e-4, 1e-4).max() == 198  # ⌊200 · 0.9999 - 1⌋
    assert oracle.clipped(x, 0.95, 0).min() == 190
    assert oracle.clipped(x, 0.95, 0).max() == 199
    assert oracle.norm01(np.array([3.0, 3.0])).tolist() == [0, 0]
    assert oracle.norm01(np.array([1.0, 2.0, 5.0])).tolist() == [0, 0.25, 1]


def test_pcb_of_one_task_keeps_its_top_entries():
    tau = np.concatenate([[0.0], np.linspace(0.01, 1, 99)]) * np.where(np.arange(100) % 2, 1, -1)
    values, weights = oracle.pcb_parts([tau], 0.05, "B")
    assert np.flatnonzero(weights[0]).tolist() == [96, 97, 98, 99]  # the entry at the threshold has weight 0
    assert values[0][99] == -values[0][98] == -tau[98]  # clipped at the 99 % quantile, sorted index 98
    assert values[0][0] == 0


def test_pcb_variants_differ_in_the_balance_between_tasks():
    """One coordinate large in both tasks with opposite signs: only products of raw values see the difference in size."""
    small = np.linspace(0.001, 0.01, 9)
    a, b = np.append(small, 1.0), np.append(small, -0.5)
    for variant, want in (("A", 1.0), ("B", 0.0), ("C", 0.0)):
        _, weights = oracle.pcb_parts([a, b], 0.2, variant)
        assert (weights[0][-1] > 0) == bool(want), variant


def test_pcb_counts_virtual_zeros():
    tau = np.linspace(0.5, 1, 10)
    assert oracle.pcb_parts([tau], 0.5, "B", 10)[0][0][-10:].tolist() == [0] * 10
    assert np.count_nonzero(oracle.pcb_parts([tau], 0.5, "B", 10)[1][0]) == 9
    assert np.count_nonzero(oracle.pcb_parts([tau], 0.5, "B", 0)[1][0]) == 4


def test_breadcrumbs_and_magmax_by_hand():
    row = np.array([5.0, -1, 4, 3, -3, 2, 0, 9, -8, 7])
    assert oracle.middle_of(row, 0.3, 0.1).tolist() == [5, 0, 0, 0, 0, 0, 0, 0, -8, 7]
    assert oracle.middle_of(row, 0.3, 0.4).tolist() == [0, 0, 4, 3, -3, 0, 0, 0, 0, 0]
    assert oracle.middle_of(row, 0.2, 0.5).tolist() == [0, 0, 0, 3, -3, 0, 0, 0, 0, 0]
    assert oracle.middle_of(row, 0.1, 0.5).tolist() == [0, 0, 0, 3, 0, 0, 0, 0, 0, 0]  # equal magnitudes: lowest index
    assert oracle.middle_of(row, 0.1, 0.6).tolist() == [0, 0, 0, 0, -3, 0, 0, 0, 0, 0]
    assert not oracle.middle_of(row[:4], 0.2, 0.0).any()
    experts = tensors(a=[1, -3, 2, 0], b=[-1, 2, -2, 0], c=[0.5, 3, 1, 0])
    assert oracle.magmax(ZERO, experts, scaling=1.0)["w"].tolist() == [-1, 3, -2, 0]


def test_fisher_by_hand():
    experts = tensors(a=[1, 1, 1, 5], b=[3, 3, 3, 7])
    fisher = tensors(a=[3, 0, 4, 0], b=[0, 4, 3, 0])  # both norms are 5
    merged = weighted.fisher_merging(ZERO, experts, fisher, epsilon=0.0)["w"]
    assert merged == pytest.approx([1, 3, (4 + 9) / 7, 6])
    fisher["b"]["w"] *= 10
    merged = weighted.fisher_merging(ZERO, experts, fisher, epsilon=0.0)["w"]
    assert merged == pytest.approx([1, 3, (4 + 9) / 7, 6])
    merged = weighted.fisher_merging(ZERO, experts, fisher, epsilon=0.0, normalize=False)["w"]
    assert merged == pytest.approx([1, 3, (4 + 90) / 34, 6])
    idle = weighted.fisher_merging(ZERO, experts, {**fisher, "a": zero_like(experts)}, epsilon=0.0)["w"]
    assert idle == pytest.approx([2, 3, 3, 6])


def test_tatr_by_hand():
    experts = tensors(a=[1, -2, 0, 4], b=[3, 1, 2, 0])
    slopes = tensors(a=[1, 0, 5, 1], b=[2, 1, 0, 7])
    # |g_a||τ_b| + |g_b||τ_a|: 3 + 2, 0 + 2, 10 + 0, 0 + 28
    assert (2 * oracle.conflicts(*({t: {"w": v["w"].numpy()} for t, v in d.items()} for d in (experts, slopes)), "w")).tolist() == [
        5, 2, 10, 28,
    ]
    assert oracle.tatr(ZERO, experts, slopes, left_out=0.5, scaling=1.0)["w"].tolist() == [4, -1, 0, 0]
    assert oracle.tatr(ZERO, experts, slopes, left_out=0.24, scaling=1.0)["w"].tolist() == [4, -1, 2, 4]
    # Without data Ω is 6, 4, 0, 0: what no two tasks move stays.
    assert oracle.tatr(ZERO, experts, left_out=1.0, scaling=1.0)["w"].tolist() == [0, 0, 2, 4]


def test_regmean_satisfies_the_normal_equations():
    generator = np.random.default_rng(0)
    shapes = {"linear": (5, 3), "conv1d": (3, 5), "square": (3, 3)}
    base = {n: torch.zeros(s, dtype=torch.float64) for n, s in shapes.items()}
    experts = {t: {n: torch.from_numpy(generator.normal(size=s)) for n, s in shapes.items()} for t in "ab"}
    grams = {}
    for task in "ab":
        x = generator.normal(size=(20, 3))
        grams[task] = dict.fromkeys(shapes, torch.from_numpy(x.T @ x / 20))
    merged = weighted.regmean(base, experts, grams, off_diagonal=1.0)
    for name, w in merged.items():
        total = np.zeros_like(w)
        for task in "ab":
            g, difference = grams[task][name].numpy(), w - experts[task][name].numpy()
            total += g @ difference if name == "conv1d" else difference @ g
        assert np.abs(total).max() < 1e-12
    diagonal = weighted.regmean(base, experts, grams, off_diagonal=0.0)["linear"]
    shares = np.stack([grams[t]["linear"].numpy().diagonal() for t in "ab"])
    values = np.stack([experts[t]["linear"].numpy() for t in "ab"])
    assert np.allclose(diagonal, (shares[:, None] * values).sum(0) / shares.sum(0))


def test_metagpt_by_hand():
    experts = tensors(a=[1, 0, 0, 0], b=[0, 2, 2, 1])
    assert weighted.metagpt_coefficients(ZERO, experts) == {"a": 0.1, "b": 0.9}
    assert weighted.metagpt(ZERO, experts)["w"].tolist() == [0.1, 1.8, 1.8, 0.9]
    assert not weighted.metagpt(ZERO, {"a": ZERO})["w"].any()


def test_spherical_interpolation_by_hand():
    experts = tensors(a=[2, 0, 0, 0], b=[0, 2, 0, 0])
    root = math.sqrt(2)
    assert weighted.slerp(ZERO, experts)["w"] == pytest.approx([root, root, 0, 0])
    assert weighted.slerp(ZERO, experts, t=1 / 3)["w"] == pytest.approx([math.sqrt(3), 1, 0, 0])
    near = tensors(a=[1, 0, 0, 0], b=[1, 0.01, 0, 0])
    assert weighted.slerp(ZERO, near, t=0.25)["w"] == pytest.approx([1, 0.0025, 0, 0])
    shifted = {"w": torch.tensor([1.0, 1, 0, 0], dtype=torch.float64)}
    assert weighted.nuslerp(shifted, tensors(a=[3, 1, 0, 0], b=[1, 3, 0, 0]))["w"] == pytest.approx([1 + root, 1 + root, 0, 0])
    same = tensors(a=[3, 1, 0, 0], b=[3, 1, 0, 0])
    assert weighted.nuslerp(shifted, same, t=0.3)["w"] == pytest.approx([3, 1, 0, 0])
    idle = tensors(a=[0, 0, 0, 0], b=[4, 0, 0, 0])
    assert weighted.slerp(ZERO, idle)["w"] == pytest.approx([2 * root, 0, 0, 0])  # a zero vector is at a right angle


def test_nuslerp_along_a_dimension():
    a, b = [[1.0, 0], [0, 1]], [[0.0, 1], [0, 3]]
    experts = {"a": {"w": torch.tensor(a).double()}, "b": {"w": torch.tensor(b).double()}}
    zero = zero_like(experts)
    half = math.sqrt(0.5)
    rows = weighted.nuslerp(zero, experts, dimension="last")["w"]
    assert rows == pytest.approx(np.array([[half, half], [0, 2]]))
    columns = weighted.nuslerp(zero, experts, dimension="first")["w"]
    # Second column: (0, 1) against (1, 3).
    angle = math.acos(3 / math.sqrt(10))
    factor = math.sin(angle / 2) / math.sin(angle)
    assert columns == pytest.approx(np.array([[half, factor], [0, 4 * factor]]))


def test_model_stock_by_hand():
    assert weighted.stock_ratio([np.array([1.0, 0]), np.array([0, 5.0])], "angles") == pytest.approx(0, abs=1e-15)
    assert weighted.stock_ratio([np.array([1.0, 0]), np.array([3.0, 0])], "angles") == 1
    sixty = np.array([0.5, math.sqrt(0.75)])
    assert weighted.stock_ratio([np.array([1.0, 0]), sixty], "angles") == pytest.approx(1 / 1.5)
    # Angles 0, 90 and 90 degrees: their mean is 60, the mean of the cosines a third.
    three = [np.array([1.0, 0]), np.array([2.0, 0]), np.array([0, 1.0])]
    assert weighted.stock_ratio(three, "angles") == pytest.approx(1.5 / 2)
    assert weighted.stock_ratio(three, "cosines") == pytest.approx(1 / (5 / 3))
    assert weighted.stock_ratio([np.array([1.0]), np.array([-1.0])], "angles") == 0
    rows = {
        "a": {"w": torch.tensor([[1.0, 0], [1, 0]]).double()},
        "b": {"w": torch.tensor([[3.0, 0], [0, 1]]).double()},
    }
    merged = weighted.model_stock(zero_like(rows), rows, granularity="row")["w"]
    assert merged == pytest.approx(np.array([[2.0, 0], [0, 0]]), abs=1e-15)

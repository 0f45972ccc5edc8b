"""The spectral and optimisation oracles themselves, on cases small enough for paper."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from tests.oracles import optimised, spectral

DOUBLE = torch.float64


def one(rows, name="w") -> dict[str, torch.Tensor]:
    return {name: torch.tensor(rows, dtype=DOUBLE)}


def zeros(*shape, name="w") -> dict[str, torch.Tensor]:
    return {name: torch.zeros(shape, dtype=DOUBLE)}


A = one([[3.0, 0.0, 0.0, 0.0], [0.0, 1.0, 0.0, 0.0], [0.0, 0.0, 0.0, 0.0], [0.0, 0.0, 0.0, 0.0]])
B = one([[0.0, 0.0, 0.0, 0.0], [0.0, 0.0, 0.0, 0.0], [0.0, 0.0, 5.0, 0.0], [0.0, 0.0, 0.0, 0.5]])
BASE = zeros(4, 4)


def test_tsv_c_truncates_to_a_share_of_the_rank():
    out = spectral.tsv_c(BASE, {"a": A, "b": B})
    assert np.allclose(out["a"]["w"], A["w"])
    assert np.allclose(out["b"]["w"], B["w"])
    out = spectral.tsv_c(BASE, {"a": A, "b": B}, rank_ratio=0.25)
    assert np.allclose(out["a"]["w"], np.diag([3.0, 0, 0, 0]))
    assert np.allclose(out["b"]["w"], np.diag([0, 0, 5.0, 0]))
    assert np.allclose(spectral.tsv_c(BASE, {"a": A}, rank_ratio=0.2)["a"]["w"], 0)


def test_tsv_m_with_the_numerical_rank():
    assert np.allclose(spectral.tsv_m_numerical(BASE, {"a": A, "b": B}, rank_ratio=1.0)["w"], A["w"] + B["w"])
    doubled = spectral.tsv_m_numerical(BASE, {"a": A, "b": A}, rank_ratio=1.0)["w"]
    # [I I] has the polar factor [I I] / sqrt 2 on both sides: halves of two equal terms.
    assert np.allclose(doubled, A["w"])


def test_iso_c_with_the_numerical_rank():
    assert np.allclose(spectral.iso_c_numerical(BASE, {"a": A})["w"], np.diag([2.0, 2.0, 0, 0]))
    assert np.allclose(spectral.iso_c_numerical(BASE, {"a": BASE})["w"], 0)


def test_iso_cts_split():
    assert spectral.cts_split(768, 8, 0.8) == (616, 19)
    assert spectral.cts_split(768, 14, 0.8) == (614, 11)
    assert spectral.cts_split(768, 20, 0.8) == (608, 8)
    assert spectral.cts_split(50, 20, 0.8) == (50, 0)
    assert spectral.cts_split(11, 3, 0.0) == (2, 3)
    assert spectral.cts_split(8, 3, 1.0) == (8, 0)


def test_iso_cts_gives_task_directions_a_place():
    a, b = one(np.diag([4.0, 0, 1.0, 0]).tolist()), one(np.diag([4.0, 3.0, 0, 0.5]).tolist())
    out = spectral.iso_cts(BASE, {"a": a, "b": b}, common_fraction=0.5)["w"]
    # Common: 8 and 3; a keeps direction 3 with 1, b direction 4 with 0.5: the mean is 12.5 / 4.
    assert np.allclose(out, 3.125 * np.eye(4))


def test_star_rescales_to_the_nuclear_norm():
    expert = one(np.diag([4.0, 3.0, 2.0, 1.0]).tolist())
    assert np.allclose(spectral.star(BASE, {"a": expert}, eta=40)["w"], np.diag([10.0, 0, 0, 0]))
    assert np.allclose(spectral.star(BASE, {"a": expert}, eta=41)["w"], np.diag([40 / 7, 30 / 7, 0, 0]))
    assert np.allclose(spectral.star(BASE, {"a": expert, "b": BASE}, eta=100)["w"], expert["w"] / 2)
    assert np.allclose(spectral.star(zeros(4), {"a": one([4.0, 0, 0, 0]), "b": zeros(4)}, eta=1)["w"], [2, 0, 0, 0])


def test_knots_sums_in_the_shared_basis():
    assert np.allclose(spectral.knots_ta(BASE, {"a": A, "b": B}, scaling=1.0)["w"], A["w"] + B["w"])
    assert np.allclose(spectral.knots_ta(BASE, {"a": A, "b": B}, scaling=1.0, cutoff=0.75)["w"][3, 3], 0)
    moved = {"w": A["w"], "b": torch.ones(3, dtype=DOUBLE)}
    assert np.allclose(spectral.knots_ta({**BASE, **zeros(3, name="b")}, {"a": moved})["b"], 0)


def test_knots_ties_elects_in_the_shared_basis():
    q = torch.linalg.qr(torch.randn(2, 2, generator=torch.Generator().manual_seed(0), dtype=DOUBLE))[0]
    # In the basis q the tasks are diag(4, 0) and diag(2, 1): the means are 3 and 1.
    a, b = ({"w": q @ torch.diag(torch.tensor(d, dtype=DOUBLE))} for d in ([4.0, 0.0], [2.0, 1.0]))
    out = spectral.knots_ties(zeros(2, 2), {"a": a, "b": b}, scaling=1.0, keep=1.0)["w"]
    assert np.allclose(out, (q @ torch.diag(torch.tensor([3.0, 1.0], dtype=DOUBLE))).numpy())


def test_doge_without_steps_is_layerwise_arithmetic():
    name = "encoder.weight"
    base, expert = zeros(2, 2, name=name), one([[3.0, 0.0], [0.0, 4.0]], name)
    assert np.allclose(optimised.doge_ta(base, {"a": expert}, steps=0, keep=1.0, eta=0.5)[name], [[0.3, 0], [0, 0.4]])
    # keep 0.3 of 4: k = 4 - 1 = 3, the third smallest is 3, two survive; keep 0.2: only the largest.
    assert np.allclose(optimised.doge_ta(base, {"a": expert}, steps=0, keep=0.2, eta=0.5)[name], [[0, 0], [0, 0.4]])
    both = optimised.doge_ta(base, {"a": expert, "b": base}, steps=0, keep=1.0, coefficients="uniform")[name]
    assert np.allclose(both, [[0.9, 0], [0, 1.2]])
    other = {name: expert[name], "encoder.b.weight": torch.full((1, 5), 1.0, dtype=DOUBLE)}
    origin = {**base, **zeros(1, 5, name="encoder.b.weight")}
    out = optimised.doge_ta(origin, {"a": other}, steps=0, keep=1.0, eta=0.5, coefficients="task")
    assert np.allclose(out["encoder.b.weight"], 0.5 / np.sqrt((25 + 5) / 2))


def test_doge_first_step_is_one_learning_rate_against_the_gradient():
    tau = np.array([[0.3, 0.4]])
    delta, losses = optimised.doge_delta([tau], [0.5], np.zeros((1, 1)), 1, 1e-3, "orthogonal", "row")
    # e = 0.25 - 0.125; G = -2 * 0.5 * e * tau: Adam's first step is lr in the direction of tau.
    assert np.allclose(delta, 1e-3)
    assert losses[0] == pytest.approx(0.125**2)
    onto, _ = optimised.doge_delta([tau], [0.5], np.eye(1), 1, 1e-3, "onto", "row")
    none, _ = optimised.doge_delta([tau], [0.5], np.eye(1), 1, 1e-3, "orthogonal", "row")
    assert np.allclose(onto, 1e-3)
    assert np.allclose(none, 0)


def test_doge_shared_projector_counts_votes():
    a = np.diag([5.0, 4.0, 1.0, 0.5])
    b = np.diag([1.0, 4.0, 5.0, 0.5])
    # Two directions each: {0, 1} and {2, 1}: direction 1 has two votes.
    assert np.allclose(optimised.shared_projector([a, b], "fixed", 4), np.diag([0, 1.0, 0, 0]))
    assert np.allclose(optimised.shared_projector([a, b], "fixed", 1), np.diag([1.0, 1.0, 1.0, 0]))
    c = np.diag([0, 0, 0, 7.0])
    assert np.allclose(optimised.shared_projector([c, c], "numerical", 1), np.diag([0, 0, 0, 1.0]))


def test_awd_leaves_orthogonal_tasks_alone_and_steps_down_otherwise():
    a, b = np.array([1.0, 0.0]), np.array([0.0, 1.0])
    delta, losses = optimised.awd_delta([a, b], 0.1, 0.01, 5, "gd")
    assert np.allclose(delta, 0)
    assert np.allclose(losses, 0)
    delta, losses = optimised.awd_delta([a, np.array([1.0, 1.0])], 0.0, 0.01, 20, "gd")
    assert losses[-1] < losses[0]
    # d cos / d delta at 0 of (a - d, c - d) = -(a^ _|_ part of c^ / |a| + the other way round)
    delta, _ = optimised.awd_delta([a, np.array([1.0, 1.0])], 0.3, 0.01, 1, "gd")
    root = np.sqrt(0.5)
    gradient = -(np.array([0, root]) + (a - root * np.array([root, root])) / np.sqrt(2))
    assert np.allclose(delta, -0.01 * gradient)


def test_wudi_is_stationary_for_one_task_and_for_orthogonal_rows():
    taus = [np.diag([1.0, 0.0]), np.diag([0.0, 2.0])]
    merged, losses = optimised.wudi_matrix(taus, 5, 1e-3)
    assert np.allclose(merged, np.diag([1.0, 2.0]))
    assert np.allclose(losses, 0)
    merged, losses = optimised.wudi_matrix([np.ones((1, 1)), np.ones((1, 1)), np.zeros((1, 1))], 1, 1e-3)
    assert np.allclose(merged, 2 - 1e-3)
    assert losses[0] == pytest.approx(2.0)

"""Hand-computed cases of the data-free oracles (no package code involved)."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from tests.oracles import data_free as oracle
from tests.support.helpers import clip_state, experts_of


def one(values: list[float], name: str = "w") -> dict[str, torch.Tensor]:
    return {name: torch.tensor(values, dtype=torch.float64)}


@pytest.mark.parametrize(
    ("keep", "zeros", "kept"),
    [
        (0.2, 0, [5, 4]),  # k = 5 - 1 = 4: the fourth smallest magnitude and everything above, i.e. one more than 20 %
        (0.4, 0, [5, 4, 3]),
        (1.0, 0, [5, 4, 3, 2, 1]),
        (0.1, 0, [5]),
        (0.2, 5, [5, 4, 3]),  # d = 10, k = 8: the eighth smallest of (0,0,0,0,0,1,2,3,4,5)
        (0.5, 5, [5, 4, 3, 2, 1]),  # the threshold is 0: nothing is trimmed
    ],
)
def test_trim_counts_as_the_reference_does(keep, zeros, kept):
    flat = np.array([-1.0, 2.0, -3.0, 4.0, -5.0])
    out = oracle.trim(flat, keep, zeros)
    assert sorted(abs(out[out != 0]), reverse=True) == kept


def test_trim_keeps_every_tie():
    assert np.count_nonzero(oracle.trim(np.array([1.0, 1.0, -1.0, 0.5]), 0.25, 0)) == 3


@pytest.mark.parametrize(
    ("reduce", "want"),
    [("sum", [5.0, -3.0, 1.0, 0.0]), ("mean", [2.5, -3.0, 1.0, 0.0]), ("max", [3.0, -3.0, 1.0, 0.0])],
)
def test_disjoint_merge_by_hand(reduce, want):
    taus = [np.array([2.0, -3.0, 1.0, 0.0]), np.array([3.0, 1.0, -0.5, 0.0]), np.array([-1.0, 0.0, 0.0, 0.0])]
    assert oracle.ties_vector(taus, 1.0, reduce).tolist() == want


def test_cancelled_votes_take_the_majority_sign():
    positive = [np.array([1.0, 5.0, 2.0]), np.array([-1.0, 1.0, 2.0])]
    assert oracle.ties_vector(positive, 1.0, "sum").tolist() == [1.0, 6.0, 4.0]
    negative = [-v for v in positive]
    assert oracle.ties_vector(negative, 1.0, "sum").tolist() == [-1.0, -6.0, -4.0]
    # No majority either: the coordinate behaves like a negative one, and "max" multiplies by the sign 0.
    neither = [np.array([1.0, 5.0, -2.0]), np.array([-1.0, 1.0, -2.0])]
    assert oracle.ties_vector(neither, 1.0, "sum").tolist() == [-1.0, 6.0, -4.0]
    assert oracle.ties_vector(neither, 1.0, "max").tolist() == [0.0, 5.0, -2.0]


def test_tsv_of_orthogonal_tasks_is_their_sum():
    a, b = np.zeros((4, 4)), np.zeros((4, 4))
    a[0, 1], a[1, 0], b[2, 3], b[3, 2] = 3.0, 2.0, 4.0, 3.0
    assert np.allclose(oracle.tsv_matrix([a, b], 2), a + b)


def test_iso_of_a_diagonal():
    assert np.allclose(oracle.iso_matrix(np.diag([3.0, -1.0, 2.0])), np.diag([2.0, -2.0, 2.0]))


def test_cart_of_two_experts_is_their_mean():
    base = clip_state(1, torch.float64)
    experts = experts_of(base, 2)
    mean = oracle.weight_averaging(base, experts)
    for name, value in oracle.cart(base, experts).items():
        assert np.allclose(value, mean[name])


def test_averaging_and_arithmetic_by_hand():
    base = one([1.0, 2.0])
    experts = {"a": one([2.0, 2.0]), "b": one([3.0, 0.0])}
    assert oracle.weight_averaging(base, experts)["w"].tolist() == [2.5, 1.0]
    assert oracle.task_arithmetic(base, experts, 0.5)["w"].tolist() == [2.5, 1.0]


def test_policies():
    names = {n: tuple(v.shape) for n, v in clip_state().items()}
    chosen = {p: {n for n, s in names.items() if oracle.is_factorised(n, s, p)} for p in ("attn_mlp", "all_2d")}
    assert {n.split("0.")[-1] for n in chosen["attn_mlp"]} == {
        "attn.in_proj_weight",
        "attn.out_proj.weight",
        "mlp.c_fc.weight",
        "mlp.c_proj.weight",
    }
    assert chosen["all_2d"] - chosen["attn_mlp"] == {
        "positional_embedding",
        "visual.positional_embedding",
        "visual.proj",
        "visual.empty",
    }

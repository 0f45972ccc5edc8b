"""MAP against its oracle, its surrogates by hand, and the laws of what it picks."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import fusionbench_lite as fbl
from fusionbench_lite.adaptation.draws import uniform
from fusionbench_lite.adaptation.learners.surrogate import lowest, quadratic
from fusionbench_lite.errors import MergeError
from tests.oracles import surrogate as oracle
from tests.support.helpers import Setting, distance, touched
from tests.support.small_models import small_setting


def labelled(steps: int, *, same: bool = True) -> Setting:
    """A small setting whose batches have labels; the same batch in every step, as a run has it."""
    s = small_setting(steps=steps)
    for number, (task, batches) in enumerate(s.batches.items()):
        rows = torch.Generator().manual_seed(number)
        pairs = [(x, torch.randint(0, 3, (len(x),), generator=rows)) for x in batches]
        s.batches[task] = [pairs[0]] * steps if same else pairs
    return s


def draws(steps: int, tasks: int, high: float, seed: int) -> np.ndarray:
    return np.stack([high * uniform((tasks,), seed, "map", step).double().numpy() for step in range(steps)])


@pytest.mark.parametrize(("steps", "given"), [
    (16, {"metric": "loss"}), (16, {}), (24, {"metric": "loss", "high": 0.5, "seed": 3}), (4, {"metric": "loss"}),
    (1, {}),
])  # fmt: skip
def test_map_equals_its_oracle(steps, given):
    s = labelled(steps)
    got = fbl.adapt("map", *s.arguments(), steps, **given)
    high, metric = given.get("high", 1.0), given.get("metric", "error")
    points = draws(steps, len(s.experts), high, given.get("seed", 0))
    batches = {task: pairs[0] for task, pairs in s.batches.items()}
    values = np.array([
        oracle.metrics(s.model, s.heads, oracle.merged_at(s.pretrained, s.experts, c), batches, metric) for c in points
    ])
    np.testing.assert_allclose(got.losses.numpy(), values.sum(1), atol=1e-9)
    expected = oracle.search(points, values, high)
    for coefficients in got.coefficients.values():
        np.testing.assert_allclose(coefficients.numpy(), expected, atol=1e-5)
    want = oracle.merged_at(s.pretrained, s.experts, expected)
    assert all(distance(got.state_dict()[name], want[name]) < 1e-4 for name in touched(s.pretrained))


def test_no_draw_is_task_arithmetic():
    s = labelled(1)
    state = fbl.adapt("map", *s.arguments(), 0, scaling=0.2).state_dict()
    want = fbl.merge("task_arithmetic", s.pretrained, s.experts, scaling=0.2).state_dict()
    assert all(distance(state[name], want[name]) < 1e-12 for name in touched(s.pretrained))


@given(seed=st.integers(0, 2**31), tasks=st.integers(1, 4))
def test_a_quadratic_is_found_again(seed, tasks):
    g = torch.Generator().manual_seed(seed)
    bend = torch.randn(tasks, tasks, generator=g, dtype=torch.float64)
    curvature, slope = bend + bend.T, torch.randn(tasks, generator=g, dtype=torch.float64)
    points = torch.rand(40, tasks, generator=g, dtype=torch.float64)
    found = quadratic(points, ((points @ curvature) * points).sum(1) + points @ slope + 7)
    torch.testing.assert_close(found[0], curvature, atol=1e-6, rtol=1e-6)
    torch.testing.assert_close(found[1], slope, atol=1e-6, rtol=1e-6)


@given(seed=st.integers(0, 2**31), tasks=st.integers(1, 3), high=st.sampled_from([0.5, 1.0, 3.0]), convex=st.booleans())
def test_the_minimum_is_below_a_grid_and_in_the_box(seed, tasks, high, convex):
    g = torch.Generator().manual_seed(seed)
    bend = torch.randn(tasks, tasks, generator=g, dtype=torch.float64)
    curvature, slope = (bend @ bend.T if convex else bend + bend.T), torch.randn(tasks, generator=g, dtype=torch.float64)
    corners = torch.tensor(list(itertools.product((0.0, high / 2, high), repeat=tasks)), dtype=torch.float64)
    place = lowest(curvature, slope, high, corners)
    grid = torch.tensor(list(itertools.product(np.linspace(0, high, 15), repeat=tasks)), dtype=torch.float64)
    heights = ((grid @ curvature) * grid).sum(1) + grid @ slope
    assert bool((place >= 0).all() & (place <= high).all())
    assert float(place @ curvature @ place + place @ slope) <= float(heights.min()) + 1e-8


def test_labels_are_needed_and_have_to_fit():
    s = labelled(2)
    s.batches["task1"] = [x for x, _ in s.batches["task1"]]
    with pytest.raises(MergeError, match="'task1': the method is supervised"):
        fbl.adapt("map", *s.arguments(), 2)
    s = labelled(2)
    s.batches["task1"] = [(x, labels + 50) for x, labels in s.batches["task1"]]
    with pytest.raises(MergeError, match="'task1': labels from .* do not fit a head"):
        fbl.adapt("map", *s.arguments(), 2)

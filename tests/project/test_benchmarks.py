"""The benchmark compares like with like: engine and autograd do the same step, and goals are read off correctly."""

from __future__ import annotations

import dataclasses
import math

import pytest
import torch

from benchmarks import report
from benchmarks.measure import Job, Timing
from benchmarks.problem import METHODS, Size, build
from benchmarks.reference import AutogradMerge
from benchmarks.variants import TEMPERATURE, autograd, engine, parametrisation, plain

TINY = Size(image=8, patch=4, width=16, layers=1, heads=2, output=8, images=2, tasks=3)
CPU = torch.device("cpu")


@pytest.mark.parametrize("method", list(METHODS))
def test_engine_and_autograd_do_the_same_step(method):
    problem = build(TINY, METHODS[method], CPU)
    learned, merge = parametrisation(problem), AutogradMerge(problem, TEMPERATURE)
    ours, theirs = engine(problem, learned), autograd(problem, merge)
    assert torch.allclose(ours(), theirs(), rtol=1e-4)
    scale = learned.coefficients.grad.abs().max()
    for name, row in learned.rows.items():
        want = merge.coefficients[name.replace(".", "/")].grad
        assert torch.allclose(learned.coefficients.grad[row], want, rtol=1e-3, atol=1e-4 * float(scale)), name
    for name in problem.factors:
        got, want = learned.parts[name].logits.grad, merge.logits[name.replace(".", "/")].grad
        assert torch.allclose(got, want, rtol=1e-3, atol=1e-4 * float(want.abs().max())), name
    assert torch.allclose(ours(), theirs(), rtol=1e-3)


@pytest.mark.parametrize("method", list(METHODS))
def test_factors_are_singular_components_of_the_task_vectors(method):
    problem = build(TINY, METHODS[method], CPU)
    assert bool(problem.factors) == method.startswith("adarank")
    assert set(problem.vectors) | set(problem.factors) == set(problem.pretrained)
    for svd in problem.factors.values():
        identity = torch.eye(svd.values.shape[1]).expand(3, -1, -1)
        assert torch.allclose(svd.left @ svd.left.mT, identity, atol=1e-5)
        assert torch.allclose(svd.right @ svd.right.mT, identity, atol=1e-5)
        if svd.deltas is not None:
            assert torch.allclose((svd.left * svd.values[:, :, None]).mT @ svd.right, svd.deltas, atol=1e-6)
            assert not torch.equal(svd.deltas[0], svd.deltas[1])


def test_the_merge_is_the_same_after_any_history_of_masks():
    """Bits flip away and back, by way of mostly flipped masks: the mask alone decides the merged bits."""
    problem = build(TINY, METHODS["adarank_cart"], CPU)
    travelled, fresh = parametrisation(problem), parametrisation(build(TINY, METHODS["adarank_cart"], CPU))
    name, svd = next(iter(problem.factors.items()))

    def merged(module, logits):
        out = torch.empty_like(problem.pretrained[name])
        with torch.no_grad():
            module.parts[name].logits.copy_(logits)
        module.write({name: out})
        scale = 2.3 * svd.values * (logits > 0)
        want = problem.pretrained[name] + ((svd.left * scale[:, :, None]).mT @ svd.right).sum(0)
        assert torch.allclose(out, want, atol=1e-5)
        return out

    masks = [torch.ones_like(svd.values), -torch.ones_like(svd.values), torch.randn_like(svd.values)]
    last = [merged(travelled, mask) for mask in masks][-1]
    assert torch.equal(last, merged(fresh, masks[-1]))


def test_plain_steps_leave_gradients_in_the_model():
    problem = build(TINY, METHODS["adamerging"], CPU)
    assert math.isfinite(float(plain(problem)()))
    assert all(parameter.grad is not None for parameter in problem.model.parameters())


def timing(times, peak):
    return Timing(steps=tuple(times), plain=(1.0,) * len(times), held=10, peak=peak, loss=0.0)


def test_goals():
    job = Job(model="vit_mini", method="adamerging", variant="engine", device="cpu", threads=1, seconds=0.0)
    rank = dataclasses.replace(job, method="adarank_ta")
    slow = dataclasses.replace(rank, method="adarank_cart", variant="autograd")
    results = {job: timing((1.2, 1.5, 1.1), 5), rank: timing((2.0, 2.0, 9.0), 30), slow: timing((4.0,), 50)}
    found = report.goals(results)
    assert [goal.value for goal in found] == pytest.approx([1.2, 1 / 3, 0.6])
    assert [goal.verdict for goal in found] == ["PASS", "PASS", "MISSED"]
    text = report.markdown(results, "a machine")
    assert "| adarank_ta | engine | 2.00 | 1.00 | 2.00 | 1.00 |" in text
    assert text.count("MISSED") == 1


def test_a_yardstick_lost_in_noise_decides_nothing():
    job = Job(model="vit_mini", method="adarank_ta", variant="engine", device="cpu", threads=1, seconds=0.0)
    results = {job: timing((2.0,), 1), dataclasses.replace(job, variant="autograd"): timing((0.9,), 4)}
    assert [goal.verdict for goal in report.goals(results)] == ["UNDECIDED", "PASS"]


@pytest.mark.slow
def test_the_first_step_is_timed_stage_by_stage(capsys):
    from benchmarks import first_step

    assert first_step.main(["--models", "vit_mini", "--repeats", "1"]) == 0
    head, _, row = capsys.readouterr().out.splitlines()
    assert head == "| model | imports | configuration | load | merge | adapt | until the first step is done |"
    seconds = [float(cell.removesuffix(" s")) for cell in row.strip("| ").split(" | ")[1:]]
    assert seconds[-1] == pytest.approx(sum(seconds[:-1]), abs=0.3)
    assert seconds[0] > 0

"""The merging benchmark compares like with like: every fast version gives what its reference gives, and goals are read off."""

from __future__ import annotations

import dataclasses

import pytest
import torch

from benchmarks import merging_reference as reference
from benchmarks import merging_report as report
from benchmarks import streaming
from benchmarks.merging_measure import Measured, MergingJob, measure_merging
from benchmarks.merging_problem import CASES, draw, largest_error, layout, weights
from benchmarks.problem import Size
from benchmarks.streaming import Streamed, StreamingJob, measure_streaming, write_checkpoints
from fusionbench_lite.methods.doge import DogeTa, modification

TINY = Size(image=8, patch=4, width=16, layers=2, heads=2, output=8, images=2, tasks=3)
IDS = [f"{case.method}-{case.part}".replace(" ", "_") for case in CASES]


def double(state):
    return {name: tensor.double() for name, tensor in state.items()}


@pytest.mark.parametrize("case", CASES, ids=IDS)
def test_fast_and_reference_agree(case):
    base, experts = draw(TINY, case)
    assert base
    precise = double(base), {task: double(state) for task, state in experts.items()}
    fast, straight, exact = (
        weights(version(*given)) for version, given in (
            (case.fast, (base, experts)), (case.reference, (base, experts)), (case.reference, precise),
        )
    )
    assert list(fast) == list(straight) == list(base)
    assert largest_error(fast, exact, base) < 1e-4
    assert largest_error(straight, exact, base) < 1e-3
    for version in case.information.values():
        result = version(base, experts)
        assert set(result) == {"sum"} or largest_error(result, exact, base) < 1e-3


def test_inputs_have_exact_differences_and_sums():
    base, experts = draw(TINY, CASES[0])
    for name, tensor in base.items():
        total = sum(state[name] for state in experts.values())
        assert torch.equal(total.double(), sum(state[name].double() for state in experts.values()))
        for state in experts.values():
            assert torch.equal((state[name] - tensor).double(), state[name].double() - tensor.double())


def test_a_case_takes_the_part_that_it_names():
    shapes = layout(TINY)
    assert shapes["visual.transformer.resblocks.1.attn.in_proj_weight"] == (48, 16)
    taken = [set(draw(TINY, case)[0]) for case in CASES]
    assert taken[0] == set(shapes)
    assert all(".resblocks.0." in name for part in taken[2:] for name in part)
    assert [len(part) for part in taken[2:]] == [4, 4, 4, 1, 1]


def test_both_versions_of_doge_make_the_same_steps():
    generator = torch.Generator().manual_seed(0)
    found = torch.randn(3, 8, 12, generator=generator, dtype=torch.float64)
    space = torch.linalg.qr(torch.randn(8, 2, generator=generator, dtype=torch.float64))[0]
    scales = torch.tensor([0.1, 0.2, 0.3], dtype=torch.float64)
    got = modification(found.transpose(0, 1).contiguous(), scales, space, DogeTa(steps=7))
    want = reference.doge_modification(found, scales, space @ space.T, 7, 1e-4)
    torch.testing.assert_close(got, want, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("number", range(len(CASES)), ids=IDS)
def test_every_case_is_measured(number):
    measured = measure_merging(MergingJob(case=number, size=TINY, threads=1, seconds=0.0))
    case = CASES[number]
    assert set(measured.times) == {"fast", "reference", *(() if case.steps else case.information)}
    assert all(len(times) >= 2 and min(times) > 0 for times in measured.times.values())
    assert measured.error < 1e-3
    assert (measured.own_error is not None) == bool(case.check)
    assert bool(measured.step) == bool(case.steps)
    found = report.goals({number: measured}, None)
    assert found[-1].text == "error"
    wanted = (case.reading, case.slower, case.memory)
    assert len(found) == 1 + sum(goal is not None for goal in wanted)


def test_files_to_files(tmp_path):
    write_checkpoints((TINY, tmp_path, 1))
    assert len(list(tmp_path.glob("*.safetensors"))) == 1 + TINY.tasks
    found = measure_streaming(StreamingJob("ties_merging", tmp_path, 1, "cpu"))
    assert found.peak >= found.resident > 0
    assert found.on_clock == found.cpu
    assert not (tmp_path / "merged").exists()
    text = report.markdown({}, {"ties_merging": found}, "a machine")
    assert "| ties_merging, files | peak resident memory [GiB] |" in text


def test_without_room_files_to_files_is_skipped(monkeypatch):
    monkeypatch.setattr(streaming, "NEEDED", 1 << 62)
    said = streaming.streaming(TINY, ("task_arithmetic",), 1, "wall")
    assert said.startswith("streaming is skipped")
    assert said in report.markdown({}, said, "a machine")


def test_goals():
    times = {"fast": (1.0, 2.0, 4.0), "reference": (4.0, 4.0, 8.0)}
    ties = Measured(times=times, peaks={"fast": 30, "reference": 100}, inputs=9, output=1, error=2e-5)
    assert CASES[1].method == "ties_merging"
    found = report.goals({1: ties}, {"task_arithmetic": Streamed(
        peak=2 << 30, resident=1, seconds=1.0, cpu=1.0, on_clock=1.0, reading=(1.0,), inputs=1
    )})
    assert [goal.value for goal in found] == pytest.approx([0.5, 0.3, 2e-5, 2.0])
    assert [goal.limit for goal in found] == pytest.approx([1 / 3, 0.25, 1e-5, 1.5])
    assert {goal.verdict for goal in found} == {"MISSED"}
    better = dataclasses.replace(ties, error=0.0, peaks={"fast": 0, "reference": 100}, times={**times, "reference": (12.0,) * 3})
    assert [goal.verdict for goal in report.goals({1: better}, None)] == ["PASS"] * 3
    text = report.markdown({1: ties}, None, "a machine")
    assert "| ties_merging | 4 blocks of 12 | 2.00 | 4.00 | 2.00 |" in text

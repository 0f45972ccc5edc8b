"""The comparison with mergekit: its cases are methods of this package, differences are counted, and the page has every case."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from benchmarks import against_mergekit as bench
from benchmarks.against_mergekit_cases import CASES
from benchmarks.against_mergekit_report import page, ratios, row
from benchmarks.against_mergekit_values import compare
from fusionbench_lite import registry

TINY = bench.SIZES["tiny"]


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_cases_are_settings_of_methods(case, tmp_path: Path):
    for one in (case, case.aligned()):
        registry.get(one.method).configure(**one.settings)
    configuration = case.configuration(tmp_path, "float32")
    assert json.loads(json.dumps(configuration)) == configuration
    assert len(configuration["models"]) == case.experts == len(case.paths(tmp_path))
    assert bool(case.differs) or case.same is None


def test_differences_are_counted_in_places_of_bfloat16(tmp_path: Path):
    ours, other = (torch.tensor(values).bfloat16() for values in ([1.0, -0.0, 2.0, -4.0], [1.0078125, 0.0, 2.0, -4.0625]))
    for name, tensor in (("a", ours), ("b", other)):
        (tmp_path / name).mkdir()
        save_file({"w": tensor}, tmp_path / name / "model.safetensors")
    found = compare((tmp_path / "a", tmp_path / "b"))
    assert (found.equal, found.neighbours) == (0.5, 0.75)
    assert found.largest == pytest.approx(0.0625 / 4.0625)


@pytest.mark.slow
def test_one_merge_is_measured_in_its_own_process(tmp_path: Path):
    bench.write(tmp_path, TINY, 2)
    case = next(case for case in CASES if case.name == "slerp")
    found = bench.merged(sys.executable, case, tmp_path, "ours", 1)
    assert 0 < found["resident"] < found["peak"]
    assert found["cpu"] > 0
    assert compare((tmp_path / "merged-ours", tmp_path / "merged-ours")).equal == 1


def test_what_was_found_is_kept_and_not_measured_again(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    once = [{"wall": 1.0, "cpu": 1.0, "resident": 1e6, "peak": 2e6}]
    one = bench.Measured(
        case=CASES[0], threads=2, rounds=dict.fromkeys(("ours", *bench.DTYPES), once),
        differences=dict.fromkeys(bench.DTYPES, bench.Difference(equal=1.0, neighbours=1.0, largest=0.0)),
    )
    file, written = tmp_path / "found.json", tmp_path / "page.md"
    bench.keep(file, "tiny", one)
    assert bench.read(file, "tiny") == {(CASES[0].name, 2): one}
    assert bench.read(file, "small") == {}
    given = ["no-such-python", "--size", "tiny", "--methods", CASES[0].name, "--threads", "2"]
    assert bench.main([*given, "--json", str(file), "--page", str(written)]) == 0
    assert "1.0 | 1.0 | 1.0 | 1.0" in written.read_text()


def test_the_page_has_every_case_and_says_why_values_differ():
    def one(factor: float) -> list[dict[str, float]]:
        return [{"wall": factor, "cpu": factor, "resident": 1e6, "peak": 1e6 + factor * 1e6}]

    difference = bench.Difference(equal=0.5, neighbours=0.75, largest=0.01)
    found = [
        bench.Measured(
            case=case, threads=1, rounds={"ours": one(1), "float32": one(2), "bfloat16": one(3)},
            differences=dict.fromkeys(bench.DTYPES, difference),
        ) for case in CASES
    ]
    assert ratios(found[0], "cpu", "bfloat16") == (3, 3)
    assert "time  2.00" in row(found[0], "wall")
    text = page(found, TINY, "cpu", "a machine")
    for case in CASES:
        assert f"| `{case.name}` | `{case.method}` | 1 | 2.0 | 3.0 | 2.0 | 3.0 | 2 |" in text
        assert case.differs in text

"""Hours of runs against what real runs take, and what counts once."""

from __future__ import annotations

import dataclasses
import json
import os
import re
import time
from pathlib import Path

import pytest

from fusionbench_lite.base.progress import Progress
from fusionbench_lite.errors import InputError
from fusionbench_lite.planning.command_line import plan_of
from fusionbench_lite.planning.plan import Plan
from fusionbench_lite.resources import hours, known_rates, recorded, work
from fusionbench_lite.resources.measuring import measure
from fusionbench_lite.resources.rates import Asked, Rates
from fusionbench_lite.running import loading
from fusionbench_lite.running.run import execute

SMALL = ("tasks=[digits,signs,land]", "checkpoints.recipe={pretrain_steps: 4, finetune_steps: 3, multitask_steps: 3}", "device=cpu")
FASTEST, SLOWEST = 0.7, 6.0
"""Between which a real run's time lies, in the time that rates give: on a quiet core it is 1.4 to 3 times that, because a small
encoder spends much beside its products; the rest is room for a busy machine."""
LARGE = ("method=adarank", "model=vit_b32", "tasks=8", "device=cpu")


@pytest.fixture(scope="module")
def cache(shared_cache: Path) -> Path:
    return shared_cache


def rate(flops: float = 1e9) -> Rates:
    """A device of round numbers."""
    return Rates(
        device="cpu", name="abacus", precision="fp32", rows=8, width=4, flops=flops,
        decompositions=flops / 1000, elements=flops / 1000, images=10, cores=2, measured="2026-01-02 03:04",
    )


def known(*plans: Plan, flops: float = 1e9) -> dict[Asked, Rates]:
    return {question: rate(flops) for plan in plans if (question := hours.asked(plan)) is not None}


@pytest.mark.parametrize("line", ["method=adarank steps=4", "method=tsv_m limit=200", "method=doge_ta method.steps=60 limit=200"])
def test_hours_are_those_of_a_real_run_up_to_a_factor(line: str, cache: Path, tmp_path: Path):
    """Passes, decompositions, and a merge that optimises by itself; in processor time, which other programs do not lengthen."""
    plan = plan_of([*line.split(), *SMALL, f"cache_dir={cache}", f"results_dir={tmp_path}"])
    _, planned = hours.time_of([plan], work.measured([plan], cache))
    with Progress() as progress:
        loading.load(plan, progress)  # experts are trained on first use, which is not part of the estimate
        start = time.process_time()
        execute(plan, progress)
    assert FASTEST < (time.process_time() - start) / planned.total < SLOWEST


def test_rates_are_measured_once_a_day(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    calls: list[tuple[Asked, ...]] = []

    def counted(asked: tuple[Asked, ...]) -> dict[Asked, Rates]:
        calls.append(asked)
        return {one: dataclasses.replace(rate(), width=one.width) for one in asked}

    monkeypatch.setattr(known_rates, "_measured", counted)
    narrow, wide = (Asked(device="cpu", precision="fp32", rows=16, width=width) for width in (8, 16))
    first = known_rates.rates([narrow], tmp_path)
    assert known_rates.rates([narrow], tmp_path) == first
    assert known_rates.rates([narrow, wide], tmp_path)[wide].width == 16
    assert calls == [(narrow,), (wide,)]
    monkeypatch.setenv("OMP_NUM_THREADS", "7")  # other threads have other rates
    known_rates.rates([narrow], tmp_path)
    monkeypatch.undo()
    monkeypatch.setattr(known_rates, "_measured", counted)
    for file in (tmp_path / "rates").iterdir():
        os.utime(file, (0, time.time() - known_rates.DAY - 1))
    known_rates.rates([narrow], tmp_path)
    (tmp_path / "rates" / known_rates._file(narrow, tmp_path).name).write_text("{")
    known_rates.rates([narrow], tmp_path)
    assert calls[2:] == [(narrow,)] * 3


def test_a_cache_that_cannot_be_written_keeps_no_rates(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    asked = Asked(device="cpu", precision="fp32", rows=16, width=8)
    monkeypatch.setattr(known_rates, "_measured", lambda some: {one: rate() for one in some})
    (tmp_path / "rates").write_text("no folder")
    assert known_rates.rates([asked], tmp_path) == {asked: rate()}


def test_what_is_measured_is_what_was_asked_for():
    one, other = (Asked(device="cpu", precision=precision, rows=64, width=32) for precision in ("fp32", "bf16"))
    start = time.process_time()
    found = measure([one, other])
    assert time.process_time() - start < 3  # half a second where nothing else runs
    assert [(each.precision, each.rows, each.width) for each in found] == [("fp32", 64, 32), ("bf16", 64, 32)]
    assert all(min(each.flops, each.decompositions, each.elements, each.images) > 0 for each in found)
    assert found[0].images == found[1].images


def test_a_process_of_its_own_measures_where_torch_is_not_there(tmp_path: Path, process, command):
    """In a plan of a fresh process, whose second call goes by what the first one left."""
    line = ("plan=true", *SMALL, f"cache_dir={tmp_path}")
    first = process(*line)
    assert first.returncode == 0, first.stderr
    (file,) = (tmp_path / "rates").iterdir()
    file.write_text(json.dumps(json.loads(file.read_text()) | {"name": "abacus"}))
    assert "abacus" in command(*line).stdout


def test_a_device_that_is_not_there_is_one_line(command):
    done = command("plan=true", "device=cuda:77", *SMALL[:2])
    assert done.returncode == 2
    assert len(done.stderr.splitlines()) == 1
    assert "cuda" in done.stderr


def test_operations_by_kind(tmp_path: Path):
    """Of passes from the shapes; of merges that decompose or optimise what that takes, once per expert."""
    common = ["tasks=[digits,signs]", f"cache_dir={tmp_path}", "limit=10"]
    found = [
        hours.operations(plan_of([f"method={method}", *common]), "cpu")
        for method in ("weight_averaging", "tsv_m", "doge_ta", "regmean")
    ]
    average, spectral, optimised, statistics = (count or hours.Operations() for count in found)
    assert average.products > 0
    assert (average.decompositions, average.products) == (0, spectral.products)
    assert spectral.decompositions > 2 * 1e8 > average.elements
    assert optimised.elements > 100 * average.elements
    assert statistics.products > average.products
    assert (average + spectral).total == average.total + spectral.total


def test_seconds_follow_rates(tmp_path: Path):
    plan = plan_of(["method=adarank", "steps=3", f"cache_dir={tmp_path}"])
    count, planned = hours.time_of([plan, plan], known(plan, flops=5e8))
    assert planned.products == pytest.approx(count.products / 5e8)
    assert planned.decompositions == pytest.approx(count.decompositions / 5e5)
    assert planned.total == pytest.approx(2 * hours.time_of([plan], known(plan, flops=5e8))[1].total)


def test_runs_and_files_count_once(tmp_path: Path):
    common = ["model=vit_b32", "tasks=[mnist,dtd]", f"cache_dir={tmp_path}"]
    default = plan_of(["method=tsv_m", *common]).values["scaling"]
    lines = ("method=tsv_m", f"method=tsv_m method.scaling={default}", "method=tsv_m seed=1", "method=iso_c")
    plans = [plan_of([*line.split(), *common]) for line in lines]
    os.environ["HF_HUB_OFFLINE"] = "1"
    one, several = (work.work(some, known(*plans)) for some in (plans[:1], plans))
    assert (one.runs, several.runs) == (1, 3)
    assert several.missing == one.missing
    assert several.images == one.images == 10_000 + 1_880
    assert several.operations.products == 3 * one.operations.products
    assert one.seconds(rate()) == pytest.approx(one.time.total + one.images / 20)
    left = work.work(plans, known(*plans), frozenset({recorded.setting_of(plans[3])}))
    assert left.runs == 2


def test_a_base_that_adapts_is_a_run(tmp_path: Path):
    common = ["steps=2", f"cache_dir={tmp_path}"]
    alone = plan_of(["method=adamerging_layerwise", *common])
    on_it = plan_of(["method=surgery", "method.base=adamerging_layerwise", "method.adaptation.base_steps=2", *common])
    both = work.work([on_it], known(on_it))
    assert (both.runs, both.bases) == (2, 1)
    assert work.work([on_it, alone], known(on_it)).runs == 2


def test_a_record_is_known_by_its_setting(cache: Path, tmp_path: Path):
    line = ["method=adarank", "steps=1", "limit=8", "method.adaptation.batch_size=2", *SMALL]
    plan, others = [
        plan_of([*line, *more, f"cache_dir={cache}", f"results_dir={tmp_path}"])
        for more in ([], ["select=best_test", "trainer.eval_batch=5"])
    ]
    with Progress() as progress:
        execute(plan, progress)
    there = recorded.settings_there(tmp_path)
    assert there == {recorded.setting_of(plan)} == {recorded.setting_of(others)}
    for more in ("seed=1", "limit=9", "steps=2", "trainer.chunk=2", "method.scaling=0.1", "tasks=[signs,digits,land]"):
        assert recorded.setting_of(plan_of([*line, more, f"cache_dir={cache}"])) not in there
    (file,) = tmp_path.glob("records/*/result.json")
    file.write_text("{}")
    assert not recorded.settings_there(tmp_path)


def test_a_run_longer_than_a_day_says_so_in_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    long, short = (plan_of([*line, f"cache_dir={tmp_path}"]) for line in (LARGE, ("method=tsv_m",)))
    monkeypatch.setattr(work, "rates", lambda asked, cache: {one: rate(1e11) for one in asked})
    said = work.warning([long], tmp_path, "adarank on vit_b32")
    assert said is not None
    assert re.fullmatch(r"adarank on vit_b32 takes [\d,.]+ h or more on cpu \(abacus\), .*", said)
    monkeypatch.setattr(work, "rates", lambda asked, cache: {one: rate(1e16) for one in asked})
    assert work.warning([long], tmp_path, "adarank") is None

    def absent(asked: object, cache: Path) -> dict[Asked, Rates]:
        raise InputError("there is no such device")

    monkeypatch.setattr(work, "rates", absent)  # the run itself says what is wrong
    assert work.warning([long], tmp_path, "adarank") is None
    assert work.warning([short], tmp_path, "tsv_m") is None  # and of short runs nothing is measured


def test_the_line_comes_before_anything_is_loaded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
):
    monkeypatch.setattr(work, "rates", lambda asked, cache: {one: rate(1e11) for one in asked})
    plan = plan_of([*LARGE, f"cache_dir={tmp_path / 'cache'}"])

    def refused(*_: object) -> None:
        raise InputError("a download")

    monkeypatch.setattr(type(plan.kind), "load", refused)
    with pytest.raises(InputError, match="a download"), Progress() as progress:
        loading.load(plan, progress)
    assert sum("takes" in record.message and "or more on cpu" in record.message for record in caplog.records) == 1
    assert not (tmp_path / "cache" / "hub").exists()

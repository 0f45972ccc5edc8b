"""The seconds of decompositions: a part of a run's stages, whichever threads they run on."""

from __future__ import annotations

import threading
import time

import pytest
import torch

from fusionbench_lite.evaluation import passes
from fusionbench_lite.running import recording
from fusionbench_lite.running.clock import Clock
from fusionbench_lite.tables import records
from fusionbench_lite.weights.linalg import decompose, svd
from fusionbench_lite.weights.parallel import each
from fusionbench_lite.weights.stopwatch import Stopwatch, timed, timing

SMALL = ["tasks=[digits,signs,land]", "limit=48", "checkpoints.recipe={pretrain_steps: 4, finetune_steps: 3, multitask_steps: 3}"]


def test_threads_at_once_count_once():
    watch, together = Stopwatch(), threading.Barrier(3)

    def work() -> None:
        with watch:
            together.wait()
            time.sleep(0.05)

    threads = [threading.Thread(target=work) for _ in range(3)]
    start = time.perf_counter()
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert 0.04 < watch.seconds <= time.perf_counter() - start  # not three times as long
    with watch, watch:
        pass
    assert watch.seconds <= time.perf_counter() - start


def test_decompositions_are_measured_and_nothing_else():
    matrices = [torch.randn(40, 30) for _ in range(3)]
    with timing() as watch:
        each(lambda matrix: matrix @ matrix.T, matrices)
        assert watch.seconds == 0
        each(lambda matrix: svd(matrix, "a"), matrices)
        first = watch.seconds
        decompose(matrices[0], "a")
    assert 0 < first < watch.seconds
    after = watch.seconds
    svd(matrices[0], "a")
    assert watch.seconds == after


def test_an_error_stops_the_clock():
    @timed
    def fails() -> None:
        raise ValueError("as meant")

    with timing() as watch, pytest.raises(ValueError, match="as meant"):
        fails()
    with watch:
        pass
    assert watch.seconds < 1


@pytest.mark.parametrize(("line", "decomposes"), [("adarank_ta", True), ("tsv_m", True), ("adamerging_layerwise", False)])
def test_records_tell_them_apart(command, tmp_path, line, decomposes):
    steps = ["steps=1", "method.adaptation.batch_size=4"] if line != "tsv_m" else []
    assert command(f"method={line}", *steps, *SMALL).returncode == 0
    (record,) = records.read_all(tmp_path / "results")
    seconds = dict(record.data["seconds"])
    assert ("svd" in seconds) == decomposes
    part, total = seconds.pop("svd", 0.0), seconds.pop("total")
    assert total == pytest.approx(sum(seconds.values()))
    assert 0 <= part <= total


def test_the_peak_of_a_stage_is_its_own(monkeypatch):
    """An allocator of which only the peak counts: 9 before, 5 in the stage, of which 3 were there, 7 after."""
    memory = {"now": 3, "peak": 9}
    monkeypatch.setattr(torch.cuda, "max_memory_allocated", lambda device: memory["peak"])
    monkeypatch.setattr(torch.cuda, "reset_peak_memory_stats", lambda device: memory.update(peak=memory["now"]))
    monkeypatch.setattr(passes, "_earlier_peaks", {})
    clock, gpu = Clock(), torch.device("cuda")
    with clock.measured("merge", gpu):
        memory["peak"] = 5
    memory["peak"] = 7
    assert clock.peaks == {"merge": 5}
    assert recording.peak_bytes(gpu) == 9  # that of the run is still known
    with clock.measured("merge", torch.device("cpu")):
        pass
    assert clock.peaks == {"merge": 5}
    assert set(clock.total()) == {"merge", "total"}

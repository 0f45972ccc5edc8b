"""Processes that share a cache, and processes that are killed: nothing half-made is left, and what is left is used."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from tests.conftest import ROOT
from tests.support.mirror import Mirror, mirror  # noqa: F401  (a fixture)
from tests.support.vision_suite import SMALL, Suite, fill

SIZES = {"mnist": (20, 10), "dtd": (94, 47)}


@pytest.fixture
def served(mirror: Mirror, tmp_path: Path) -> Suite:  # noqa: F811
    """A hub for processes that have vit_b32 of a small size."""
    fill(mirror, SMALL, sizes=SIZES)
    return Suite(mirror, tmp_path, SIZES)


def started(suite: Suite, line: str, module: str = "fusionbench_lite.__main__") -> subprocess.Popen[str]:
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "COLUMNS": "200"}
    return subprocess.Popen(
        [sys.executable, "-m", "tests.support.vision_job", module, *suite.line(line)], cwd=suite.folder, env=environment, text=True,
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
    )


def ended(process: subprocess.Popen[str]) -> str:
    """Return the last line that a process says."""
    said = process.communicate(timeout=240)[0]
    assert process.returncode == 0, said
    return said.splitlines()[-1]


def unfinished(suite: Suite) -> list[Path]:
    files = [path for root in (suite.cache, suite.results) for path in root.rglob("*") if path.is_file()]
    return [path for path in files if path.name.endswith(".tmp") or ".partial" in path.parts]


def predictions(suite: Suite) -> dict[str, bytes]:
    (file,) = suite.results.glob("records/*/samples.npz")
    return {name: array.tobytes() for name, array in np.load(file).items()}


def waited_for(condition, seconds: float = 120) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "it did not come to that"
        time.sleep(0.02)


def test_two_processes_with_one_line_make_one_record(served: Suite):
    last = [ended(process) for process in [started(served, "method=cart") for _ in range(2)]]
    assert sorted(line.split()[0] for line in last) == ["found", "recorded"]
    for pattern in ("*/MNIST/finetuned.pt", "*/test-00000-of-00001.parquet"):
        asked = [request.path for request in served.mirror.asked(pattern, "GET")]
        assert len(asked) == len(set(asked)), "a file was fetched twice"
    assert not unfinished(served)


def test_a_process_that_is_killed_while_it_downloads_leaves_what_the_next_one_uses(served: Suite):
    half = (served.mirror.root / "models/SphereLab/vision_models_in_FDA/ViT-B-32/DTD/finetuned.pt").stat().st_size // 2
    served.mirror.inject("stall", "*DTD/finetuned.pt", at=half, seconds=240)
    killed = started(served, "method=cart")
    waited_for(lambda: any(path.stat().st_size >= half for path in unfinished(served) if "FDA" in str(path)))
    killed.kill()
    killed.communicate()
    assert not list(served.results.rglob("result.json"))
    assert not list((served.cache / "checkpoints").rglob("expert-dtd-*"))
    assert ended(started(served, "method=cart")).startswith("recorded in")
    assert not unfinished(served)
    again = served.mirror.asked("*DTD/finetuned.pt", "GET")[-1]
    assert again.headers.get("Range", again.headers.get("range")) == f"bytes={half}-"


def test_a_process_that_is_killed_while_it_converts_or_decodes_changes_no_prediction(served: Suite):
    assert ended(started(served, "method=cart")).startswith("recorded in")
    reference = predictions(served)
    for folder in ("checkpoints", "images"):
        fresh = Suite(served.mirror, served.folder / folder, SIZES)
        killed = started(fresh, "method=cart")
        waited_for(lambda fresh=fresh, folder=folder: any((fresh.cache / folder).rglob("*.*")))
        killed.kill()
        killed.communicate()
        assert ended(started(fresh, "method=cart")).startswith("recorded in")
        assert predictions(fresh) == reference


def test_two_launches_of_two_processes_with_one_line_take_turns(served: Suite):
    """Both wait for one lock in their first process alone; the others wait for what that one decides."""
    line = "method=adamerging_taskwise steps=3 method.adaptation.batch_size=2 method.adaptation.eval_every=3"
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "COLUMNS": "200"}
    launch = [
        sys.executable, "-m", "torch.distributed.run", "--nproc-per-node=2", "--rdzv-backend=c10d", "--rdzv-endpoint=127.0.0.1:0",
        "-m", "tests.support.vision_job", "fusionbench_lite.__main__", *served.line(line),
    ]
    both = [
        subprocess.Popen(launch, cwd=served.folder, env=environment, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
        for _ in range(2)
    ]
    said = sorted(ended(process).split()[0] for process in both)
    assert said == ["found", "recorded"]
    alone = served.folder / "alone"
    assert ended(started(served, f"{line} results_dir={alone}")).startswith("recorded")
    (shared,), (single,) = (root.glob("records/*/samples.npz") for root in (served.results, alone))
    for name, array in np.load(shared).items():
        np.testing.assert_array_equal(array, np.load(single)[name])

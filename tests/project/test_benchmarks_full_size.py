"""The measurements at full size: what they measure is the engine's own work, what they report is what was measured."""

from __future__ import annotations

import dataclasses
import json
import os
import subprocess
import sys
import time
import warnings

import numpy as np
import pytest
import torch

from benchmarks import command, full_size, full_size_images, full_size_measure, full_size_problem, full_size_report
from benchmarks.full_size_measure import POOL, WARM_UP, Job, measure
from benchmarks.full_size_passes import measure_passes
from benchmarks.full_size_problem import BASE, NORM, TINY
from fusionbench_lite.adaptation.engine.module import Adaptation
from fusionbench_lite.errors import InputError
from fusionbench_lite.models import clip
from tests.conftest import ROOT

CPU = torch.device("cpu")
SHAPES = clip.shapes(TINY, "packed")

pytestmark = pytest.mark.skipif(not os.access("/proc/self/clear_refs", os.W_OK), reason="reads the peak from /proc (Linux)")


@pytest.fixture(autouse=True)
def _leave_the_process_as_it_was():
    """Measurements own their process: they silence warnings, and set threads and processors."""
    threads, processors = torch.get_num_threads(), os.sched_getaffinity(0)
    with warnings.catch_warnings():
        yield
    torch.set_num_threads(threads)
    os.sched_setaffinity(0, processors)


@pytest.fixture
def job(tmp_path):
    return Job(
        model="tiny", layout="packed", tasks=3, method="adamerging_layerwise", device="cpu", precision="fp32", place="device",
        chunk=None, batch_size=2, steps=2, images=5, eval_batch=2, threads=1, scratch=tmp_path / "scratch",
    )


# ---------------------------------------------------------------- what is measured


@pytest.mark.parametrize(("method", "settings", "images"), [
    ("adamerging_layerwise", {"place": "disk", "precision": "bf16"}, 6), ("adarank_cart", {"place": "cpu", "chunk": 1}, 6),
    ("surgery", {"layout": "separate"}, 6), ("metamerging", {}, 12), ("traditional_mtl", {}, 6), ("concrete_am", {}, 12),
])  # fmt: skip
def test_a_method_is_measured(method, settings, images, job, monkeypatch):
    seen = {}
    monkeypatch.setattr(full_size_measure, "fit", _spied(full_size_measure.fit, seen))
    job = dataclasses.replace(job, method=method, **settings)
    figures = measure(job)
    assert len(figures.steps) == len(figures.reading) == job.steps
    assert figures.images == images
    assert min(*figures.steps, *figures.reading, figures.setup, figures.evaluation) > 0
    assert set(figures.peaks) == {"load", "build", "known", "step", "evaluate"}
    assert max(figures.peaks.values()) > sum(np.prod(shape) for shape in SHAPES.values()) * 4
    assert len(seen["module"].history.losses) == WARM_UP + job.steps
    assert seen["precision"] == {"fp32": "32-true", "bf16": "bf16-mixed"}[job.precision]


def _spied(fit, seen):
    def spy(procedure, batches_of, steps, settings, callbacks):
        seen["precision"] = settings.precision
        seen["module"] = fit(procedure, batches_of, steps, settings, callbacks)
        return seen["module"]

    return spy


def test_a_step_is_timed_whole(job, monkeypatch):
    """Time that a step, or reading its images, takes in addition shows in the figure it belongs to and in no other."""
    step, inputs = Adaptation.training_step, full_size_measure.Feed._inputs
    with monkeypatch.context() as patch:
        patch.setattr(Adaptation, "training_step", lambda *given: (time.sleep(0.15), step(*given))[1])
        slow = measure(job)
    assert min(slow.steps) > 0.15 > min(slow.reading)
    monkeypatch.setattr(full_size_measure.Feed, "_inputs", lambda *given: (time.sleep(0.06), inputs(*given))[1])
    slow = measure(job)
    assert min(slow.reading) > 0.18 > min(slow.steps)  # three tasks


def test_known_features_are_computed_for_what_is_read(job):
    assert job.known == 2 * POOL * 2 + 5
    figures = measure(dataclasses.replace(job, method="surgery"))
    assert figures.known > 0
    assert dataclasses.replace(job, images=1).known == 3 * POOL * 2
    assert max(figures.steps) < 1
    assert measure(job).known == 0


def test_evaluation_is_measured_by_size(job):
    found = measure_passes((job, (1, 4)))
    assert [entry.size for entry in found] == [1, 4]
    assert all(entry.evaluated > 0 < entry.encoded for entry in found)


def test_the_image_cache_is_measured(tmp_path):
    rates = full_size_images.measure_images(full_size_images.ImagesJob(20, 1, tmp_path))
    assert rates.count == 20
    assert rates.cached == 20 * 224 * 224 * 3
    assert 20 * 20_000 < rates.nbytes < 20 * 200_000
    assert 0 < rates.written < rates.again
    assert not list(tmp_path.iterdir())


# ---------------------------------------------------------------- what is drawn


def test_experts_are_drawn_by_name():
    noise = full_size_problem.noise(SHAPES, CPU)
    experts = full_size_problem.experts(SHAPES, noise, ("one", "two"))
    name = "transformer.resblocks.0.mlp.c_fc.weight"
    vectors = [experts.task_vector(task, name) for task in ("one", "two")]
    assert torch.equal(vectors[0], experts.task_vector("one", name))
    for vector in vectors:
        assert float(vector.square().mean().sqrt()) == pytest.approx(NORM, rel=0.05)
    assert abs(float(torch.corrcoef(torch.stack([vector.flatten() for vector in vectors]))[0, 1])) < 0.05
    assert float(experts.base(name).square().mean().sqrt()) == pytest.approx(BASE, rel=0.05)
    assert float(experts.base("ln_post.weight").mean()) == pytest.approx(1, abs=0.01)
    assert experts.pretrained[name].data_ptr() != experts.pretrained[name].data_ptr()
    assert list(experts.specs) == list(SHAPES)


def test_the_model_has_the_weights_that_are_merged():
    noise = full_size_problem.noise(SHAPES, CPU)
    pretrained = full_size_problem.experts(SHAPES, noise, ("one",)).pretrained
    model = full_size_problem.model(TINY, "packed", pretrained, CPU)
    assert all(torch.equal(tensor, pretrained[name]) for name, tensor in model.state_dict().items())


def test_images_repeat_those_drawn():
    drawn = full_size_problem.pixels(TINY)
    images = full_size_problem.Images(drawn, 100, "one")
    assert images.shape == (100, 64, 64, 3)
    assert np.array_equal(images[np.array([3, 67])], drawn[[3, 3]])
    assert np.array_equal(images[98:], drawn[34:36])


# ---------------------------------------------------------------- plans and tables


def test_a_job_fits_as_a_run_would(job):
    assert full_size.fitted(job, "auto").place == "device"
    assert full_size.fitted(job, "disk").place == "disk"
    assert full_size.fitted(dataclasses.replace(job, chunk=2), "cpu").chunk == 2
    with pytest.raises(InputError, match="'tsv_m' merges without data: name an adaptive one"):
        full_size.fitted(dataclasses.replace(job, method="tsv_m"), "auto")


def test_plans_are_marked_as_such(tmp_path, capsys):
    assert full_size.main(["--plans", "--methods", "adarank_cart", "--markdown", str(tmp_path / "plans.md")]) == 0
    text = (tmp_path / "plans.md").read_text()
    assert text.startswith("Planned, not measured")
    assert text.strip() == capsys.readouterr().out.strip()
    large = next(line for line in text.split("vit_l14")[1].splitlines() if line.startswith("| adarank_cart"))
    cells = [cell.strip() for cell in large.split("|")[3:7]]
    assert cells[0].startswith("cpu")
    assert cells[3].startswith("device")
    small = full_size_report.plans(["adarank_cart"], host=8, batch=16, precision="fp32")
    assert "| disk, " in small


def test_all_parts_are_written_as_they_are_found(tmp_path, monkeypatch, capsys):
    """A method that fails is named with its reason, the others are measured, and the exit status says so."""
    broken = "adarank_cart"

    def isolated(function, given):
        if getattr(given, "method", "") == broken:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB\nmore")
        return function(given)

    monkeypatch.setattr(command, "isolated", isolated)
    files = {kind: tmp_path / kind for kind in ("markdown", "json")}
    arguments = [
        "--model", "tiny", "--tasks", "2", "--device", "cpu", "--batch-size", "2", "--steps", "1", "--images", "4", "--eval-batch",
        "2", "--eval-sizes", "2", "--jpegs", "12", "--threads", "1", "--folder", str(tmp_path), "--methods",
        f"{broken},adamerging_layerwise,tsv_m", *(f"--{kind}={path}" for kind, path in files.items()),
    ]  # fmt: skip
    assert full_size.main(arguments) == 1
    text, found = files["markdown"].read_text(), json.loads(files["json"].read_text())
    assert capsys.readouterr().out.strip() == text.strip()
    assert "failed: CUDA out of memory. Tried to allocate 2 GiB |" in text
    assert "merges without data" in text
    assert [entry["job"]["method"] for entry in found["methods"]] == [broken, "adamerging_layerwise", "tsv_m"]
    assert found["methods"][1]["planned"]["step"] > 0
    assert [entry["precision"] for entry in found["passes"]] == ["fp32", "bf16"]
    assert "| 12 of " in text
    assert sorted(path.name for path in tmp_path.iterdir()) == ["json", "markdown"]
    rows = [line for line in text.splitlines() if line.startswith("| adamerging_layerwise")]
    peak = max(found["methods"][1]["figures"]["peaks"].values())
    planned = max(found["methods"][1]["planned"].values())
    assert rows[0].split("|")[11].strip() == f"{planned / peak:.2f}"
    assert full_size.main(["--memory", str(files["json"])]) == 0
    (row,) = [line for line in capsys.readouterr().out.splitlines() if line.startswith("| tiny")]  # what failed has no peak
    assert [cell.strip() for cell in row.split("|")[1:6]] == ["tiny", "2", "2", "adamerging_layerwise", "device"]
    assert row.split("|")[8].strip() == f"{planned / peak:.2f}"


def test_refusals(capsys):
    for arguments in (["--parts", "methods,all"], ["--tasks", "21"], ["--steps", "0"], ["--jpegs", "9"], ["--model", "vit_b31"]):
        with pytest.raises(SystemExit):
            full_size.main(arguments)
    assert "some of methods,passes,images, not 'methods,all'" in capsys.readouterr().err


@pytest.mark.slow
def test_few_packages_are_needed(tmp_path):
    """Neither Hydra nor what else a bare machine lacks is imported."""
    code = f"""
import sys
class Refused:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in {{"hydra", "omegaconf", "wandb", "datasets", "submitit", "pydantic", "dill", "joblib_launcher"}}:
            raise ModuleNotFoundError(f"No module named {{name!r}}", name=name)
sys.meta_path.insert(0, Refused())
from pathlib import Path
from benchmarks import full_size
from benchmarks.full_size_images import ImagesJob, measure_images
from benchmarks.full_size_measure import Job, measure
job = Job(
    model="tiny", layout="packed", tasks=2, method="adarank_cart", device="cpu", precision="fp32", place="device", chunk=None,
    batch_size=2, steps=1, images=2, eval_batch=2, threads=1, scratch=Path({str(tmp_path)!r}) / "scratch",
)
full_size.fitted(job, "auto")
measure(job)
measure_images(ImagesJob(10, 1, Path({str(tmp_path)!r})))
"""
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, check=False, capture_output=True, text=True, timeout=120,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-2000:]

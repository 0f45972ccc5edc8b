"""Corrupted test images of the embedded suite: what is drawn, what stays clean, and what records know of it."""

from __future__ import annotations

import numpy as np
import pytest

from fusionbench_lite.base.randomness import generator
from fusionbench_lite.data.corrupted import corrupted
from fusionbench_lite.data.vision import CORRUPTIONS
from fusionbench_lite.data.vision.corruptions import corrupt
from fusionbench_lite.planning.command_line import plan_of
from fusionbench_lite.running import recording
from fusionbench_lite.running.loading import load
from fusionbench_lite.tables import records, titles

SMALL = (
    "tasks=[digits,signs,land]", "limit=12",
    "checkpoints.recipe={pretrain_steps: 4, finetune_steps: 3, multitask_steps: 3}",
)


@pytest.fixture(scope="module")
def loaded(shared_cache):
    """Return the plan and the suite of a line."""

    def of(*line):
        plan = plan_of([*SMALL, f"cache_dir={shared_cache}", *line])
        return plan, load(plan, lambda *said: None)

    return of


@pytest.mark.parametrize("name", CORRUPTIONS)
def test_every_corruption_is_the_published_one_at_32_pixels(loaded, name):
    if name == "spatter":
        pytest.importorskip("cv2")
    clean, (_, suite) = loaded()[1], loaded(f"data.corruption={name}")
    for task, entry in suite.tasks.items():
        images = clean.tasks[task].test_images
        expected = [corrupt(image, name, 5, generator(0, task, "corruption", row)) for row, image in enumerate(images)]
        assert entry.test_images.shape == (12, 32, 32, 3)
        assert np.array_equal(entry.test_images, expected)
        assert (entry.test_images != images).mean() > 0.02
        assert np.array_equal(entry.train_images, clean.tasks[task].train_images)
        assert np.array_equal(entry.test_labels, clean.tasks[task].test_labels)
    assert suite.files == clean.files  # experts are those of clean images
    assert f"{name} was drawn at 32 x 32 pixels (severity 5, seed 0)." in suite.caveats


def test_draws_depend_on_seed_and_severity_and_not_on_the_limit(loaded):
    clean = loaded()[1].tasks["digits"]
    images = {seed: corrupted(clean, "gaussian_noise", 5, seed).test_images for seed in (0, 1)}
    assert not np.array_equal(images[0], images[1])
    assert not np.array_equal(images[0], corrupted(clean, "gaussian_noise", 1, 0).test_images)
    fewer = loaded("limit=5", "data.corruption=gaussian_noise")[1].tasks["digits"].test_images
    assert np.array_equal(fewer, images[0][:5])


def test_a_record_is_known_by_its_corruption(loaded):
    lines = ["", *(f"data.corruption={name}" for name in ("contrast", "impulse_noise"))]
    lines += ["data.corruption=contrast data.severity=2", "data.corruption=contrast seed=1 checkpoints.seed=0"]
    keys = [records.key(recording.identity(*loaded(*line.split()))) for line in lines]
    assert len(set(keys)) == len(keys)
    same = loaded("data.corruption=contrast", "data.corruption_from=generated")
    assert records.key(recording.identity(*same)) == keys[1]


def test_a_run_adapts_to_corrupted_images_and_says_so(command, tmp_path):
    line = ("method=adamerging_layerwise", "data.corruption=contrast", "data.severity=3", "steps=1", *SMALL)
    done = command(*line, "method.adaptation.batch_size=4")
    assert done.returncode == 0, done.stderr
    assert "contrast (generated, severity 3)" in " ".join(done.stdout.split())
    (record,) = records.read_all(tmp_path / "results")
    assert "contrast (generated, severity 3)" in titles.title(record)
    assert record.data["caveats"] == ["contrast was drawn at 32 x 32 pixels (severity 3, seed 0)."]

"""Task data: drawn from a seed, or read from files with every mistake named."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
import yaml

from fusionbench_lite.data import load_task, mini, normalise
from fusionbench_lite.errors import InputError
from fusionbench_lite.paths import config_dir


def _write(folder, name="cats", *, classes=("tabby", "black"), changes=None, description=None):
    rng = np.random.default_rng(0)
    arrays = {
        "train_images": rng.integers(0, 256, (6, 32, 32, 3), dtype=np.uint8), "train_labels": np.arange(6) % 2,
        "test_images": rng.integers(0, 256, (4, 32, 32, 3), dtype=np.uint8), "test_labels": np.arange(4) % 2,
    }
    arrays |= changes or {}
    np.savez(folder / f"{name}.npz", **{key: value for key, value in arrays.items() if value is not None})
    content = {"name": name, "num_classes": len(classes), "classes": list(classes), "train": 6, "test": 4}
    (folder / f"{name}.json").write_text(json.dumps(content | (description or {})))
    return arrays


def _load(folder, name="cats"):
    return load_task(name, data_dir=folder, seed=0, cache_dir=folder / "cache")


def test_files_are_read_as_they_are(tmp_path):
    arrays = _write(tmp_path)
    task = _load(tmp_path)
    assert task.classes == ("tabby", "black")
    assert np.array_equal(task.test_images, arrays["test_images"])
    assert task.test_labels.dtype == np.int64
    assert not (tmp_path / "cache").exists()


BROKEN = [
    ({"changes": {"test_labels": None}}, "has no array 'test_labels'"),
    ({"changes": {"train_images": np.zeros((6, 28, 28, 3), np.uint8)}}, "not [N, 32, 32, 3]"),
    ({"changes": {"train_images": np.zeros((6, 32, 32, 3), np.float32)}}, "is float32, not uint8"),
    ({"changes": {"train_labels": np.arange(5)}}, "not [6]: give one label per image"),
    ({"changes": {"train_labels": np.array([0, 1, 2, 0, 1, 0])}}, "runs from 0 to 2, but 2 classes"),
    ({"changes": {"test_labels": np.array([0, -1, 0, 1])}}, "runs from -1 to 1"),
    ({"changes": {"test_labels": np.array([0.0, 1.0, 0.0, 1.0])}}, "is float64, not an integer type"),
    (
        {"changes": {"test_images": np.zeros((0, 32, 32, 3), np.uint8), "test_labels": np.zeros(0, int)}},
        "holds no example",
    ),
    ({"description": {"num_classes": 3}}, "num_classes is 3, but classes lists 2 names"),
    ({"description": {"train": 7}}, "holds 6 examples, but cats.json says 7"),
    ({"description": {"classes": "tabby"}}, '"classes" must be a list'),
]


@pytest.mark.parametrize(("flaw", "message"), BROKEN, ids=[message for _, message in BROKEN])
def test_a_flaw_is_one_line_that_names_file_and_fix(tmp_path, flaw, message):
    _write(tmp_path, **flaw)
    with pytest.raises(InputError) as caught:
        _load(tmp_path)
    assert message in str(caught.value)
    assert "cats." in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("suffix", [".npz", ".json"])
def test_half_a_pair_and_truncated_files(tmp_path, suffix):
    _write(tmp_path)
    path = tmp_path / f"cats{suffix}"
    path.write_bytes(path.read_bytes()[:40])
    with pytest.raises(InputError, match="not readable|not a readable"):
        _load(tmp_path)
    path.unlink()
    with pytest.raises(InputError, match="is missing"):
        _load(tmp_path)


def test_unknown_task_has_its_nearest(tmp_path):
    with pytest.raises(InputError, match="did you mean 'digits'"):
        _load(tmp_path, "digts")


def test_mini8_is_the_configured_task_set():
    sets = yaml.safe_load((config_dir() / "task_sets.yaml").read_text())
    assert mini.names() == sets["mini8"]["tasks"]


@pytest.mark.parametrize("name", mini.names())
def test_drawn_images_depend_on_seed_task_and_part_only(name):
    images, labels = mini.draw(name, "test", 3, 40)
    again, same = mini.draw(name, "test", 3, 40)
    assert images.tobytes() == again.tobytes()
    assert np.array_equal(labels, same)
    assert images.shape == (40, 32, 32, 3)
    assert images.dtype == np.uint8
    other, _ = mini.draw(name, "test", 4, 40)
    train, _ = mini.draw(name, "train", 3, 40)
    assert images.tobytes() not in (other.tobytes(), train.tobytes())
    assert np.bincount(labels).max() - np.bincount(labels).min() <= 1
    assert images.std() > 10


def test_no_test_image_is_a_training_image(shared_cache):
    for name in mini.names():
        task = load_task(name, data_dir=None, seed=0, cache_dir=shared_cache)
        training = {image.tobytes() for image in task.train_images}
        assert not any(image.tobytes() in training for image in task.test_images)
        assert len(task.test_labels) >= 500


def test_a_damaged_cache_file_is_drawn_again(tmp_path, caplog):
    first = load_task("land", data_dir=None, seed=0, cache_dir=tmp_path, train=20, test=20)
    path = next((tmp_path / "data").glob("land*.npz"))
    path.write_bytes(path.read_bytes()[:-200])
    second = load_task("land", data_dir=None, seed=0, cache_dir=tmp_path, train=20, test=20)
    assert "damaged" in caplog.text
    assert first.sha256 == second.sha256
    assert load_task("land", data_dir=None, seed=0, cache_dir=tmp_path, train=20, test=20).sha256 == first.sha256


def test_normalise_maps_the_byte_range():
    images = torch.tensor([0, 255], dtype=torch.uint8).view(1, 1, 2, 1).expand(1, 1, 2, 3)
    out = normalise(images)
    assert out.shape == (1, 3, 1, 2)
    assert out.flatten().tolist() == [-2, 2] * 3

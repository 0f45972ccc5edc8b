"""The folder of trained experts: what runs read, and what is not trained again."""

from __future__ import annotations

import json

import pytest
import torch
from safetensors.torch import load_file

from fusionbench_lite.errors import InputError
from fusionbench_lite.finetuning import zoo
from fusionbench_lite.finetuning.recipes import FinetuneSettings, names, recipe
from fusionbench_lite.models import clip
from fusionbench_lite.models.heads import ZeroShotHead, random_embeddings
from fusionbench_lite.planning import task_sets
from tests.support.finetuning_job import SIZE, TASKS, quick, task_data, train


def test_recipes_are_the_published_ones():
    assert set(names()) == {"ta", "tall", "fusionbench", "joint"}
    ta, tall, fusionbench = map(recipe, ("ta", "tall", "fusionbench"))
    assert (ta.optimizer, ta.lr, ta.weight_decay, ta.batch, ta.warmup, ta.clip) == ("adamw", 1e-5, 0.1, 128, 500, 1.0)
    assert ta.steps_of("dtd", 3384) == 76 * 27
    assert tall.steps_of("flowers102", 918) == 147 * 8
    assert ta.steps_of("cifar10", 45000) == 2000
    assert len(tall.epochs) == 20
    for task, images in {"stanford_cars": 7330, "sun397": 17865, "svhn": 68257, "pcam": 257144}.items():
        assert 1900 < tall.steps_of(task, images) < 2200  # about 2,000 iterations, as the paper says
    assert (fusionbench.schedule, fusionbench.trained) == ("constant", "tower")
    assert (fusionbench.batch_of("dtd"), fusionbench.batch_of("pcam")) == (32, 128)
    changed = recipe("fusionbench", batch=8, lr=2e-5)
    assert changed.batch_of("pcam") == 8
    assert changed.source.endswith("changed: batch=8, lr=2e-05")
    assert set(tall.epochs) == set(task_sets.resolve(20, None).names)


def test_the_folder_is_one_that_runs_read(tmp_path):
    train(tmp_path, "dtd")
    before = (tmp_path / "individual-dtd.safetensors").read_bytes()
    train(tmp_path, "svhn")
    train(tmp_path, "dtd,svhn")
    assert (tmp_path / "individual-dtd.safetensors").read_bytes() == before
    found = zoo.load_from(tmp_path, [*TASKS], 100.0)
    assert list(found.experts) == [*TASKS]
    assert found.multitask is not None
    manifest = json.loads((tmp_path / "manifest.json").read_text())
    assert {name: entry["sha256"] for name, entry in manifest["files"].items()} == found.files
    assert (manifest["model"], manifest["head_scale"]) == ("tiny", 100.0)
    data = task_data("dtd")
    model = clip.build(SIZE, "packed")
    model.load_state_dict(found.experts["dtd"])
    logits = found.heads["dtd"](model(clip.normalise(torch.from_numpy(data.train_images))))
    assert float((logits.argmax(-1).numpy() == data.train_labels).mean()) >= 0.95


def test_what_is_there_is_not_trained_again(tmp_path):
    path = train(tmp_path)
    written = path.stat().st_mtime_ns
    assert train(tmp_path, report=lambda status: pytest.fail("trained again")) == path
    assert path.stat().st_mtime_ns == written
    with pytest.raises(InputError, match=r"individual-dtd.safetensors was trained otherwise \(lr 0.001, not 0.002\): overwrite"):
        train(tmp_path, how=quick(lr=2e-3))
    with pytest.raises(InputError, match="seed 0, 23 steps, data or head that differ"):
        train(tmp_path, settings=FinetuneSettings(seed=1))
    before = path.read_bytes()
    train(tmp_path, settings=FinetuneSettings(seed=1, overwrite=True))
    assert path.read_bytes() != before


def test_a_damaged_expert_is_trained_again_to_the_same_bits(tmp_path, caplog):
    path = train(tmp_path)
    whole = path.read_bytes()
    path.write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))
    assert train(tmp_path).read_bytes() == whole
    assert "is damaged" in caplog.text
    path.unlink()
    assert train(tmp_path).read_bytes() == whole


def test_a_head_of_large_rows_is_stored_as_unit_rows(tmp_path):
    shipped = 100 * random_embeddings(4, SIZE.output, 7)
    train(tmp_path, heads={"dtd": ZeroShotHead(shipped, 100.0)})
    stored = load_file(tmp_path / "heads.safetensors")["dtd"]
    torch.testing.assert_close(stored.norm(dim=-1), torch.ones(4))
    with pytest.raises(InputError, match=r"is for heads of scale 100.0, that of task 'svhn' has 50.0"):
        train(tmp_path, "svhn", heads={"svhn": ZeroShotHead(shipped, 50.0)})

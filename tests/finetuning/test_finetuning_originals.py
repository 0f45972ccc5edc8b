"""Fine-tuning on crops of the original images: what is read, decoded and refused, and what names the result."""

from __future__ import annotations

import dataclasses
import hashlib
import io
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from fusionbench_lite import finetune
from fusionbench_lite.data import TaskData, originals
from fusionbench_lite.data.vision.index import BROKEN, DECODED
from fusionbench_lite.errors import InputError
from fusionbench_lite.finetuning.folder import content_sha256
from fusionbench_lite.finetuning.images import boxes, crop
from fusionbench_lite.finetuning.recipes import FinetuneSettings, names, recipe
from fusionbench_lite.finetuning.step_images import Epochs, Pool, StepImages
from fusionbench_lite.models import clip
from tests.support.finetuning_job import HELD_OUT, IMAGES, STEPS, head, jpegs, pretrained, quick, task_data, train, with_originals
from tests.support.lines import called
from tests.support.mirror import Mirror, mirror  # noqa: F401  (a fixture)
from tests.support.vision_suite import Suite, small  # noqa: F401  (a fixture)

CPU = torch.device("cpu")
EXPERT = "individual-dtd.safetensors"


def entry_of(folder: Path) -> dict[str, Any]:
    entry: dict[str, Any] = json.loads((folder / "manifest.json").read_text())["files"][EXPERT]
    return entry


def batches_of(data: TaskData, threads: int | None = None) -> StepImages:
    pool = Pool(data, np.arange(HELD_OUT, IMAGES), 12, originals(data.train_images))
    return StepImages({"dtd": pool}, (0.9, 1.0), 3, clip.normalise, CPU, threads)


def test_a_step_has_the_crops_of_its_rows(tmp_path):
    data, _ = with_originals(tmp_path, "dtd")
    pictures = [Image.open(io.BytesIO(content)) for content in jpegs("dtd")]
    found = batches_of(data)
    for step in (0, 3, 7):
        rows = np.arange(HELD_OUT, IMAGES)[Epochs(IMAGES - HELD_OUT, 12, 3, "dtd").rows(step)]
        sizes = np.array([(pictures[row].height, pictures[row].width) for row in rows])
        places = boxes(sizes, (0.9, 1.0), 3, "dtd", "crop", step).tolist()
        expected = np.stack([crop(pictures[row], place, 32) for row, place in zip(rows, places, strict=True)])
        assert np.array_equal(found.images(step)["dtd"].numpy(), expected)
        (batch,) = found(step)
        assert torch.equal(batch["dtd"].inputs, clip.normalise(torch.from_numpy(expected)))
        assert batch["dtd"].labels.tolist() == data.train_labels[rows].tolist()


def test_the_number_of_threads_changes_nothing(tmp_path, monkeypatch):
    monkeypatch.setattr("fusionbench_lite.data.vision.decoding.threads", lambda: 1)
    first = train(tmp_path / "one", "dtd originals")
    monkeypatch.setattr("fusionbench_lite.data.vision.decoding.threads", lambda: 5)
    assert first.read_bytes() == train(tmp_path / "five", "dtd originals").read_bytes()
    data, _ = with_originals(tmp_path, "dtd")
    with batches_of(data, 1).reading_ahead(5) as alone, batches_of(data, 6).reading_ahead(5) as many:
        for step in range(5):
            assert torch.equal(alone(step)[0]["dtd"].inputs, many(step)[0]["dtd"].inputs)


def test_only_held_out_images_become_squares(tmp_path):
    data, decoded = with_originals(tmp_path, "dtd")
    train(tmp_path, data={"dtd": data})
    assert np.flatnonzero(decoded.index.states(np.arange(IMAGES)) == DECODED).tolist() == list(range(HELD_OUT))
    entry = entry_of(tmp_path)
    assert (entry["recipe"]["images"], entry["originals"]) == ("original", {"dtd": True})
    assert entry["accuracy"]["dtd"] >= 0.95
    train(tmp_path / "squares", how=quick(images="square", steps=1, warmup=0), data={"dtd": data})  # one step of 12 images
    assert (decoded.index.states(np.arange(IMAGES)) == DECODED).all()


def test_originals_and_squares_give_other_experts_under_other_keys(tmp_path):
    data, _ = with_originals(tmp_path, "dtd")
    square = quick(images="square")
    first = train(tmp_path / "squares", how=square, data={"dtd": data})
    second = train(tmp_path / "originals", data={"dtd": data})
    assert first.read_bytes() != second.read_bytes()
    assert entry_of(tmp_path / "squares")["key"] != entry_of(tmp_path / "originals")["key"]
    as_arrays = dataclasses.replace(data, train_images=np.asarray(data.train_images))
    arrays = train(tmp_path / "arrays", how=square, data={"dtd": as_arrays})
    assert arrays.read_bytes() == first.read_bytes()
    with pytest.raises(InputError, match=r"trained otherwise \(images 'original', not 'square'\): overwrite it"):
        train(tmp_path / "originals", how=square, data={"dtd": data})


def test_images_in_memory_are_no_reason_to_differ(tmp_path):
    """Either value crops the same images: what is named is the seed."""
    train(tmp_path, how=quick(images="square", steps=2))
    for images in ("square", "original"):
        with pytest.raises(InputError, match=r"trained otherwise \(seed 0, 2 steps"):
            train(tmp_path, how=quick(images=images, steps=2), settings=FinetuneSettings(seed=1))


def test_an_expert_of_before_there_was_a_choice_is_one_of_squares(tmp_path):
    """Its manifest says nothing of it, its key is that of squares."""
    data, _ = with_originals(tmp_path, "dtd")
    square = quick(images="square")
    path = train(tmp_path, how=square, data={"dtd": data})
    manifest = json.loads((tmp_path / "manifest.json").read_text())
    del manifest["files"][EXPERT]["recipe"]["images"]
    (tmp_path / "manifest.json").write_text(json.dumps(manifest))
    assert train(tmp_path, how=square, data={"dtd": data}, report=lambda status: pytest.fail("trained again")) == path
    with pytest.raises(InputError, match=r"trained otherwise \(images 'square', not 'original'\): overwrite it") as error:
        train(tmp_path, data={"dtd": data})
    assert "\n" not in str(error.value)


def test_the_key_of_squares_is_what_it_was_before_there_was_a_choice(tmp_path):
    path = train(tmp_path, how=quick(images="square", steps=2))
    how = {
        "name": "ta", "optimizer": "adamw", "lr": 1e-3, "weight_decay": 0.1, "schedule": "cosine", "warmup": 4, "clip": 1.0,
        "trained": "all", "crop": [0.9, 1.0], "held_out": True, "steps": 2, "joint": False, "batch": {"dtd": 12}, "epochs": {},
    }
    rows = hashlib.sha256(np.arange(HELD_OUT, IMAGES).tobytes()).hexdigest()
    task = [task_data("dtd").sha256, rows, 12, content_sha256({"head": head("dtd").weight}), 100.0, False]
    content = {
        "version": 1, "base": content_sha256(pretrained()), "recipe": how, "steps": 2, "seed": 0, "precision": "fp32",
        "tasks": {"dtd": task},
    }
    assert path.name == EXPERT
    assert entry_of(tmp_path)["key"] == hashlib.sha256(json.dumps(content).encode()).hexdigest()[:16]


def test_a_checkpoint_of_squares_is_not_continued_on_originals(tmp_path):
    data, _ = with_originals(tmp_path, "dtd")

    def stop(status):
        if status.step == 9:
            raise KeyError

    with pytest.raises(KeyError):
        train(tmp_path, how=quick(images="square"), data={"dtd": data}, report=stop)
    assert list(tmp_path.glob(".*.ckpt"))
    steps = []
    path = train(tmp_path, data={"dtd": data}, report=lambda status: steps.append(status.step))
    assert steps == list(range(1, STEPS + 1))
    assert path.read_bytes() == train(tmp_path / "alone", data={"dtd": data}).read_bytes()


def test_images_in_memory_are_their_own_originals(tmp_path):
    """The choice changes neither the weights nor the key."""
    first = train(tmp_path / "one")
    second = train(tmp_path / "two", how=quick(images="square"))
    assert first.read_bytes() == second.read_bytes()
    one, two = entry_of(tmp_path / "one"), entry_of(tmp_path / "two")
    assert one["key"] == two["key"]
    assert one["originals"] == two["originals"] == {"dtd": False}
    assert (one["recipe"]["images"], two["recipe"]["images"]) == ("original", "square")


def test_squares_whose_originals_are_not_at_hand_are_refused(tmp_path):
    data, _ = with_originals(tmp_path, "dtd")
    data.train_images.originals = None
    with pytest.raises(InputError, match=r"'dtd': recipe 'ta' crops original images, but only the .*images=square") as error:
        train(tmp_path / "folder", data={"dtd": data})
    assert "\n" not in str(error.value)
    assert not (tmp_path / "folder").exists()
    train(tmp_path / "folder", how=quick(images="square", steps=2), data={"dtd": data})
    train(tmp_path / "whole", how=quick("fusionbench", steps=2), data={"dtd": data})


def test_images_that_cannot_be_decoded_are_refused_when_they_are_met(tmp_path):
    """Those of a step together, whatever thread met them first, and those that were found before."""
    contents: list[Any] = jpegs("dtd")
    contents[2] = b"no image"
    for row in (40, 70):
        contents[row] = contents[row][:-30]
    data, _ = with_originals(tmp_path, "dtd", contents)
    how = quick(batch=IMAGES)  # a step reads all
    for held_out, found_before in ((np.arange(5, HELD_OUT), []), (np.arange(5, 41), [40])):
        with pytest.raises(InputError) as error:
            train(tmp_path, how=how, data={"dtd": data}, validation={"dtd": held_out})
        assert str(error.value) == (
            "task 'dtd': at least 3 of 90 images of the pictures of dtd cannot be decoded (dtd.parquet row 2, dtd.parquet row 40, "
            "dtd.parquet row 70; the first one: it begins like no image format that is known): repair them, or set "
            "data.skip_corrupt=3 to leave them out"
        )
        decoded = data.train_images._deferred.opened.decoded
        assert np.flatnonzero(decoded.index.states(np.arange(IMAGES)) == BROKEN).tolist() == found_before
    assert not (tmp_path / EXPERT).exists()


def test_held_out_images_that_cannot_be_decoded_are_refused(tmp_path):
    contents: list[Any] = jpegs("dtd")
    contents[2] = contents[9] = None
    data, _ = with_originals(tmp_path, "dtd", contents)
    with pytest.raises(InputError, match=r"at least 2 of 90 .*dtd.parquet row 2, dtd.parquet row 9; the first .* no bytes\)"):
        train(tmp_path, data={"dtd": data})


def test_recipes_say_what_they_crop():
    assert {name: recipe(name).images for name in names()} == {
        "ta": "original", "tall": "original", "joint": "original", "fusionbench": "square"
    }
    assert recipe("ta", images="square").source.endswith("changed: images=square")
    assert recipe("ta", crop=None).images == "square"
    assert recipe("fusionbench", crop=(0.9, 1.0), images="original").images == "original"
    for call, message in {
        (lambda: recipe("ta", images="originals"), "images must be one of original, square .did you mean 'original'"),
        (lambda: recipe("fusionbench", images="original"), "recipe 'fusionbench' crops nothing.*images=original needs a crop"),
        (lambda: recipe("ta", images="original", crop=None), "recipe 'ta' crops nothing"),
    }:
        with pytest.raises(InputError, match=message):
            call()


def test_the_command_line_chooses(small: Suite):  # noqa: F811
    line, folder = "task=dtd finetune.steps=2 finetune.batch=8", small.folder / "own"

    def said(more: str) -> tuple[int, str]:
        return called(finetune.main, small.line(f"{line} finetune.out={folder} {more}"))

    for value in ("original", "square"):
        status, text = said(f"finetune.images={value} overwrite=true")
        assert status == 0, text
        entry = entry_of(folder)
        assert (entry["recipe"]["images"], entry["originals"]) == (value, {"dtd": value == "original"})
    for more, message in {
        "": "trained otherwise (images 'square', not 'original')",
        "finetune.images=whole": "of fine-tuning: images must be one of original, square, got 'whole'",
        "finetune.recipe=fusionbench finetune.images=original": "recipe 'fusionbench' crops nothing",
    }.items():
        status, text = said(more)
        assert status == 2
        (refusal,) = (one for one in text.splitlines() if one.startswith("fusionbench_lite: "))
        assert message in refusal
    (copied,) = small.cache.glob("images/dtd-train-*/encoded")
    assert copied.stat().st_size > 0

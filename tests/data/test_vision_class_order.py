"""Whether the classes of the user's own images can be told: by known names or by numbers, in folders and in archives."""

from __future__ import annotations

import os

import numpy as np
import pytest
from PIL import Image

from fusionbench_lite.data import vision
from fusionbench_lite.data.vision import tasks
from fusionbench_lite.data.vision.class_order import ordered
from fusionbench_lite.errors import InputError
from fusionbench_lite.models.prompts import prompts
from tests.support.vision_data import write_folder, write_npz

SIZE = 8


def refused(task: str, given: vision.Sources, *parts: str) -> None:
    with pytest.raises(InputError) as caught:
        vision.load(task, given, None, SIZE)
    for part in parts:
        assert part in str(caught.value), str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(("task", "names"), [
    ("gtsrb", [f"{number:05d}" for number in range(43)]), ("gtsrb", [f"class_{number}" for number in range(43)]),
    ("dtd", [str(number) for number in range(47)]), ("flowers102", [str(number) for number in range(1, 103)]),
    ("stanford_cars", [f"Label-{number}" for number in range(1, 197)]), ("mnist", [f"digit {number}" for number in range(10)]),
    ("stl10", [str(number) for number in range(1, 11)]), ("oxford_iiit_pet", [str(number) for number in range(1, 38)]),
    ("pcam", ["no_tumor_tissue", "tumor_tissue"]), ("pcam", ["neg", "pos"]),
    ("pcam", ["no_tumor", "Tumor"]), ("pcam", ["normal", "metastasis"]), ("pcam", ["0", "1"]),
    ("svhn", ["zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine"]),
    ("fer2013", ["anger", "disgusted", "fear", "happiness", "neutral", "sad", "surprised"]), ("rendered_sst2", ["neg", "pos"]),
    ("cifar10", ["plane", "car", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck"]),
    ("sun397", [f"{name[0]}_{name.replace(' ', '_')}" for name in prompts("sun397", "tall").classnames]),
])
@pytest.mark.parametrize("variant", vision.VARIANTS)
def test_class_folders_have_the_label_of_their_name_or_number(tmp_path, task, names, variant):
    known = tasks.task(task, variant)
    for seed in range(3):
        shuffled = np.random.default_rng(seed).permutation(names).tolist()
        assert ordered(tmp_path, shuffled, known) == tuple(names)


def test_numbers_of_letters_start_at_one_as_published(tmp_path):
    names = [str(number) for number in range(1, 27)]
    assert ordered(tmp_path, sorted(names), tasks.task("emnist", "fusionbench")) == tuple(names)


@pytest.mark.parametrize(("task", "names", "parts"), [
    ("pcam", ["metastasised", "sound"], ["2 of 2 class folders (metastasised, sound)", "lymph node, lymph node containing"]),
    ("pcam", ["normal", "healthy"], ["1 of 2 class folders (normal)", "one class twice"]),
    ("dtd", [f"texture of {chr(65 + number)}" for number in range(47)],
     ["47 of 47 class folders (texture of A, ", "are no known names", "order cannot be checked", "banded, blotchy, braided, ...",
      "class_names.yaml", "number them 0 to 46"]),
    ("dtd", [str(number) for number in range(1, 48)], ["numbered 1 to 47", "number them 0 to 46", "banded"]),
    ("svhn", [str(number) for number in range(1, 11)], ["'0'", "missing"]),
    ("gtsrb", [f"class_{number}" for number in (*range(7), *range(8, 44))], ["0 to 42", "7 is missing"]),
    ("gtsrb", [*(str(number) for number in range(42)), "041"], ["0 to 42", "42 is missing"]),
    ("gtsrb", [*(str(number) for number in range(42)), "class42"], ["43 of 43 class folders (0, 1, 10, ...)"]),
    ("flowers102", [str(number) for number in range(2, 104)], ["1 to 102 as published", "1 is missing"]),
    ("fer2013", [str(number) for number in range(7)],
     ["published numbers are not the labels", "angry, disgust, fear, happy, neutral, sad, surprise"]),
])
@pytest.mark.parametrize("variant", vision.VARIANTS)
def test_class_folders_whose_order_cannot_be_checked_are_refused(tmp_path, task, names, parts, variant):
    write_folder(tmp_path, task, names, {"test": 1})
    refused(task, vision.Sources(variant, tmp_path / "cache", tmp_path), str(tmp_path / task / "test"), *parts)


@pytest.mark.slow
def test_folders_of_full_size_have_the_labels_of_their_names(tmp_path):
    """The published number of images says nothing of the order: the classes of PCAM sort the other way round."""
    for label, name in enumerate(("normal", "metastasis")):
        folder = tmp_path / "pcam/test" / name
        folder.mkdir(parents=True)
        Image.fromarray(np.full((2, 2, 3), label, np.uint8)).save(folder / "0.png")
        for number in range(1, 16384):
            os.link(folder / "0.png", folder / f"{number}.png")
    given = vision.Sources("tall", tmp_path / "cache", tmp_path)
    data = vision.load("pcam", given, None, 2)
    assert not data.caveats
    assert np.array_equal(data.test_images[:][:, 0, 0, 0], data.test_labels)
    (tmp_path / "pcam/test/normal").rename(tmp_path / "pcam/test/sound")
    refused("pcam", given, "1 of 2 class folders (sound)", "order cannot be checked")


@pytest.mark.parametrize(("task", "names", "parts"), [
    ("dtd", [f"texture of {chr(65 + number)}" for number in range(47)], ["47 of 47 class names", "order cannot be checked"]),
    ("dtd", [f"class {number}" for number in sorted(range(47), key=str)], ["class 2 is named 'class 10'", "renumber"]),
    ("dtd", [str(number) for number in range(1, 48)], ["numbered 1 to 47"]),
    ("fer2013", [str(number) for number in range(7)], ["published numbers are not the labels"]),
    ("fer2013", ["angry", "disgust", "fear", "happy", "sad", "surprise", "neutral"], ["label 4", "'sad'", "label 5"]),
])
@pytest.mark.parametrize("variant", vision.VARIANTS)
def test_arrays_whose_class_order_cannot_be_checked_are_refused(tmp_path, task, names, parts, variant):
    write_npz(tmp_path, task, names, {"train": len(names), "test": len(names)})
    refused(task, vision.Sources(variant, tmp_path / "cache", tmp_path), *parts)


def test_arrays_may_have_numbers_before_names(tmp_path):
    """As folders may; the names say the order."""
    names = ["airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck"]
    numbered = [f"{label}_{name}" for label, name in enumerate(names)]
    given = vision.Sources("tall", tmp_path / "cache", tmp_path)
    write_npz(tmp_path, "cifar10", numbered, {"train": 10, "test": 10})
    assert len(vision.load("cifar10", given, None, SIZE).test_labels) == 10
    write_npz(tmp_path, "cifar10", [numbered[1], numbered[0], *numbered[2:]], {"train": 10, "test": 10})
    refused("cifar10", given, "order cannot be checked")

"""The order of classes is that of the prompts, whatever their spelling."""

from __future__ import annotations

import random
import re

import pytest

from fusionbench_lite.models import prompts as prompts_module
from fusionbench_lite.models.text_heads import check_order, prompts
from tests.models.test_text_heads import TASKS
from tests.support.clip_models import input_refused

# ---------------------------------------------------------------- the order of the classes


@pytest.mark.parametrize("task", TASKS)
@pytest.mark.parametrize("variant", ["tall", "fusionbench"])
def test_the_prompts_own_names(task, variant):
    names = list(prompts(task, variant).classnames)
    if task == "fer2013" and variant == "tall":
        names = ["angry", "disgust", "fear", "happy", "neutral", "sad", "surprise"]
    assert check_order(task, variant, names) == "checked"
    assert check_order(task, variant, [name.upper().replace(" ", "_").replace("-", "__") for name in names]) == "checked"
    assert check_order(task, variant, None) == "not comparable"
    assert check_order(task, variant, [chr(0x4E00 + number) for number in range(len(names))]) == "not comparable"
    with input_refused(task, f"label {len(names) - 2} ", re.escape(repr(names[-1])), "renumber"):
        check_order(task, variant, [*names[:-2], names[-1], names[-2]])
    with input_refused(task, str(len(names) + 1), str(len(names)), variant):
        check_order(task, variant, [*names, "more"])


@pytest.mark.parametrize("task", TASKS)
def test_any_other_order_is_refused(task):
    names = [spellings[0] for spellings in prompts_module.spellings(task, "fusionbench")]
    for seed in range(5):
        moved = names.copy()
        random.Random(seed).shuffle(moved)
        if moved != names:
            with input_refused(task, "renumber"):
                check_order(task, "fusionbench", moved)


def test_spellings_are_of_one_class_each():
    for task in TASKS:
        for variant in prompts_module.VARIANTS:
            spellings = prompts_module.spellings(task, variant)
            plain = [{prompts_module.plain(name) for name in known} for known in spellings]
            assert len(set().union(*plain)) == sum(map(len, plain)), task
    assert set(prompts_module._read("class_names.yaml")) <= set(TASKS)


def test_names_that_torchvision_gives():
    import fusionbench_lite.base.torchvision_ops  # noqa: F401

    # isort: split

    from torchvision import datasets

    for task, names in {
        "flowers102": datasets.Flowers102.classes, "mnist": datasets.MNIST.classes, "fashion_mnist": datasets.FashionMNIST.classes,
        "kmnist": datasets.KMNIST.classes,
    }.items():
        for variant in ("tall", "fusionbench"):
            assert check_order(task, variant, names) == "checked", task
    letters = datasets.EMNIST.classes_split_dict["letters"]
    with input_refused("27", "26"):
        check_order("emnist", "fusionbench", letters)
    assert check_order("emnist", "fusionbench", letters[1:]) == "checked"
    with input_refused("26", "10", "tall"):
        check_order("emnist", "tall", letters[1:])


KNOWN = {
    "eurosat": [
        "AnnualCrop", "Forest", "HerbaceousVegetation", "Highway", "Industrial", "Pasture", "PermanentCrop", "Residential", "River",
        "SeaLake",
    ],
    "svhn": list("0123456789"),
    "stl10": ["airplane", "bird", "car", "cat", "deer", "dog", "horse", "monkey", "ship", "truck"],
    "cifar10": ["airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck"],
    "gtsrb": [f"{number:05d}" for number in range(43)],
    "flowers102": [str(number) for number in range(1, 103)],
    "stanford_cars": [str(number) for number in range(1, 197)],
    "oxford_iiit_pet": [name.replace(" ", "_") for name in prompts("oxford_iiit_pet", "tall").classnames],
    "sun397": [f"/{name[0]}/{name.replace(' ', '_')}" for name in prompts("sun397", "tall").classnames],
    "pcam": ["False", "True"],
    "fer2013": ["anger", "disgust", "fear", "happiness", "neutral", "sadness", "surprise"],
}


@pytest.mark.parametrize("task", KNOWN)
@pytest.mark.parametrize("variant", ["tall", "fusionbench"])
def test_known_spellings(task, variant):
    assert check_order(task, variant, KNOWN[task]) == "checked"


@pytest.mark.parametrize("task", ["gtsrb", "flowers102", "stanford_cars", "dtd", "resisc45"])
def test_numbered_folders_sorted_as_text(task):
    """torchvision's ImageFolder numbers them 0, 1, 10, 11, ...: the label is not the number."""
    for start in (0, 1):
        names = [str(number) for number in range(start, TASKS[task] + start)]
        with input_refused(task, "label [12]", "'1[01]'", "label (9|10)", "renumber"):
            check_order(task, "tall", sorted(names))
        expected = {"gtsrb": 0, "flowers102": 1, "stanford_cars": 1}.get(task) == start
        assert check_order(task, "tall", names) == ("checked" if expected else "not comparable")
    assert check_order(task, "tall", [str(7 * number) for number in range(TASKS[task])]) == "not comparable"


def test_the_emotions_of_the_csv_file_are_in_another_order():
    original = ["angry", "disgust", "fear", "happy", "sad", "surprise", "neutral"]
    for variant in ("tall", "fusionbench"):  # the tall heads' rows are permuted, the labels they were trained on are not
        with input_refused("fer2013", "label 4", "'sad'", "label 5", "'neutral'"):
            check_order("fer2013", variant, original)


def test_one_unknown_name_has_the_place_that_is_left():
    names = list(prompts("cifar10", "tall").classnames)
    names[1] = "vehicle"
    assert check_order("cifar10", "tall", names) == "checked"
    names[4] = "hart"
    assert check_order("cifar10", "tall", names) == "not comparable"
    names[7], names[8] = names[8], names[7]
    with input_refused("label 7", "'ship'", "label 8"):
        check_order("cifar10", "tall", names)


def test_zeros_before_numbers_and_classes_without_a_majority():
    assert check_order("mnist", "tall", [f"{number:03d}" for number in range(10)]) == "checked"
    with input_refused("mnist", "label 0", "'010'|'001'"):
        check_order("mnist", "tall", [f"{number + 1:03d}" for number in range(10)])
    assert check_order("rendered_sst2", "tall", ["bad", "positive"]) == "checked"
    assert check_order("rendered_sst2", "tall", ["bad", "good"]) == "not comparable"
    assert check_order("rendered_sst2", "tall", ["0", "1"]) == "not comparable"
    with input_refused("label 0", "'positive'"):
        check_order("rendered_sst2", "tall", ["positive", "bad"])
    with input_refused("label 0", "'True'", "label 1"):
        check_order("pcam", "tall", ["True", "False"])

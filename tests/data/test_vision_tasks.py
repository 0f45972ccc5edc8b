"""The table of vision tasks: sizes, names, validation splits, settings that cannot be."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from fusionbench_lite.data import vision
from fusionbench_lite.data.vision import folders
from fusionbench_lite.errors import InputError
from fusionbench_lite.models import text_heads
from tests.data.test_vision_data import order  # noqa: F401
from tests.support.mirror import mirror as mirror

# ---------------------------------------------------------------- the table of tasks


@pytest.mark.parametrize("variant", vision.VARIANTS)
def test_the_table_agrees_with_the_prompts(variant):
    assert len(vision.names()) == 20
    for name in vision.names():
        task = vision.task(name, variant)
        assert len(text_heads.prompts(name, variant).classnames) == task.classes
        assert tuple(text_heads.prompts(name, variant).classnames) == folders.class_names(task)[0]
        assert (task.hub is None) == ((name, variant) == ("emnist", "tall")) == (task.archive is not None)
        assert all(caveat.endswith(".") and "\n" not in caveat for caveat in vision.caveats(name, variant))
    assert {n for n in vision.names() if vision.task(n, variant).hub and vision.task(n, variant).hub.corrupted} == {
        "stanford_cars", "eurosat", "resisc45", "gtsrb"
    }


def test_published_sizes():
    total = sum(vision.task(name, "tall").test for name in vision.names())
    assert total == sum([19850, 8041, 6300, 2700, 26032, 12630, 10000, 1880, 10000, 8000, 6149, 3669, 32768, 7178, 40000, 10000,
                         25250, 10000, 1821, 10000])
    assert vision.task("emnist", "fusionbench").test == 20800
    assert vision.task("fer2013", "tall").test_sizes == (7178, 3589)


def test_validation_split_of_the_published_code():
    train, held = vision.validation_rows(60000)
    assert train[0] == 36044
    assert (len(train), len(held)) == (55000, 5000)
    parts = torch.utils.data.random_split(range(60000), [55000, 5000], torch.Generator().manual_seed(0))
    assert np.array_equal(held, parts[1].indices)
    published = {
        "sun397": 1985, "stanford_cars": 814, "resisc45": 1890, "svhn": 5000, "gtsrb": 2664, "mnist": 5000, "dtd": 376,
        "cifar100": 5000, "stl10": 500, "flowers102": 102, "oxford_iiit_pet": 368, "pcam": 5000, "fer2013": 2870, "emnist": 5000,
        "cifar10": 5000, "food101": 5000, "fashion_mnist": 5000, "rendered_sst2": 692, "kmnist": 5000,
    }
    assert {name: len(vision.validation_rows(vision.task(name, "tall").train)[1]) for name in published} == published
    assert len(vision.validation_rows(73257, cap=None)[1]) == 7325


def test_unknown_names(tmp_path):
    with pytest.raises(InputError, match="did you mean 'stanford_cars'"):
        vision.task("stanford_car", "tall")
    with pytest.raises(InputError, match="did you mean 'tall'"):
        vision.task("dtd", "tal")
    broken = tmp_path / "tasks.yaml"
    for content, message in (("dtd: {classes: 3}", "incomplete"), ("- a", "one mapping per task"), ("a: [", "not readable YAML")):
        broken = tmp_path / f"{len(content)}{message[:3]}.yaml"
        broken.write_text(content)
        with pytest.raises(InputError, match=message):
            vision.task("dtd", "tall", broken)


@pytest.mark.parametrize(("change", "message"), [
    ({"variant": "tal"}, "did you mean 'tall'"), ({"source": "hubb"}, "did you mean 'hub'"), ({"limit": 0}, "1 or null, got 0"),
    ({"skip_corrupt": -1}, "at least 0"), ({"skip_corrupt": True}, "got True"), ({"severity": 6}, "1 to 5, got 6"),
    ({"corruption": "motion"}, "did you mean 'motion_blur'"), ({"source": "folder"}, "set data_dir"),
])  # fmt: skip
def test_settings_that_cannot_be(tmp_path, change, message):
    with pytest.raises(InputError, match=message):
        vision.Sources(**{"variant": "tall", "cache": tmp_path, **change})

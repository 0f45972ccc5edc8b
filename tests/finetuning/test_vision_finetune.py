"""Experts that are trained here, in the place of published ones: FusionBench's form, and the rules of merging of their family."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from fusionbench_lite import finetune
from fusionbench_lite.models import clip_sizes
from fusionbench_lite.running import loading
from tests.support import vision_data
from tests.support.lines import called
from tests.support.mirror import mirror  # noqa: F401  (a fixture)
from tests.support.vision_suite import TASKS, Suite, small  # noqa: F401  (a fixture)

ZEROS = 25_599_489
SOURCE = "preset: entries of the text-side tensors of an image encoder as released, ViT-B/32 and B/16"


def trained(suite: Suite, line: str) -> str:
    """Run `finetune` for two steps and return what it printed."""
    status, said = called(finetune.main, suite.line(f"finetune.steps=2 finetune.batch=8 {line}"))
    assert status == 0, said
    return said


def refused(suite: Suite, *arguments: str) -> str:
    """Return the one line of a `finetune` that is refused; `arguments` are not completed."""
    given = [one for one in suite.line("") if not one.startswith("tasks=")]
    status, said = called(finetune.main, [*given, *arguments])
    assert status == 2, said
    assert len(said.splitlines()) == 1
    return said


def test_fusionbench_experts_are_trained_and_merged(small: Suite):  # noqa: F811
    folder = small.folder / "own"
    for task in ("mnist", "dtd"):
        trained(small, f"checkpoints=fusionbench task={task} finetune.out={folder}")
    base = load_file(folder / "pretrained.safetensors")
    expert = load_file(folder / "individual-mnist.safetensors")
    assert set(expert) == set(base)
    assert all(name.startswith("vision_model.") for name in base)  # no projection, as in the release
    assert any(not torch.equal(expert[name], base[name]) for name in base)
    assert json.loads((folder / "manifest.json").read_text())["family"] == "fusionbench"
    record = small.run(f"method=ties_merging checkpoints=own checkpoints.dir={folder}")
    assert record.data["checkpoints"]["layout"] == "separate"
    assert record.data["hyperparameters"]["virtual_zeros"] == {"value": 0, "source": "default"}
    assert not any("virtual_zeros" in caveat for caveat in record.data.get("caveats", []))
    packed = small.run(f"method=individual checkpoints=own checkpoints.dir={folder} model.layout=packed")
    separate = small.run(f"method=individual checkpoints=own checkpoints.dir={folder}")
    first, second = (np.load(one.path / "samples.npz") for one in (packed, separate))
    for name, predictions in first.items():
        np.testing.assert_array_equal(predictions, second[name])
    joint = trained(small, f"checkpoints=fusionbench finetune.recipe=joint finetune.images=square finetune.out={folder}")
    assert "traditional_mtl" in joint
    assert set(load_file(folder / "traditional_mtl.safetensors")) == set(base)  # the projection stays, whatever the recipe
    loading._latest.clear()  # the file is new
    small.run(f"method=traditional_mtl checkpoints=own checkpoints.dir={folder}")


def test_emnist_is_letters_for_fusionbench_and_for_what_stands_in_for_it(small: Suite):  # noqa: F811
    sizes = {"train": 52, "test": 26}
    vision_data.write_hub_task(small.mirror.root / "datasets", "emnist", "fusionbench", sizes)
    small.tasks_file = vision_data.small_tasks(small.folder / "tasks.yaml", {**TASKS, "emnist": (52, 26)})
    folder = small.folder / "own"
    trained(small, f"checkpoints=fusionbench task=emnist finetune.out={folder}")
    assert len(load_file(folder / "heads.safetensors")["emnist"]) == 26
    (folder / "heads.safetensors").unlink()  # built again, from the prompts of the same variant
    record = small.run(f"method=individual checkpoints=own checkpoints.dir={folder} tasks=[emnist]")
    assert record.data["selections"]["last"]["per_task"]["emnist"]["examples"] == 26


@pytest.mark.parametrize("family", ["ta", "tall", "ta_tall"])
def test_experts_trained_here_count_the_zeros_of_their_family(small: Suite, family: str):  # noqa: F811
    folder = small.folder / "own"
    trained(small, f"checkpoints={family} finetune.images=square finetune.out={folder}")
    line = f"checkpoints=own checkpoints.dir={folder}"
    zeros = small.run(f"method=ties_merging {line}").data["hyperparameters"]["virtual_zeros"]
    published = small.run(f"method=ties_merging checkpoints={family}").data["hyperparameters"]["virtual_zeros"]
    assert published == {"value": ZEROS, "source": SOURCE}
    assert zeros == {"value": ZEROS, "source": f"{SOURCE}; the experts' manifest.json says family {family}"}
    if family != "tall":
        return
    (folder / "manifest.json").unlink()
    record = small.run(f"method=ties_merging {line}")
    assert record.data["hyperparameters"]["virtual_zeros"] == {"value": 0, "source": "default"}
    assert any(caveat.startswith("virtual_zeros is 0") for caveat in record.data["caveats"])
    other = small.run(f"method=weight_averaging {line}")
    assert not any("virtual_zeros" in caveat for caveat in other.data.get("caveats", []))
    adapters = "method=surgery method.base=ties_merging steps=1 method.adaptation.batch_size=2 method.adaptation.eval_every=1"
    record = small.run(f"{adapters} {line}")
    assert any(caveat.startswith("virtual_zeros is 0") for caveat in record.data["caveats"])
    given = small.run(f"method=ties_merging method.virtual_zeros=5 {line}")
    assert not any("virtual_zeros" in caveat for caveat in given.data.get("caveats", []))
    trained(small, f"checkpoints=tall finetune.images=square finetune.out={folder} overwrite=true")
    zeros = small.run(f"method=ties_merging {line} overwrite=true").data["hyperparameters"]["virtual_zeros"]
    assert zeros["value"] == ZEROS


@pytest.mark.parametrize(("content", "said"), [
    ('{"family": "tal"}', "family is 'tal', which no experts are published under: did you mean 'tall'?"),
    ('{"family": ["ta"]}', "family is ['ta']"), ("{", "manifest.json cannot be read"),
])
def test_a_manifest_that_says_nothing_sound_is_refused(
    small: Suite, content: str, said: str, tmp_path: Path  # noqa: F811
):
    (tmp_path / "own").mkdir()
    (tmp_path / "own" / "manifest.json").write_text(content)
    assert said in small.refused(f"checkpoints=own checkpoints.dir={tmp_path / 'own'}")


def test_a_folder_with_a_space_is_given_in_quotes_within_quotes(small: Suite, monkeypatch: pytest.MonkeyPatch):  # noqa: F811
    monkeypatch.chdir(small.folder)
    folder = small.folder / "my own é"
    status, said = called(finetune.main, [
        *small.line("task=mnist"), "finetune.steps=1", "finetune.batch=4", "finetune.images=square", f"finetune.out='{folder}'",
    ])
    assert status == 0, said
    assert (folder / "individual-mnist.safetensors").is_file()
    assert not (small.folder / "'").exists()


def test_tasks_are_named_once(small: Suite):  # noqa: F811
    assert "task=mnist and tasks=8 name tasks" in refused(small, "task=mnist", "tasks=8")
    assert "task=mnist and task=dtd name tasks" in refused(small, "task=mnist", "task=dtd")
    assert "task=mnist and ++tasks=8 name tasks" in refused(small, "task=mnist", "++tasks=8")
    said = refused(small)
    assert "add task=sun397 for one, tasks=[sun397,stanford_cars] for some, or tasks=8 for all 8" in said
    assert "unknown recipe 'x'" in refused(small, "tasks=8", "finetune.recipe=x")  # 8 are all right when they are asked for


def test_the_embedded_model_trains_its_task_set_unasked():
    from fusionbench_lite.planning.command_line import plan_of

    finetune._check_choice([], plan_of(["model=vit_mini"]))
    for model in clip_sizes.SIZES:
        with pytest.raises(ValueError, match="no task is named"):
            finetune._check_choice([], plan_of([f"model={model}"]))

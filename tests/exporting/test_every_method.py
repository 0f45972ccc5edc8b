"""Every method on vit_mini, run, exported, and loaded again: the predictions are the record's."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

import fusionbench_lite as fbl
from fusionbench_lite import registry
from fusionbench_lite.data import load_task
from fusionbench_lite.tables import records

TASKS = ("digits", "signs")
SMALL = (
    "tasks=[digits,signs]", "limit=40", "model=vit_mini_small",
    "checkpoints.recipe={pretrain_steps: 4, finetune_steps: 6, multitask_steps: 3}",
)
ADAPTED = ("steps=3", "method.adaptation.eval_every=3", "method.adaptation.batch_size=4")
MORE = {
    "metamerging": ("method.adapters=final",), "pareto_merging": ("method.preference=task",),
    "map": ("method.adaptation.eval_every=1",),
    "regmean": ("method.statistics.examples=16",), "fisher_merging": ("method.statistics.examples=16",),
    "tatr": ("method.statistics.examples=16",),
}
FORMS = {
    "tall_masks": "masks", "emr_merging": "masks", "tsv_c": "masks", "surgery": "adapters", "surgery_v2": "adapters",
    "prob_surgery": "adapters", "metamerging": "adapters", "wemoe": "routers", "twin_merging": "twin",
}
A_FOLDER_EACH = ("individual", "pareto_merging")


def run(command, folder, method: str, *more: str) -> records.Record:
    """Make the record of a method."""
    steps = ADAPTED if registry.get(method).adaptive else ()
    given = {one.partition("=")[0]: one for one in (*steps, *MORE.get(method, ()), *more)}
    done = command(f"method={method}", *SMALL, *given.values())
    assert done.returncode == 0, done.stderr
    (found,) = [record for record in records.read_all(folder / "results") if record.method == method]
    return found


def images(task: str, cache) -> torch.Tensor:
    return torch.from_numpy(load_task(task, data_dir=None, seed=0, cache_dir=cache).test_images[:40])


@pytest.mark.slow
@pytest.mark.parametrize("method", registry.names())
def test_predictions_of_the_files_are_those_of_the_record(command, tmp_path, shared_cache, method: str):
    """A method that is added without a form in files fails here."""
    record = run(command, tmp_path, method)
    out = tmp_path / "a [model] of ümläut"
    done = command(str(record.path), f"out={out}", module="fusionbench_lite.export")
    assert done.returncode == 0, done.stderr + done.stdout
    samples = np.load(record.path / "samples.npz")
    for task in TASKS:
        assert f"{task}: 40 of 40 predictions equal" in done.stdout
        folder = out / task if method in A_FOLDER_EACH else out
        model = fbl.load_exported(folder)
        made = model.logits(model.prepare(images(task, shared_cache)), task).argmax(-1).numpy()
        rule = record.data["select"] if record.data["select"] in record.data["selections"] else "last"
        assert (made == samples[f"{rule}/{task}/predictions"]).all()
    said = json.loads(((out / "digits" if method in A_FOLDER_EACH else out) / "export.json").read_text())
    assert said["form"] == FORMS.get(method, "weights")
    assert (out / "README.md").is_file()


def test_weights_are_those_of_the_methods_own_merge(command, tmp_path):
    """The oracle is the package's merge of the same experts, called from here, and open_clip's own class that reads the file."""
    from open_clip.transformer import VisionTransformer

    record = run(command, tmp_path, "ties_merging")
    out = tmp_path / "out"
    assert command(record.key[:6], f"out={out}", module="fusionbench_lite.export").returncode == 0
    stored = load_file(out / "model.safetensors")
    size = json.loads((out / "export.json").read_text())["encoder"]["size"]
    tower = VisionTransformer(
        image_size=size["image"], patch_size=size["patch"], width=size["width"], layers=size["layers"], heads=size["heads"],
        mlp_ratio=4.0, output_dim=size["output"],
    )
    assert tower.load_state_dict(stored, strict=True).missing_keys == []


@pytest.mark.parametrize(
    ("method", "more"),
    [
        ("surgery", ("method.base=adamerging_layerwise", "method.adaptation.base_steps=2")),
        ("prob_surgery", ("method.shared=true",)),
        ("surgery", ("method.normalise=true", "method.moments=all")),
        ("metamerging", ("method.adapters=none",)),
        ("metamerging", ("method.base=task_arithmetic", "method.adapters=blocks")),
        ("wemoe", ("method.routing=batch",)),
        ("pareto_merging", ("method.preference=equal",)),
        ("ties_merging", ("checkpoints.experts=1",)),
        ("task_arithmetic", ("precision=bf16",)),
        ("tall_masks", ("precision=bf16",)),
    ],
)
def test_settings_that_change_what_is_written(command, tmp_path, method: str, more: tuple[str, ...]):
    record = run(command, tmp_path, method, *more)
    done = command(str(record.path), f"out={tmp_path / 'out'}", module="fusionbench_lite.export")
    assert done.returncode == 0, done.stderr + done.stdout
    assert all(f"{task}: 40 of 40 predictions equal" in done.stdout for task in TASKS)


def test_adapters_need_the_record_that_they_sit_on(command, tmp_path):
    record = run(command, tmp_path, "surgery", "method.base=adamerging_layerwise", "method.adaptation.base_steps=2")
    (base,) = [path for path in record.path.parent.iterdir() if path.name.startswith("adamerging")]
    base.rename(tmp_path / base.name)
    done = command(str(record.path), f"out={tmp_path / 'out'}", module="fusionbench_lite.export")
    assert done.returncode == 2
    assert f"sit on adamerging_layerwise, whose record {base.name.rpartition('-')[2]} is not in" in done.stderr
    assert not any(path.name.startswith("adamerging") for path in record.path.parent.iterdir()), "no step is taken"

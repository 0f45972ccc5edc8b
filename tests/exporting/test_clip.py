"""CLIP's models in open_clip's and transformers' layout, loaded by those libraries here."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from fusionbench_lite import export
from fusionbench_lite.data import vision
from fusionbench_lite.models import clip
from fusionbench_lite.planning.command_line import plan_of
from fusionbench_lite.running import loading
from fusionbench_lite.suites.clip.requests import sources_of
from tests.support import clip_models
from tests.support.mirror import mirror  # noqa: F401
from tests.support.vision_suite import SMALL, Suite, small  # noqa: F401

TASKS = ("mnist", "dtd")


def written(suite: Suite, line: str, out: Path, *keys: str):
    """Run a line, export its record, and return both."""
    record = suite.run(line)
    assert export.main([str(record.path), f"out={out}", *keys]) == 0
    return record, out


def pixels(suite: Suite, line: str, task: str) -> torch.Tensor:
    plan = plan_of(suite.line(line))
    stored = vision.load(task, sources_of(plan.wanted), lambda *a: None).test_images
    return clip.normalise(torch.from_numpy(np.stack([stored[number] for number in range(len(stored))])))


def agree(record, task: str, features: torch.Tensor, out: Path) -> bool:
    """Whether the cosines with the written head predict what the record holds."""
    head = load_file(out / "heads.safetensors")[f"{task}/weight"]
    logits = 100 * torch.nn.functional.normalize(features, dim=-1) @ head.T
    return bool((logits.argmax(-1).numpy() == np.load(record.path / "samples.npz")[f"last/{task}/predictions"]).all())


@pytest.mark.parametrize("family", ["ta_tall", "fusionbench"])
def test_open_clip_loads_the_whole_model(small: Suite, tmp_path: Path, family: str, capsys):  # noqa: F811
    import open_clip

    line = f"method=task_arithmetic checkpoints={family}"
    record, out = written(small, line, tmp_path / "a folder [1]", "layout=open_clip")
    said = capsys.readouterr().out
    assert "mnist: 30 of 30 predictions equal" in said
    model, _, preprocess = open_clip.create_model_and_transforms(f"local-dir:{out}")
    model.eval()
    for task in TASKS:
        with torch.no_grad():
            assert agree(record, task, model.encode_image(pixels(small, line, task)), out)
    assert model.encode_text(torch.ones(1, SMALL.context, dtype=torch.long)).shape == (1, SMALL.output)
    assert preprocess.transforms[0].size == SMALL.image
    classes = json.loads((out / "heads.json").read_text())["dtd"]["classes"]
    assert len(classes) == 47


@pytest.mark.parametrize("family", ["ta_tall", "fusionbench"])
def test_transformers_loads_the_whole_model(small: Suite, tmp_path: Path, family: str):  # noqa: F811
    import transformers

    line = f"method=ties_merging checkpoints={family}"
    record, out = written(small, line, tmp_path / "hf", "layout=transformers")
    model, said = transformers.CLIPModel.from_pretrained(out, output_loading_info=True)
    assert not said["missing_keys"]
    assert not said["unexpected_keys"]
    for task in TASKS:
        with torch.no_grad():
            features = model.eval().visual_projection(model.vision_model(pixel_values=pixels(small, line, task)).pooler_output)
        assert agree(record, task, features, out)


def test_both_layouts_have_one_text_side(small: Suite, tmp_path: Path):  # noqa: F811
    """The same tokens through open_clip's and transformers' text towers."""
    import open_clip
    import transformers

    record = small.run("method=weight_averaging checkpoints=fusionbench")
    for layout in ("open_clip", "transformers"):
        assert export.main([str(record.path), f"out={tmp_path / layout}", f"layout={layout}"]) == 0
    tokens = torch.zeros(2, SMALL.context, dtype=torch.long)
    tokens[:, :4] = torch.tensor([[49406, 320, 1125, 49407], [49406, 539, 320, 49407]])
    ours = open_clip.create_model(f"local-dir:{tmp_path / 'open_clip'}").eval()
    theirs = transformers.CLIPModel.from_pretrained(tmp_path / "transformers").eval()
    with torch.no_grad():
        first = ours.encode_text(tokens)
        second = theirs.text_projection(theirs.text_model(input_ids=tokens).pooler_output)
    assert torch.allclose(first, second, atol=1e-5)


@pytest.mark.parametrize(("method", "more"), [("tall_masks", ""), ("surgery", "steps=2 method.adaptation.batch_size=4")])
def test_parts_of_tasks_need_the_own_layout(small: Suite, tmp_path: Path, method: str, more: str, capsys):  # noqa: F811
    record = small.run(f"method={method} {more} checkpoints=fusionbench")
    assert export.main([str(record.path), f"out={tmp_path / 'a'}", "layout=open_clip"]) == 2
    assert "holds weights alone" in capsys.readouterr().err
    assert export.main([str(record.path), f"out={tmp_path / 'b'}"]) == 0
    assert (tmp_path / "b" / "parts.safetensors").is_file()


def test_one_whole_model_per_task_where_it_is_asked_for(small: Suite, tmp_path: Path):  # noqa: F811
    import open_clip

    line = "method=tall_masks checkpoints=ta_tall"
    record, out = written(small, line, tmp_path / "out", "compact=false", "layout=open_clip")
    for task in TASKS:
        model = open_clip.create_model(f"local-dir:{out / task}").eval()
        with torch.no_grad():
            assert agree(record, task, model.encode_image(pixels(small, line, task)), out / task)


def test_files_of_ones_own_without_a_text_side_give_the_image_tower(small: Suite, tmp_path: Path, capsys):  # noqa: F811
    import transformers

    folder = tmp_path / "files"
    folder.mkdir()
    for number, name in enumerate(("pretrained", "individual-mnist")):
        save_file(clip_models.packed_weights(number + 1, SMALL), folder / f"{name}.safetensors")
    head = torch.nn.functional.normalize(torch.randn(10, SMALL.output, generator=torch.Generator().manual_seed(0)), dim=-1)
    save_file({"mnist": head}, folder / "heads.safetensors")
    line = f"method=task_arithmetic checkpoints=own checkpoints.dir={folder} tasks=[mnist]"
    record = small.run(line)
    assert export.main([str(record.path), f"out={tmp_path / 'x'}", "layout=open_clip"]) == 2
    assert "are not written with layout=open_clip" in capsys.readouterr().err
    out = tmp_path / "out"
    assert export.main([str(record.path), f"out={out}"]) == 0
    assert "this is the image tower alone" in (out / "README.md").read_text()
    tower = transformers.CLIPVisionModelWithProjection.from_pretrained(out).eval()
    with torch.no_grad():
        assert agree(record, "mnist", tower(pixel_values=pixels(small, line, "mnist")).image_embeds, out)
    loading._latest.clear()  # of this process, which a command of its own would not have
    save_file(clip_models.packed_weights(9, SMALL), folder / "individual-mnist.safetensors")
    assert export.main([str(record.path), f"out={tmp_path / 'y'}"]) == 2
    assert "the checkpoint 'individual-mnist.safetensors' had SHA-256" in capsys.readouterr().err

"""Models, checkpoint families, layouts and data settings of the command line, before anything is loaded."""

from __future__ import annotations

import re
import subprocess
import sys

import pytest

from fusionbench_lite import components, doctor
from fusionbench_lite.errors import InputError
from fusionbench_lite.finetune import Options
from fusionbench_lite.models import clip
from fusionbench_lite.planning.command_line import options_of, plan_of
from fusionbench_lite.suites.clip.requests import variant_of
from tests.conftest import ROOT


@pytest.mark.parametrize(
    ("line", "family", "layout", "tasks"),
    [
        ("", "embedded", None, 8),
        ("model=vit_b32", "ta_tall", "packed", 8),
        ("model=vit_l14 tasks=20", "ta_tall", "packed", 20),
        ("model=vit_b16 checkpoints=tall tasks=14", "tall", "packed", 14),
        ("model=vit_b32 checkpoints=fusionbench", "fusionbench", "separate", 8),
        ("model=vit_b32 checkpoints=fusionbench model.layout=packed", "fusionbench", "packed", 8),
        ("model=vit_b32 checkpoints=ta model.layout=separate tasks=[dtd,svhn]", "ta", "separate", 2),
    ],
)
def test_the_suite_of_a_line(line: str, family: str, layout: str | None, tasks: int):
    plan = plan_of(line.split())
    assert (plan.wanted.family, plan.wanted.layout, len(plan.tasks)) == (family, layout, tasks)
    assert variant_of(plan.wanted) == ("fusionbench" if family == "fusionbench" else "tall")


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("model=vit_b31", "did you mean 'vit_b32'"),
        ("checkpoints=tal", "unknown checkpoints 'tal'"),
        ("checkpoints=ta", "not of vit_mini"),
        ("model=vit_b32 checkpoints=embedded", "checkpoints=ta_tall"),
        ("model=vit_b32 checkpoints=own", "checkpoints.dir"),
        ("checkpoints=own", "checkpoints.dir"),
        ("model=vit_b32 model.layout=pakced", "did you mean 'packed'"),
        ("+model.layout=packed", "one layout"),
        ("model=vit_b32 checkpoints=ta tasks=20", "'stl10'"),
        ("model=vit_b32 tasks=mini8", "'digits'"),
        ("model=vit_b32 tasks=[sun379]", "did you mean 'sun397'"),
        ("model=vit_b32 data.source=hup", "did you mean 'hub'"),
        ("model=vit_b32 data.corruption=gausian_noise", "did you mean 'gaussian_noise'"),
        ("model=vit_b32 data.source=folder", "set data_dir="),
        ("model=vit_b32 data.corruption_from=split", "did you mean 'splits'"),
        ("model=vit_b32 data.severity=6", "data.severity must be an integer from 1 to 5, got 6"),
        ("model=vit_b32 data.skip_corrupt=-1", "at least 0, got -1"),
        ("model=vit_b32 data.severity=3", "add data.corruption=motion_blur or another and data.corruption_from=generated"),
        ("model=vit_b32 data.severity=3 data.corruption=contrast", "generated here: add data.corruption_from=generated, or"),
        ("model=vit_b32 data.severity=3 data.corruption_from=generated", "corruption_from=generated names no corruption"),
        ("model=vit_b32 data.corruption_from=generated", "add data.corruption=motion_blur or another"),
        ("data.severity=3", "add data.corruption=motion_blur or another"),
        ("data.corruption_from=generated", "corruption_from=generated names no corruption"),
        ("data.source=hup", "not of vit_mini"),
        ("data.corruption=contrats", "did you mean 'contrast'"),
        ("data.corruption=contrast data.severity=6", "data.severity must be an integer from 1 to 5, got 6"),
        ("model=vit_b32 trainer.eval_batch=0", "trainer.eval_batch must be an integer of at least 1"),
        ("model=vit_b32 checkpoints.place=disc", "checkpoints.place must be one of auto, device, cpu, disk (did you mean 'disk'?)"),
        ("model=vit_b32 device=cuda:x", "device must be auto, cpu, cuda or a numbered one, as cuda:1, got 'cuda:x'"),
        ("model=vit_b32 checkpoints.experts=9", "checkpoints.experts must be a number from 1 to 8 or a list of different tasks"),
        ("model=vit_b32 checkpoints.experts=[dtd,dtd]", "or null, got ['dtd', 'dtd']"),
        ("model=vit_b32 checkpoints.experts=[dt]", "'dt' is none of the tasks: did you mean 'dtd'"),
        ("model=vit_b32 checkpoints.famly=ta", "checkpoints.family"),
        ("model=vit_b32 checkpoints.recipe={warmup:3}", "finetune.recipe"),
    ],
)
def test_refusals_name_the_fix(line: str, said: str):
    with pytest.raises(InputError, match=re.escape(said)):
        plan_of(line.split())


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("method=task_arithmetic", False), ("method=regmean", True), ("method=adarank", True),
        ("method=adarank method.adaptation.held_out=0", False), ("method=twin_merging method.adaptation.held_out=0", True),
        ("method=twin_merging method.adaptation.held_out=0 method.router=entropy", False),
    ],
)
def test_which_runs_read_training_images(line: str, expected: bool):
    assert plan_of(line.split()).reads_training == expected


@pytest.mark.parametrize("model", list(clip.SIZES))
def test_virtual_zeros_are_the_text_side_tensors(model: str):
    size = clip.SIZES[model]
    shapes = clip.text_shapes(size)
    leftovers = 0
    for name, shape in shapes.items():
        if not name.startswith("transformer."):
            count = 1
            for side in shape:
                count *= side
            leftovers += count
    for method in ("ties_merging", "pcb_merging", "tall_masks", "consensus_ties", "ties_dare", "adamerging_pp_layerwise"):
        setting = plan_of([f"model={model}", f"method={method}"]).hyperparameters["virtual_zeros"]
        assert setting.value == leftovers
        assert setting.source.startswith("preset")
        assert plan_of([f"model={model}", f"method={method}", "checkpoints=fusionbench"]).values["virtual_zeros"] == 0
        assert plan_of([f"model={model}", f"method={method}", "method.virtual_zeros=7"]).values["virtual_zeros"] == 7


@pytest.mark.parametrize("words", [["checkpoints=ta", "tasks=20"], ["data.severity=6"], ["data.corruption=contrats"]])
def test_a_clip_line_is_refused_without_importing_torch(words: list[str]):
    code = (
        "import sys\n"
        "from fusionbench_lite.__main__ import main\n"
        f"sys.argv = ['fusionbench_lite', 'model=vit_b32', *{words}]\n"
        "status = main()\n"
        "print(status, 'torch' in sys.modules)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=60, check=True)
    assert done.stdout.split() == ["2", "False"]
    assert done.stderr.count("\n") == 1


def test_options_of_a_side_command_have_types():
    given = ["finetune.lr=1e-5", "finetune.steps=7", "finetune.recipe=tall", "finetune.evaluate_every=null"]
    assert options_of(given, "finetune.", Options) == Options(lr=1e-5, steps=7, recipe="tall")
    refused = {
        "steps=1.5": "an integer", "lr=fast": "a finite number in .* or null, got 'fast'", "stesp=3": "did you mean 'steps'",
        "steps=true": "an integer",
    }
    for wrong, said in refused.items():
        with pytest.raises(InputError, match=said):
            options_of([f"finetune.{wrong}"], "finetune.", Options)


def test_texts_of_options_are_read_by_their_kinds():
    given = ["out='a folder/1e5'", "recipe=null", "evaluate_every=", "lr=2", "batch=8"]
    assert options_of(given, "", Options) == Options(out="a folder/1e5", lr=2.0, batch=8)
    with pytest.raises(InputError, match=re.escape("doctor.format must be one of text, json (did you mean 'json'?), got 'jsn'")):
        options_of(["doctor.format=jsn"], "doctor.", doctor.Options)
    with pytest.raises(InputError, match="components.top must be an integer of at least 0, got -1"):
        options_of(["components.top=-1"], "components.", components.Options)
    for broken in ("[1", "null", "1e-5"):
        with pytest.raises(InputError, match=re.escape("finetune.checkpoint_every must be an integer of at least 1, got ")):
            options_of([f"finetune.checkpoint_every={broken}"], "finetune.", Options)


@pytest.mark.parametrize("model", ["vit_mini", "vit_b32"])
def test_tasks_of_files_in_data_dir_are_known_to_every_model(model: str, tmp_path):
    (tmp_path / "cats.npz").touch()
    checkpoints = ["checkpoints=own", f"checkpoints.dir={tmp_path}"]
    plan = plan_of([f"model={model}", "tasks=[cats]", f"data_dir={tmp_path}", *checkpoints])
    assert plan.tasks == ("cats",)
    with pytest.raises(InputError, match="did you mean 'cats'"):
        plan_of([f"model={model}", "tasks=[cat]", f"data_dir={tmp_path}", *checkpoints])

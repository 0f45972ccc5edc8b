"""The command line on CLIP models of a small size: every family, layout and kind of method, through a hub, on real formats."""

from __future__ import annotations

import json
import shutil

import numpy as np
import pytest
import torch

from fusionbench_lite import doctor, finetune, registry
from fusionbench_lite.__main__ import main
from fusionbench_lite.adaptation.engine.module import Adaptation
from fusionbench_lite.models import clip
from fusionbench_lite.running import loading
from tests.support import vision_files
from tests.support.lines import called
from tests.support.mirror import mirror  # noqa: F401  (a fixture)
from tests.support.vision_data import encoded, picture, write_parquet
from tests.support.vision_suite import SMALL, TASKS, Suite, small  # noqa: F401  (a fixture)

FAMILIES = {"ta": "[mnist,dtd]", "tall": "[mnist,dtd,stl10]", "ta_tall": "[mnist,stl10]", "fusionbench": "[dtd,stl10]"}


@pytest.mark.parametrize(("family", "tasks"), FAMILIES.items())
def test_families_run_in_both_layouts_to_the_same_predictions(small: Suite, family: str, tasks: str):  # noqa: F811
    line = f"checkpoints={family} tasks={tasks} method=task_arithmetic"
    found = {layout: small.run(f"{line} model.layout={layout}") for layout in clip.LAYOUTS}
    packed, separate = (np.load(record.path / "samples.npz") for record in found.values())
    assert set(packed) == set(separate)
    for name, predictions in packed.items():
        np.testing.assert_array_equal(predictions, separate[name])
    for layout, record in found.items():
        told = record.data["checkpoints"]
        assert (told["family"], told["layout"]) == (family, layout)
        assert all(len(sha) == 64 for sha in told["files"].values())
        assert all("@" in source for source in told["sources"].values())
        assert {task: cell["examples"] for task, cell in record.data["selections"]["last"]["per_task"].items()} == {
            task: TASKS[task][1] for task in record.data["tasks"]
        }
        assert all(entry["files"] for entry in record.data["images"].values())
    if family in ("tall",):
        assert any("DTD" in caveat for caveat in found["packed"].data["caveats"])


METHODS = [
    "weight_averaging", "ties_merging", "ta_dare", "magmax", "breadcrumbs", "pcb_merging", "emr_merging", "tall_masks",
    "consensus_ta", "tsv_m", "cart", "iso_c", "star", "knots_ta", "metagpt", "individual", "pretrained",
    "fisher_merging method.statistics.examples=8", "regmean method.statistics.examples=8", "doge_ta method.steps=3",
    "awd_ta method.steps=3", "adamerging_layerwise", "adarank", "adarank_tsvm", "doge_am", "surgery", "metamerging",
    "twin_merging", "wemoe",
]


@pytest.mark.parametrize("family", ["ta", pytest.param("fusionbench", marks=pytest.mark.slow)])
def test_every_kind_of_method_runs(small: Suite, family: str):  # noqa: F811
    for method in METHODS:
        name = method.split()[0]
        adapts = name == "adarank" or registry.get(name).adaptive
        budget = " steps=2 +method.adaptation.batch_size=3 +method.adaptation.eval_every=2" if adapts else ""
        budget = budget.replace("+method", "++method")
        record = small.run(f"checkpoints={family} method={method}{budget}")
        assert record.data["selections"]["last"]["step"] == (2 if adapts else 0)
        assert set(record.data["selections"]["last"]["per_task"]) == {"mnist", "dtd"}


def test_the_second_run_reads_no_image_and_asks_nothing(small: Suite, monkeypatch: pytest.MonkeyPatch):  # noqa: F811
    record = small.run("method=tsv_m")
    small.mirror.log.clear()
    small.mirror.close()
    loading._latest.clear()
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    assert small.again("method=tsv_m").path == record.path
    small.run("method=cart")
    assert not small.mirror.log


def test_an_adaptation_that_was_stopped_ends_with_the_same_bits(small: Suite):  # noqa: F811
    line = "method=adarank steps=6 method.adaptation.batch_size=4 method.adaptation.eval_every=3 trainer.checkpoint_every=2"
    whole = small.run(line)
    kept = {file.name: file.read_bytes() for file in whole.path.iterdir() if file.suffix in (".safetensors", ".npz", ".csv")}
    step = Adaptation.training_step

    def stopping(module: Adaptation, *arguments: object) -> None:
        if module.completed == 5:
            raise RuntimeError("stopped")
        step(module, *arguments)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Adaptation, "training_step", stopping)
        with pytest.raises(RuntimeError, match="stopped"):
            called(main, small.line(f"{line} overwrite=true"))
    loading._latest.clear()
    small.run(f"{line} overwrite=true")
    for name, content in kept.items():
        assert (whole.path / name).read_bytes() == content, name


@pytest.mark.parametrize("place", ["device", "cpu", "disk"])
def test_where_experts_stay_changes_nothing(small: Suite, place: str):  # noqa: F811
    budget = "steps=3 method.adaptation.batch_size=4 method.adaptation.eval_every=3"
    reference = small.run(f"method=adarank {budget}")
    found = small.run(f"method=adarank {budget} checkpoints.place={place} results_dir={small.folder / place}")
    assert found.key == reference.key
    for name in ("learned.safetensors", "history.csv"):
        assert (found.path / name).read_bytes() == (reference.path / name).read_bytes()


def test_corrupted_images_are_named_counted_and_left_out_only_where_allowed(small: Suite):  # noqa: F811
    repo = small.mirror.root / "datasets" / "tanganke" / "dtd"
    images = [encoded(picture(row % 47, row)) for row in range(47)]
    images[5] = images[5][: len(images[5]) // 2]
    images[11] = b"no image at all"
    file = next((repo / "data").glob("test-*.parquet"))
    write_parquet(file, images, [row % 47 for row in range(47)], None)
    said = small.refused("method=pretrained")
    assert "2 " in said
    assert "dtd" in said
    assert "skip_corrupt=2" in said
    assert "skip_corrupt=2" in small.refused("method=pretrained data.skip_corrupt=1")
    record = small.run("method=pretrained data.skip_corrupt=2")
    assert record.data["selections"]["last"]["per_task"]["dtd"]["examples"] == 45
    assert any("left out" in caveat or "skip" in caveat for caveat in record.data["caveats"])


def test_limits_take_images_of_many_classes_and_mark_the_record(small: Suite):  # noqa: F811
    record = small.run("method=pretrained limit=10")
    assert record.limit == 10
    assert all(cell["examples"] == 10 for cell in record.data["selections"]["last"]["per_task"].values())


def test_the_doctor_says_what_is_missing_and_then_that_nothing_is(small: Suite):  # noqa: F811
    status, said = called(doctor.main, small.line("method=adarank doctor.format=json"))
    assert status == 0, said
    before = json.loads(said[said.index("{"):])
    assert before["missing"] > 4
    small.run("method=adarank steps=1 method.adaptation.batch_size=2 method.adaptation.eval_every=1")
    status, said = called(doctor.main, small.line("method=adarank doctor.format=json"))
    after = json.loads(said[said.index("{"):])
    missing = [item for item in after["items"] if not item["present"] and item["what"] != "training images"]
    assert not missing
    assert after["missing_bytes"] < before["missing_bytes"]
    assert any("peak" in line for line in after["estimate"])


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("checkpoints=ta tasks=[mnist,stl10]", "ta_tall"),
        ("model=vit_l14", "timm/vit_large_patch14_clip_224.openai"),
        ("checkpoints.dir=/nonexistent checkpoints=ta", "/nonexistent"),
        ("tasks=[mnist,sun397]", "sun397"),
        ("data.source=folder", "data_dir"),
    ],
)
def test_what_cannot_be_is_one_line(small: Suite, line: str, said: str):  # noqa: F811
    assert said in small.refused(f"method=task_arithmetic {line}")


def test_an_expert_that_is_trained_here_is_merged_like_any_other(small: Suite):  # noqa: F811
    folder = small.folder / "own"
    line = f"finetune.steps=3 finetune.batch=8 finetune.out={folder}"
    for task in ("mnist", "dtd"):
        status, said = called(finetune.main, small.line(f"{line} task={task}"))
        assert status == 0, said
        assert "individual" in said
    joint = f"finetune.recipe=joint finetune.steps=2 finetune.batch=4 finetune.out={folder}"
    status, said = called(finetune.main, small.line(joint))
    assert status == 0, said
    assert {file.name for file in folder.glob("*.safetensors")} == {
        "pretrained.safetensors", "heads.safetensors", "individual-mnist.safetensors", "individual-dtd.safetensors",
        "traditional_mtl.safetensors",
    }
    before = (folder / "individual-dtd.safetensors").read_bytes()
    for method in ("individual", "task_arithmetic", "traditional_mtl"):
        record = small.run(f"method={method} checkpoints=own checkpoints.dir={folder}")
        assert record.data["checkpoints"]["family"] == "own"
    assert (folder / "individual-dtd.safetensors").read_bytes() == before
    assert "unknown recipe" in _refused_finetune(small, "finetune.recipe=tal")
    assert "finetune.steps" in _refused_finetune(small, "finetune.steps=many")
    assert "trained otherwise" in _refused_finetune(small, f"finetune.steps=4 finetune.out={folder}")


def _refused_finetune(small: Suite, line: str) -> str:  # noqa: F811
    status, said = called(finetune.main, small.line(line))
    assert status == 2, said
    return said


def test_a_record_is_found_by_what_was_read_wherever_it_lies(small: Suite):  # noqa: F811
    """The same experts in a folder, and other training images, which only some methods read."""
    statistics = "method=fisher_merging method.statistics.examples=8"
    first, fisher = small.run("checkpoints=ta method=weight_averaging"), small.run(f"checkpoints=ta {statistics}")
    folder = small.folder / "experts"
    published = small.mirror.root / "models" / "SphereLab" / "vision_models_in_FDA"
    shutil.copytree(published, folder, ignore=shutil.ignore_patterns("zeroshot.pt"))  # the base is that of the hub
    assert small.again(f"checkpoints=ta checkpoints.dir={folder} method=weight_averaging").key == first.key
    repo = small.mirror.root / "datasets" / "tanganke" / "dtd"
    (file,) = (repo / "data").glob("train-*.parquet")
    write_parquet(file, [encoded(picture(row % 47, row + 5000)) for row in range(94)], [row % 47 for row in range(94)], None)
    loading._latest.clear()
    elsewhere = f"checkpoints=ta cache_dir={small.folder / 'other'}"
    assert small.again(f"{elsewhere} method=weight_averaging").key == first.key
    assert small.run(f"{elsewhere} {statistics}").key != fisher.key


def test_predictions_are_those_of_the_published_weights(small: Suite):  # noqa: F811
    """From the tensors that the files were written from, with a forward pass and a head of this test's own."""
    record, other = small.run("checkpoints=ta method=individual"), small.run("checkpoints=ta method=pretrained")
    (suite,) = loading._latest.values()
    different = 0
    for task in ("mnist", "dtd"):
        state = vision_files.expert_state(SMALL, task)
        model = clip.build(SMALL, "packed").eval()
        model.load_state_dict({name.removeprefix("visual."): t for name, t in state.items() if name.startswith("visual.")})
        images = clip.normalise(torch.from_numpy(suite.tasks[task].test_images[:]))
        head = vision_files.head_weight(SMALL, task, vision_files.classes_of(task))
        with torch.no_grad():
            logits = torch.nn.functional.normalize(model(images), dim=-1) @ head.T
        found, before = (np.load(one.path / "samples.npz")[f"last/{task}/predictions"] for one in (record, other))
        np.testing.assert_array_equal(found, logits.argmax(-1).numpy())
        different += int((found != before).sum())
    assert different > 0


def test_mixed_precision_reaches_the_evaluation(small: Suite):  # noqa: F811
    record = small.run("checkpoints=ta method=weight_averaging precision=bf16")
    (suite,) = loading._latest.values()
    assert suite.evaluator.bf16
    assert record.key != small.run("checkpoints=ta method=weight_averaging").key

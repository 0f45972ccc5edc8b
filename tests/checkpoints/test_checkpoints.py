"""Experts from local folders: every family's own layout becomes checked safetensors, in either layout of the tensors, once."""

from __future__ import annotations

import dataclasses
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from fusionbench_lite import checkpoints
from fusionbench_lite.checkpoints import Found, Request, families
from fusionbench_lite.models import clip
from fusionbench_lite.weights import clip_keys
from tests.conftest import ROOT
from tests.support import vision_files
from tests.support.vision_files import TINY

TASKS = ("mnist", "dtd")
State = dict[str, torch.Tensor]


def visual(state: State, projection: bool = True) -> State:
    return {name[7:]: t for name, t in state.items() if name.startswith("visual.") and (projection or name != "visual.proj")}


def in_layout(state: State, layout: str) -> State:
    return state if layout == "packed" else clip_keys.to_separate(state)


def same(path: Path, expected: State) -> bool:
    found = load_file(path)
    if set(found) != set(expected) or {tensor.dtype for tensor in found.values()} != {torch.float32}:
        return False
    return all(torch.equal(found[name], expected[name]) for name in found)


@pytest.fixture(scope="module")
def tree(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """All releases of two tasks (TALL: three), the base models, and manifests without published hashes."""
    root = tmp_path_factory.mktemp("releases")
    vision_files.write_ta(root / "ta", "vit_b32", TASKS, TINY)
    vision_files.write_tall(root / "tall", "vit_b32", (*TASKS, "cifar10"), TINY, model_name=True)
    vision_files.write_fusionbench(root / "fusionbench", "vit_b32", TASKS, TINY)
    vision_files.write_openai(root / "fusionbench", "vit_b32", TINY)
    vision_files.write_manifests(root / "manifests")
    return root


def request(
    tree: Path, cache: Path, family: str, tasks: tuple[str, ...] = TASKS, layout: str = "packed", **changes: object
) -> Request:
    made = Request(
        model="vit_b32", size=TINY, layout=layout, family=family, tasks=tasks, cache=cache, dir=tree / family,
        manifest=tree / "manifests",
    )
    return dataclasses.replace(made, **changes)


@pytest.mark.parametrize("layout", ["packed", "separate"])
@pytest.mark.parametrize("family", ["ta", "tall"])
def test_open_clip_families(family: str, layout: str, tree: Path, tmp_path: Path) -> None:
    found = checkpoints.find(request(tree, tmp_path, family, layout=layout))
    assert same(found.pretrained, in_layout(visual(vision_files.base_state(TINY)), layout))
    for task in TASKS:
        assert same(found.experts[task], in_layout(visual(vision_files.expert_state(TINY, task)), layout))
        head = found.heads[task]
        assert head is not None
        assert same(head, {"weight": vision_files.head_weight(TINY, task, vision_files.classes_of(task))})
    text = clip.text_shapes(TINY)
    assert found.virtual_zeros == sum(torch.zeros(text[name]).numel() for name in clip_keys.TEXT_SIDE)
    assert (found.constants, found.multitask, found.layout, found.family) == (None, None, layout, family)
    assert len(found.files) == 5
    assert set(found.files) == set(found.sources)
    assert found.expert_hashes["dtd"] in found.files.values()
    assert any("5,640" in caveat for caveat in found.caveats) == (family == "tall")


@pytest.mark.parametrize("prefixed", [True, False])
@pytest.mark.parametrize("form", ["bin", "safetensors"])
@pytest.mark.parametrize("layout", ["packed", "separate"])
def test_fusionbench(layout: str, form: str, prefixed: bool, tree: Path, tmp_path: Path) -> None:
    folder = tmp_path / "files"
    vision_files.write_fusionbench(folder, "vit_b32", TASKS, TINY, prefixed=prefixed)
    vision_files.write_openai(folder, "vit_b32", TINY, form=form)
    found = checkpoints.find(request(tree, tmp_path, "fusionbench", layout=layout, dir=folder))
    base, projection = visual(vision_files.base_state(TINY)), clip_keys.PROJECTION[layout]
    whole = in_layout(base, layout)
    assert found.constants is not None
    assert same(found.constants, {projection: whole[projection]})
    assert same(found.pretrained, {name: tensor for name, tensor in whole.items() if name != projection})
    for task in TASKS:
        expert = in_layout(visual(vision_files.expert_state(TINY, task, frozen_projection=True), projection=False), layout)
        assert same(found.experts[task], expert)
    assert found.text is not None
    assert same(found.text, {n: t for n, t in vision_files.base_state(TINY).items() if not n.startswith("visual.")})
    assert found.heads == {"mnist": None, "dtd": None}
    assert (found.virtual_zeros, found.caveats) == (0, ())


def test_virtual_zeros_of_the_full_models() -> None:
    from fusionbench_lite.checkpoints.converting import virtual_zeros

    assert {virtual_zeros(clip.SIZES[name]) for name in ("vit_b32", "vit_b16")} == {25_599_489}


def test_the_found_weights_run(tree: Path, tmp_path: Path) -> None:
    images = torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    outputs = []
    for layout in ("packed", "separate"):
        found = checkpoints.find(request(tree, tmp_path, "ta", layout=layout))
        model = clip.build(TINY, layout)
        model.load_state_dict(load_file(found.experts["mnist"]), strict=True)
        with torch.inference_mode():
            outputs.append(model.eval()(images))
    assert float((outputs[0] - outputs[1]).abs().max()) < 1e-5


@pytest.mark.parametrize("container", ["legacy", "pickle"])
def test_old_containers(container: str, tree: Path, tmp_path: Path) -> None:
    vision_files.write_ta(tmp_path / "old", "vit_b32", ("mnist",), TINY, container=container)
    old = checkpoints.find(request(tree, tmp_path / "a", "ta", ("mnist",), dir=tmp_path / "old"))
    new = checkpoints.find(request(tree, tmp_path / "b", "ta", ("mnist",)))
    assert same(old.experts["mnist"], load_file(new.experts["mnist"]))
    assert same(old.pretrained, load_file(new.pretrained))


def moved(source: Path, target: Path) -> Path:
    target.parent.mkdir(parents=True, exist_ok=True)
    shutil.copytree(source, target)
    return target


@pytest.mark.parametrize(("family", "inside", "below"), [
    ("ta", "ViT-B-32", ""), ("ta", "ViT-B-32", "vit-b-32"), ("ta", "ViT-B-32", "ViT-B-32_TA"), ("tall", "single_task", ""),
    ("tall", "single_task/ViT-B-32", ""), ("tall", "single_task/ViT-B-32", "VIT-B-32"),
    ("tall", "single_task/ViT-B-32", "Single_Task/VIT-B-32"), ("fusionbench", "tanganke", ""),
])
def test_folders_of_a_release_may_be_missing_or_spelled_otherwise(
    family: str, inside: str, below: str, tree: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "files"
    moved(tree / family / inside, folder / below if below else folder)
    if family == "fusionbench":
        moved(tree / family / "openai", folder / "openai")
    found = checkpoints.find(request(tree, tmp_path, family, dir=folder))
    frozen = family == "fusionbench"
    expected = visual(vision_files.expert_state(TINY, "mnist", frozen_projection=frozen), projection=not frozen)
    assert same(found.experts["mnist"], expected)


def test_a_mixture_takes_each_task_from_its_family(tree: Path, tmp_path: Path) -> None:
    folder = tmp_path / "files"
    moved(tree / "ta" / "ViT-B-32", folder / "ViT-B-32")
    moved(tree / "tall" / "single_task", folder / "single_task")
    vision_files.write_module_encoder(folder / "ViT-B-32/DTD/finetuned.pt", vision_files.expert_state(TINY, "dtd", 0, 0.05), TINY)
    found = checkpoints.find(request(tree, tmp_path, "ta_tall", (*TASKS, "cifar10"), dir=folder))
    assert same(found.experts["dtd"], visual(vision_files.expert_state(TINY, "dtd", 0, 0.05)))  # not TALL's
    assert same(found.experts["cifar10"], visual(vision_files.expert_state(TINY, "cifar10")))
    assert found.experts["cifar10"].parent.parent.name == "tall"
    assert found.caveats == ()  # the leak is TALL's DTD, which is not used
    assert found.family == "ta_tall"


def test_half_precision_is_widened_and_told(tree: Path, tmp_path: Path) -> None:
    folder = moved(tree / "tall", tmp_path / "files")
    path = folder / "single_task" / "ViT-B-32" / "MNISTVal" / "nonlinear_finetuned.pt"
    entries = vision_files.encoder_entries(vision_files.expert_state(TINY, "mnist"))
    vision_files.save({name: tensor.half() for name, tensor in entries.items()}, path)
    found = checkpoints.find(request(tree, tmp_path, "tall", ("mnist",), dir=folder))
    assert same(found.experts["mnist"], {n: t.half().float() for n, t in visual(vision_files.expert_state(TINY, "mnist")).items()})
    assert any("float16" in caveat for caveat in found.caveats)


def own_folder(folder: Path, layout: str, projection: bool = True) -> Found | Path:
    folder.mkdir(parents=True)
    for name, state in {"pretrained": vision_files.base_state(TINY), **{
        f"individual-{task}": vision_files.expert_state(TINY, task, frozen_projection=not projection) for task in TASKS
    }}.items():
        tensors = in_layout(visual(state), layout)
        if not projection:
            del tensors[clip_keys.PROJECTION[layout]]
        save_file(tensors, folder / f"{name}.safetensors")
    return folder


@pytest.mark.parametrize("stored", ["packed", "separate"])
@pytest.mark.parametrize("layout", ["packed", "separate"])
def test_own_folder(stored: str, layout: str, tree: Path, tmp_path: Path) -> None:
    folder = tmp_path / "files"
    own_folder(folder, stored)
    heads = {task: vision_files.head_weight(TINY, task, 12, norm=1.0) for task in TASKS}
    save_file(heads, folder / "heads.safetensors")
    shutil.copy(folder / "individual-dtd.safetensors", folder / "traditional_mtl.safetensors")
    made = request(tree, tmp_path / "cache", "own", layout=layout, dir=folder)
    found = checkpoints.find(made)
    assert same(found.experts["dtd"], in_layout(visual(vision_files.expert_state(TINY, "dtd")), layout))
    assert (found.experts["dtd"].parent == folder) == (stored == layout)  # not copied where nothing changes
    assert found.heads["mnist"] is not None
    assert same(found.heads["mnist"], {"weight": heads["mnist"]})
    assert found.multitask is not None
    assert same(found.multitask, load_file(found.experts["dtd"]))
    assert (found.text, found.constants, found.virtual_zeros) == (None, None, 0)
    assert set(found.expert_hashes) == set(TASKS)
    assert checkpoints.find(made) == found


def test_own_folder_takes_heads_and_projection_from_the_published_bases(tree: Path, tmp_path: Path) -> None:
    folder = tmp_path / "files"
    own_folder(folder, "separate", projection=False)
    vision_files.write_timm(folder, "vit_b32", TINY)
    vision_files.write_openai(folder, "vit_b32", TINY)
    found = checkpoints.find(request(tree, tmp_path / "cache", "own", layout="separate", dir=folder))
    assert found.heads == {"mnist": None, "dtd": None}
    assert found.text is not None
    assert set(load_file(found.text)) == set(clip.text_shapes(TINY))
    assert found.constants is not None
    assert same(found.constants, {"visual_projection.weight": vision_files.base_state(TINY)["visual.proj"].T.contiguous()})


def test_inventory_tells_what_is_there(tree: Path, tmp_path: Path) -> None:
    made = request(tree, tmp_path, "ta", (*TASKS, "svhn"))
    items = checkpoints.inventory(made)
    there = {(item.what, item.task): item.present for item in items}
    assert there == {
        ("pretrained", None): True, ("expert", "mnist"): True, ("expert", "dtd"): True, ("expert", "svhn"): False,
        ("head", "mnist"): True, ("head", "dtd"): True, ("head", "svhn"): False, ("text tower", None): False,
    }
    missing = next(item for item in items if (item.what, item.task) == ("expert", "svhn"))
    assert missing.path == str(tree / "ta" / "ViT-B-32/SVHN/finetuned.pt")
    assert "SphereLab/vision_models_in_FDA:ViT-B-32/SVHN/finetuned.pt" in missing.where
    assert "1u_Tva6x0p6oxu5Eo0ZZsf-520Cc_3MKw" in missing.where
    assert missing.nbytes == 453_892_355


def test_inventory_of_the_published_files_needs_no_network(tmp_path: Path) -> None:
    for family, count in {"ta": 8, "tall": 20, "ta_tall": 20, "fusionbench": 20}.items():
        tasks = tuple(families.family_of("tall" if count == 20 else "ta").tasks)
        items = checkpoints.inventory(Request(
            model="vit_l14", size=clip.SIZES["vit_l14"], layout="packed", family=family, tasks=tasks, cache=tmp_path
        ))
        experts = [item for item in items if item.what == "expert"]
        assert [item.task for item in experts] == list(tasks)
        assert not any(item.present for item in items)
        assert all(item.nbytes is not None and item.nbytes > 1.2e9 for item in experts)
        assert all(item.downloadable for item in items)
        assert [item.what for item in items].count("pretrained") == 1


def test_inventory_never_imports_torch(tmp_path: Path) -> None:
    code = (
        "import dataclasses, sys\nfrom pathlib import Path\nfrom fusionbench_lite.checkpoints import Request, inventory\n"
        f"size, folder = dataclasses.make_dataclass('Size', ['width'])(32), Path({str(tmp_path)!r})\n"
        "for family in ('own', 'ta_tall', 'fusionbench'):\n"
        "    assert inventory(Request('vit_b32', size, 'packed', family, ('mnist',), folder, folder))\n"
        "assert 'torch' not in sys.modules\n"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr

"""Training checkpoints where a run looks for experts: wrapped files are read as bare ones, others are refused with what helps."""

from __future__ import annotations

import dataclasses
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from fusionbench_lite import checkpoints, convert
from fusionbench_lite.checkpoints import Request, store
from fusionbench_lite.models import clip
from tests.support import vision_files
from tests.support.clip_models import input_refused
from tests.support.helpers import State
from tests.support.mirror import Mirror, mirror  # noqa: F401
from tests.support.vision_files import TINY

FILES = {
    "ta": "ViT-B-32/MNIST/finetuned.pt", "tall": "single_task/ViT-B-32/MNISTVal/nonlinear_finetuned.pt",
    "fusionbench": "tanganke/clip-vit-base-patch32_mnist/model.safetensors",
}
OPTIMIZER = {"state": {0: {"exp_avg": torch.zeros(3)}}, "param_groups": [{"lr": 1e-5}]}


@pytest.fixture(scope="module")
def releases(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("releases")
    vision_files.write_ta(root / "ta", "vit_b32", ("mnist",), TINY)
    vision_files.write_tall(root / "tall", "vit_b32", ("mnist",), TINY)
    vision_files.write_fusionbench(root / "fusionbench", "vit_b32", ("mnist",), TINY)
    vision_files.write_openai(root / "fusionbench", "vit_b32", TINY)
    vision_files.write_manifests(root / "manifests")
    return root


@pytest.fixture
def tree(releases: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(releases, tmp_path / "releases"))


def request(tree: Path, family: str, **changes: Any) -> Request:
    made = Request(
        model="vit_b32", size=TINY, layout="packed", family=family, tasks=("mnist",), cache=tree / "cache", dir=tree / family,
        manifest=tree / "manifests",
    )
    return dataclasses.replace(made, **changes)


def same(a: Path, b: State) -> bool:
    found = load_file(a)
    return set(found) == set(b) and all(torch.equal(found[name], b[name]) for name in b)


def under(prefix: str, state: State) -> State:
    return {prefix + name: tensor for name, tensor in state.items()}


def entries(family: str, state: State | None = None) -> State:
    state = vision_files.expert_state(TINY, "mnist", frozen_projection=family == "fusionbench") if state is None else state
    return vision_files.transformers_tower(state) if family == "fusionbench" else vision_files.encoder_entries(state)


@pytest.mark.parametrize("family", ["ta", "tall", "fusionbench"])
def test_wrapped_experts_of_the_families(family: str, tree: Path) -> None:
    bare = checkpoints.find(request(tree, family, cache=tree / "before"))
    path = tree / family / FILES[family]
    for content, taken in (
        ({"epoch": 1, "state_dict": under("module.", entries(family)), "optimizer": OPTIMIZER}, "state_dict.module."),
        (under("_orig_mod.module.", entries(family)), "_orig_mod.module."),
        ({"model_state_dict": entries(family)}, "model_state_dict."),
    ):
        torch.save(content, path)
        found = checkpoints.find(request(tree, family))
        assert same(found.experts["mnist"], load_file(bare.experts["mnist"]))
        metadata = store.metadata_of(found.experts["mnist"])
        assert metadata is not None
        assert metadata["taken_off"] == taken + ("model." if family != "fusionbench" else "")


def test_a_wrapped_pretrained_model(tree: Path) -> None:
    bare = checkpoints.find(request(tree, "fusionbench", cache=tree / "before"))
    path = next((tree / "fusionbench").rglob("pytorch_model.bin"))
    torch.save({"state_dict": under("module.", vision_files.transformers_model(vision_files.base_state(TINY)))}, path)
    found = checkpoints.find(request(tree, "fusionbench"))
    for part in ("pretrained", "text", "constants"):
        assert same(getattr(found, part), load_file(getattr(bare, part)))


@pytest.mark.parametrize("family", ["ta", "tall", "fusionbench"])
def test_experts_with_a_moving_average_or_a_head(family: str, tree: Path) -> None:
    path, state = tree / family / FILES[family], entries(family)
    torch.save({"model": state, "model_ema": {name: tensor * 2 for name, tensor in state.items()}}, path)
    with input_refused("the expert of 'mnist'", "two image towers", "fusionbench_lite.convert SOURCE OUT tower=model"):
        checkpoints.find(request(tree, family))
    torch.save({"model": state, "head": {"weight": torch.zeros(10, 16)}}, path)
    with input_refused("the expert of 'mnist'", "'head.weight' beside its image tower"):
        checkpoints.find(request(tree, family))
    torch.save({"w": torch.zeros(3).to(torch.float8_e4m3fn), **state}, path)
    with input_refused("quantised"):
        checkpoints.find(request(tree, family))
    assert not list((tree / "cache").rglob("expert-*.safetensors"))


def test_wrapped_files_of_the_hub(mirror: Mirror, releases: Path, tmp_path: Path) -> None:  # noqa: F811
    models = mirror.root / "models"
    vision_files.write_ta(models / "SphereLab" / "vision_models_in_FDA", "vit_b32", ("mnist",), TINY)
    vision_files.write_timm(models, "vit_b32", TINY)
    expert = vision_files.expert_state(TINY, "mnist")
    path = models / "SphereLab" / "vision_models_in_FDA" / FILES["ta"]
    torch.save({"state_dict": under("module.", entries("ta", expert)), "optimizer": OPTIMIZER}, path)
    made = request(releases, "ta", dir=None, cache=tmp_path / "cache")
    assert same(checkpoints.find(made).experts["mnist"], {n[7:]: t for n, t in expert.items() if n.startswith("visual.")})
    path.write_text("version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 9\n")
    with input_refused("SphereLab/vision_models_in_FDA|finetuned.pt", "git lfs pull"):
        checkpoints.find(dataclasses.replace(made, cache=tmp_path / "other"))


def own(tree: Path) -> dict[str, State]:
    (tree / "own").mkdir()
    towers = {}
    states = {"pretrained": vision_files.base_state(TINY), "individual-mnist": vision_files.expert_state(TINY, "mnist")}
    for name, state in states.items():
        towers[name] = {key[7:]: tensor for key, tensor in state.items() if key.startswith("visual.")}
        save_file(towers[name], tree / "own" / f"{name}.safetensors")
    save_file({"mnist": vision_files.head_weight(TINY, "mnist", 10)}, tree / "own" / "heads.safetensors")
    return towers


@pytest.mark.parametrize("wrap", [
    lambda s: under("module.", s), lambda s: under("visual.", s), lambda s: under("model._orig_mod.visual.", s),
    lambda s: {name.replace("conv1", "_orig_mod.conv1"): tensor for name, tensor in under("net.", s).items()},
    lambda s: {"state_dict": under("visual.", s), "optimizer": OPTIMIZER},
])
def test_wrapped_files_of_an_own_folder(wrap: Any, tree: Path) -> None:
    towers = own(tree)
    for name, tower in towers.items():
        path, content = tree / "own" / f"{name}.safetensors", wrap(tower)
        torch.save(content, path) if "state_dict" in content else save_file(content, path)
    found = checkpoints.find(request(tree, "own"))
    assert same(found.pretrained, towers["pretrained"])
    assert same(found.experts["mnist"], towers["individual-mnist"])
    assert found.experts["mnist"].is_relative_to(tree / "cache")


def test_what_an_own_folder_refuses_is_mended_as_it_says(tree: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    towers, path = own(tree), tree / "own" / "individual-mnist.safetensors"
    monkeypatch.setattr(clip, "SIZES", {"vit_b32": TINY})
    whole = vision_files.expert_state(TINY, "mnist")
    save_file(under("module.", whole), path)
    alone = path.with_name("individual-mnist-tower.safetensors")
    with input_refused("beside its image tower: keep the tower alone", f"fusionbench_lite.convert {path} {alone}`"):
        checkpoints.find(request(tree, "own"))
    assert convert.main([str(path), str(alone)]) == 0
    alone.rename(path)
    assert same(checkpoints.find(request(tree, "own")).experts["mnist"], towers["individual-mnist"])
    path.unlink()
    torch.save({"state_dict": under("module.", whole)}, path.with_suffix(".pt"))
    with input_refused("individual-mnist.safetensors is missing", f"fusionbench_lite.convert {path.with_suffix('.pt')} {path}`"):
        checkpoints.find(request(tree, "own"))
    assert convert.main([str(path.with_suffix(".pt")), str(path)]) == 0
    assert same(checkpoints.find(request(tree, "own")).experts["mnist"], towers["individual-mnist"])

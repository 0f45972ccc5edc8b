"""Experts through a hub on 127.0.0.1: repositories with the true names, one after another, and what faults become."""

from __future__ import annotations

import dataclasses
import errno
import os
import shutil
from pathlib import Path

import pytest
import torch
import yaml
from safetensors.torch import load_file

from fusionbench_lite import checkpoints
from fusionbench_lite.checkpoints import Request
from fusionbench_lite.errors import InputError, WriteError
from tests.checkpoints.test_checkpoints import in_layout, same, visual
from tests.support import vision_files
from tests.support.mirror import Mirror, mirror  # noqa: F401
from tests.support.vision_files import TINY

TASKS = ("mnist", "dtd")


@pytest.fixture
def hub(mirror: Mirror, tmp_path: Path) -> Mirror:  # noqa: F811
    """The mirror with every release of two tasks under its repositories' names."""
    models = mirror.root / "models"
    vision_files.write_ta(models / "SphereLab" / "vision_models_in_FDA", "vit_b32", TASKS, TINY)
    tall = models / "nik-dim" / "tall_masks"
    vision_files.write_tall(tall, "vit_b32", ("dtd", "cifar10"), TINY, zeroshot=False, folder="VIT-B-32")
    vision_files.write_fusionbench(models, "vit_b32", TASKS, TINY, prefixed=False)
    vision_files.write_timm(models, "vit_b32", TINY)
    vision_files.write_openai(models, "vit_b32", TINY)
    vision_files.write_manifests(tmp_path / "manifests")
    return mirror


def request(tmp_path: Path, family: str, tasks: tuple[str, ...] = TASKS, **changes: object) -> Request:
    made = Request(
        model="vit_b32", size=TINY, layout="packed", family=family, tasks=tasks, cache=tmp_path / "cache", dir=None,
        manifest=tmp_path / "manifests",
    )
    return dataclasses.replace(made, **changes)


def test_ta_with_the_base_of_open_clip(hub: Mirror, tmp_path: Path) -> None:
    told: list[tuple[str, int, int]] = []
    found = checkpoints.find(request(tmp_path, "ta"), lambda *what: told.append(what))
    assert same(found.pretrained, visual(vision_files.base_state(TINY)))
    assert same(found.experts["mnist"], visual(vision_files.expert_state(TINY, "mnist")))
    assert found.heads["dtd"] is not None
    assert same(found.heads["dtd"], {"weight": vision_files.head_weight(TINY, "dtd", 47)})
    assert found.text is not None
    origin = "SphereLab/vision_models_in_FDA:ViT-B-32/DTD/finetuned.pt"
    commit = hub.commit("model", "SphereLab/vision_models_in_FDA")
    assert found.sources[origin] == f"SphereLab/vision_models_in_FDA@{commit}:ViT-B-32/DTD/finetuned.pt"
    assert found.files[origin] == hub.files("model", "SphereLab/vision_models_in_FDA")["ViT-B-32/DTD/finetuned.pt"].sha256
    assert "timm/vit_base_patch32_clip_224.openai:open_clip_model.safetensors" in found.files
    assert not hub.asked("*zeroshot*")  # single files, and only those that are used
    assert told


def test_folders_of_the_repository_are_matched_whatever_their_case(hub: Mirror, tmp_path: Path) -> None:
    found = checkpoints.find(request(tmp_path, "tall", ("cifar10", "dtd")))
    assert same(found.experts["cifar10"], visual(vision_files.expert_state(TINY, "cifar10")))
    assert found.heads["cifar10"] is not None
    assert "nik-dim/tall_masks:single_task/VIT-B-32/CIFAR10Val/nonlinear_finetuned.pt" in found.files


@pytest.mark.parametrize("layout", ["packed", "separate"])
def test_fusionbench_with_a_base_that_is_a_bin(layout: str, hub: Mirror, tmp_path: Path) -> None:
    found = checkpoints.find(request(tmp_path, "fusionbench", layout=layout))
    expert = visual(vision_files.expert_state(TINY, "mnist", frozen_projection=True), projection=False)
    assert same(found.experts["mnist"], in_layout(expert, layout))
    assert "openai/clip-vit-base-patch32:pytorch_model.bin" in found.files
    assert found.heads == {"mnist": None, "dtd": None}
    assert found.text is not None


def test_the_second_place_is_asked_when_the_first_lacks_the_file(hub: Mirror, tmp_path: Path) -> None:
    first = hub.root / "models" / "SphereLab" / "vision_models_in_FDA" / "ViT-B-32"
    second = hub.root / "models" / "JH-C-k" / "ViT-B-32" / "ViT-B-32_TA"
    shutil.rmtree(first / "DTD")
    state = vision_files.expert_state(TINY, "dtd")
    vision_files.save(vision_files.encoder_entries(state), second / "DTD" / "finetuned.pt")
    found = checkpoints.find(request(tmp_path, "ta"))
    assert same(found.experts["dtd"], visual(state))
    assert "JH-C-k/ViT-B-32:ViT-B-32_TA/DTD/finetuned.pt" in found.files
    assert found.heads["dtd"] is None  # the head is that of the expert's place, which has none
    assert found.heads["mnist"] is not None
    hub.close()
    assert checkpoints.find(request(tmp_path, "ta")) == found


def test_the_other_file_of_the_base(hub: Mirror, tmp_path: Path) -> None:
    shutil.rmtree(hub.root / "models" / "timm")
    vision_files.write_timm(hub.root / "models", "vit_b32", TINY, form="bin")
    found = checkpoints.find(request(tmp_path, "ta", ("mnist",)))
    assert "timm/vit_base_patch32_clip_224.openai:open_clip_pytorch_model.bin" in found.files
    assert same(found.pretrained, visual(vision_files.base_state(TINY)))


@pytest.mark.parametrize("family", ["ta", "tall", "fusionbench", "ta_tall"])
def test_a_full_cache_needs_no_network_and_no_sources(
    family: str, hub: Mirror, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tasks = {"tall": ("dtd", "cifar10"), "ta_tall": ("mnist", "cifar10")}.get(family, TASKS)
    found = checkpoints.find(request(tmp_path, family, tasks))
    asked = len(hub.asked())
    assert checkpoints.find(request(tmp_path, family, tasks)) == found
    assert len(hub.asked()) == asked
    hub.close()
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    assert checkpoints.find(request(tmp_path, family, tasks)) == found
    shutil.rmtree(tmp_path / "cache" / "hub")  # the downloads may go once they are converted
    assert checkpoints.find(request(tmp_path, family, tasks)) == found
    assert all(item.present for item in checkpoints.inventory(request(tmp_path, family, tasks)))


def test_inventory_before_and_after(hub: Mirror, tmp_path: Path) -> None:
    before = checkpoints.inventory(request(tmp_path, "ta"))
    assert not hub.log
    assert not any(item.present for item in before)
    assert [(item.what, item.task) for item in before] == [
        ("pretrained", None), ("expert", "mnist"), ("head", "mnist"), ("expert", "dtd"), ("head", "dtd"),
    ]
    checkpoints.find(request(tmp_path, "ta"))
    after = checkpoints.inventory(request(tmp_path, "ta"))
    assert all(item.present and Path(item.path).is_file() and item.nbytes for item in after)


def manifest(tmp_path: Path, family: str, **changes: object) -> Path:
    path = tmp_path / "manifests" / f"{family}.yaml"
    content = yaml.safe_load(path.read_text())
    content["places"][0].update(changes)
    path.write_text(yaml.safe_dump(content))
    return path


def test_published_hashes_are_compared(hub: Mirror, tmp_path: Path) -> None:
    file, repo = "ViT-B-32/MNIST/finetuned.pt", "SphereLab/vision_models_in_FDA"
    true = hub.files("model", repo)[file]
    good = {file: {"size": true.size, "sha256": true.sha256[:12]}}
    found = checkpoints.find(request(tmp_path, "ta", ("mnist",), manifest=manifest(tmp_path, "ta", files=good)))
    assert found.expert_hashes["mnist"] == true.sha256
    for wrong, reason in (({"size": true.size + 1}, str(true.size)), ({"sha256": "0" * 12}, "0" * 12)):
        with pytest.raises(InputError, match=reason) as caught:  # not even the converted file of the right one is taken
            asked = request(tmp_path, "ta", ("mnist",), cache=tmp_path / f"cache{reason}")
            checkpoints.find(dataclasses.replace(asked, manifest=manifest(tmp_path, "ta", files={file: wrong})))
        assert repo in str(caught.value)
    with pytest.raises(InputError, match="0" * 12):
        checkpoints.find(request(tmp_path, "ta", ("mnist",), manifest=manifest(tmp_path, "ta", files={file: {"sha256": "0" * 12}})))


def test_another_repository_in_a_manifest(hub: Mirror, tmp_path: Path) -> None:
    """A lab's own re-upload, of other experts: what was converted from the published ones is not taken for them."""
    published = checkpoints.find(request(tmp_path, "ta", ("mnist",)))
    lab = hub.root / "models" / "lab" / "experts"
    vision_files.write_ta(lab, "vit_b32", ("mnist",), TINY, spread=0.1)
    found = checkpoints.find(request(tmp_path, "ta", ("mnist",), manifest=manifest(tmp_path, "ta", repo="lab/experts")))
    assert same(found.experts["mnist"], visual(vision_files.expert_state(TINY, "mnist", spread=0.1)))
    assert found.experts["mnist"] != published.experts["mnist"]


def test_a_file_that_is_nowhere(hub: Mirror, tmp_path: Path) -> None:
    with pytest.raises(InputError) as caught:
        checkpoints.find(request(tmp_path, "ta", ("mnist", "svhn")))
    message = str(caught.value)
    for part in (
        "expert of 'svhn'", "vit_b32", "454 MB", "SphereLab/vision_models_in_FDA:ViT-B-32/SVHN/finetuned.pt", "no such file",
        "JH-C-k/ViT-B-32", "ViT-B-32/SVHN/finetuned.pt and give checkpoints.dir", "1u_Tva6x0p6oxu5Eo0ZZsf-520Cc_3MKw",
    ):
        assert part in message, message
    assert "\n" not in message


@pytest.mark.parametrize("refusal", ["full", "no folder", "no room while it comes"])
def test_a_disk_that_refuses_ends_the_search_at_once(
    refusal: str, hub: Mirror, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    checkpoints.find(request(tmp_path, "ta", ("mnist",)))
    copy = hub.root / "models" / "JH-C-k" / "ViT-B-32" / "ViT-B-32_TA"
    vision_files.save(vision_files.encoder_entries(vision_files.expert_state(TINY, "dtd")), copy / "DTD" / "finetuned.pt")
    if refusal == "full":
        monkeypatch.setattr("fusionbench_lite.hub.transfer.shutil.disk_usage", lambda path: type("Usage", (), {"free": 10}))
    elif refusal == "no folder":
        shutil.rmtree(tmp_path / "cache" / "hub" / ".locks")
        (tmp_path / "cache" / "hub" / ".locks").write_text("a file where a folder has to be")
    else:
        def refusing(*_: object) -> None:
            raise OSError(errno.EROFS, os.strerror(errno.EROFS))

        monkeypatch.setattr("fusionbench_lite.hub.download.receive", refusing)
    with pytest.raises(WriteError) as caught:
        checkpoints.find(request(tmp_path, "ta"))
    said = str(caught.value)
    assert said.startswith("cannot download ViT-B-32/DTD/finetuned.pt of model SphereLab/vision_models_in_FDA: ")
    assert ("free some space" in said) == (refusal == "full")
    assert len(said) < 400
    assert not hub.asked("*JH-C-k*")


def test_a_spoiled_download_is_repeated_or_named(hub: Mirror, tmp_path: Path) -> None:
    hub.inject("truncated", "*MNIST/finetuned.pt*")
    found = checkpoints.find(request(tmp_path, "ta", ("mnist",)))
    assert same(found.experts["mnist"], visual(vision_files.expert_state(TINY, "mnist")))
    hub.inject("flipped", "*DTD/finetuned.pt*", times=100)
    with pytest.raises(InputError, match="checksum") as caught:
        checkpoints.find(request(tmp_path, "ta", ("dtd",)))
    assert "SphereLab/vision_models_in_FDA" in str(caught.value)
    assert not list((tmp_path / "cache" / "checkpoints").rglob("expert-dtd*.safetensors"))
    hub.heal()
    assert same(checkpoints.find(request(tmp_path, "ta", ("dtd",))).experts["dtd"], visual(vision_files.expert_state(TINY, "dtd")))


def test_a_malicious_upload_is_refused(hub: Mirror, tmp_path: Path) -> None:
    class Call:
        def __reduce__(self) -> object:
            import os

            return os.system, (f"touch {tmp_path / 'canary'}",)

    path = hub.root / "models/SphereLab/vision_models_in_FDA/ViT-B-32/MNIST/finetuned.pt"
    torch.save({"model.visual.conv1.weight": Call()}, path)
    with pytest.raises(InputError, match=r"posix\.system") as caught:
        checkpoints.find(request(tmp_path, "ta"))
    assert "finetuned.pt" in str(caught.value)
    assert not (tmp_path / "canary").exists()


def test_a_head_that_cannot_be_had_is_not_built_silently(hub: Mirror, tmp_path: Path) -> None:
    hub.inject("gated", "*head_MNIST*", times=100)
    with pytest.raises(InputError, match="head_MNIST"):
        checkpoints.find(request(tmp_path, "ta", ("mnist",)))


def test_tensors_of_the_tiny_base_are_those_of_the_file(hub: Mirror, tmp_path: Path) -> None:
    found = checkpoints.find(request(tmp_path, "ta", ("mnist",)))
    assert found.text is not None
    text = {name: tensor for name, tensor in vision_files.base_state(TINY).items() if not name.startswith("visual.")}
    assert set(load_file(found.text)) == set(text)
    assert same(found.text, text)

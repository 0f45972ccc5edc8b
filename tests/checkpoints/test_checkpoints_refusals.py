"""What checkpoints refuse: foreign, damaged and missing files, each in one line that names the thing and the fix."""

from __future__ import annotations

import contextlib
import dataclasses
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
import yaml
from safetensors.torch import save_file
from torch import nn

from fusionbench_lite import checkpoints
from fusionbench_lite.checkpoints import Request, families
from fusionbench_lite.errors import InputError
from fusionbench_lite.models import clip
from tests.support import vision_files
from tests.support.vision_files import TINY

TASKS = ("mnist", "dtd")
FILES = {
    "ta": "ViT-B-32/MNIST/finetuned.pt", "tall": "single_task/ViT-B-32/MNISTVal/nonlinear_finetuned.pt",
    "fusionbench": "tanganke/clip-vit-base-patch32_mnist/model.safetensors",
}


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    root = tmp_path / "releases"
    vision_files.write_ta(root / "ta", "vit_b32", TASKS, TINY)
    vision_files.write_tall(root / "tall", "vit_b32", TASKS, TINY)
    vision_files.write_fusionbench(root / "fusionbench", "vit_b32", TASKS, TINY)
    vision_files.write_openai(root / "fusionbench", "vit_b32", TINY)
    vision_files.write_manifests(root / "manifests")
    return root


def request(tree: Path, family: str, tasks: tuple[str, ...] = TASKS, **changes: object) -> Request:
    made = Request(
        model="vit_b32", size=TINY, layout="packed", family=family, tasks=tasks, cache=tree / "cache", dir=tree / family,
        manifest=tree / "manifests",
    )
    return dataclasses.replace(made, **changes)


@contextlib.contextmanager
def refused(*parts: str) -> Iterator[None]:
    with pytest.raises(InputError) as caught:
        yield
    message = str(caught.value)
    assert "\n" not in message
    for part in parts:
        assert part in message, message


def test_tasks_and_models_that_a_family_does_not_have(tree: Path) -> None:
    for call in (checkpoints.find, checkpoints.inventory):
        with refused("checkpoints=ta has no expert of 'cifar10'", "8 tasks", "checkpoints=ta_tall or tall"):
            call(request(tree, "ta", ("mnist", "cifar10")))
        with refused("no expert of 'mnits'", "did you mean 'mnist'?"):
            call(request(tree, "tall", ("mnits",)))
        with refused("unknown family of checkpoints 'tal'", "did you mean 'tall'?"):
            call(request(tree, "tal"))
        with refused("no experts of model 'vit_b23'", "did you mean 'vit_b32'?"):
            call(request(tree, "ta", model="vit_b23"))
        with refused("no task"):
            call(request(tree, "ta", ()))
    with refused("is not a directory"):
        checkpoints.find(request(tree, "ta", dir=tree / "nowhere"))


@pytest.mark.parametrize(("given", "family", "parts"), [
    ("fusionbench", "ta", ("transformers' names, as files of FusionBench have", "use checkpoints=fusionbench")),
    ("fusionbench", "tall", ("transformers' names, as files of FusionBench have", "use checkpoints=fusionbench")),
    ("ta", "fusionbench", ("open_clip's names, as files of Task Arithmetic", "use checkpoints=ta, tall or ta_tall")),
    ("tall", "fusionbench", ("open_clip's names", "use checkpoints=ta, tall or ta_tall")),
])
def test_files_of_another_family(given: str, family: str, parts: tuple[str, ...], tree: Path) -> None:
    shutil.copy(tree / given / FILES[given], tree / family / FILES[family])
    with refused("the expert of 'mnist'", str(tree / family / FILES[family]), *parts):
        checkpoints.find(request(tree, family))


def write_expert(path: Path, family: str, size: clip.ClipSize) -> None:
    state = vision_files.expert_state(size, "mnist", frozen_projection=family == "fusionbench")
    if family == "ta":
        vision_files.write_module_encoder(path, state, size)
    elif family == "tall":
        vision_files.save(vision_files.encoder_entries(state), path)
    else:
        save_file(vision_files.transformers_tower(state), path)


@pytest.mark.parametrize("family", ["ta", "tall", "fusionbench"])
@pytest.mark.parametrize("change", [{"patch": 8}, {"width": 64}, {"layers": 3}])
def test_experts_of_another_backbone(change: dict[str, int], family: str, tree: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    other = dataclasses.replace(TINY, **change)
    write_expert(tree / family / FILES[family], family, other)
    with refused("the expert of 'mnist'", "another backbone", "and model=vit_b32 has patch 16, width 32, 2 blocks"):
        checkpoints.find(request(tree, family))
    monkeypatch.setitem(clip.SIZES, "vit_b16", other)
    with refused("looks like vit_b16", "use model=vit_b16"):
        checkpoints.find(request(tree, family))


def test_the_same_backbone_with_other_shapes(tree: Path) -> None:
    for change, name in (({"image": 48}, "positional_embedding"), ({"output": 24}, "proj")):
        write_expert(tree / "ta" / FILES["ta"], "ta", dataclasses.replace(TINY, **change))
        with refused("the expert of 'mnist'", name, "the model needs"):
            checkpoints.find(request(tree, "ta"))


def changed(tree: Path, family: str, **tensors: torch.Tensor | None) -> None:
    """Write the expert of mnist with some entries replaced, added, or taken away (None); underscores stand for dots."""
    state = vision_files.expert_state(TINY, "mnist", frozen_projection=family == "fusionbench")
    entries = vision_files.encoder_entries(state) if family == "tall" else vision_files.transformers_tower(state)
    for name, tensor in tensors.items():
        if tensor is None:
            del entries[name]
        else:
            entries[name] = tensor
    path = tree / family / FILES[family]
    vision_files.save(entries, path) if family == "tall" else save_file(entries, path)


def test_a_text_side_that_was_trained(tree: Path) -> None:
    base = vision_files.base_state(TINY)
    for name in ("token_embedding.weight", "logit_scale", "ln_final.bias", "text_projection", "positional_embedding"):
        moved = base[name].clone()
        moved.view(-1)[0] += 1e-6
        changed(tree, "tall", **{f"model.{name}": moved})
        with refused("the expert of 'mnist'", f"'{name}' differs from the pretrained model by up to"):
            checkpoints.find(request(tree, "tall"))
    changed(tree, "tall", **{"model.ln_final.bias": torch.zeros(3)})
    with refused("'ln_final.bias' has shape (3,), the pretrained model's (24,)"):
        checkpoints.find(request(tree, "tall"))
    changed(tree, "tall", **{"model.adapter.weight": torch.zeros(3)})
    with refused("'adapter.weight' beside its image tower"):
        checkpoints.find(request(tree, "tall"))


def test_a_projection_beside_a_fusionbench_expert(tree: Path) -> None:
    projection = vision_files.base_state(TINY)["visual.proj"].T.contiguous()
    changed(tree, "fusionbench", **{"visual_projection.weight": projection})
    assert checkpoints.find(request(tree, "fusionbench")).constants is not None  # the base's own: left out
    changed(tree, "fusionbench", **{"visual_projection.weight": projection + 1e-6})
    with refused("differs from the pretrained model"):
        checkpoints.find(request(tree, "fusionbench"))


def test_tensors_that_are_missing_odd_or_not_finite(tree: Path) -> None:
    block = "model.visual.transformer.resblocks.1."
    bad = torch.zeros(TINY.width)
    bad[3] = float("nan")
    for entries, parts in (
        ({f"{block}ln_1.bias": None}, ("lacks 'transformer.resblocks.1.ln_1.bias'",)),
        ({"model.visual.proj": None}, ("lacks 'proj'",)),
        ({"model.visual.extra": torch.zeros(1)}, ("has 'extra'",)),
        ({f"{block}ln_1.bias": torch.zeros(TINY.width, dtype=torch.float64)}, ("float64", "float32")),
        ({f"{block}ln_1.bias": torch.zeros(TINY.width, dtype=torch.int64)}, ("int64",)),
        ({f"{block}ln_1.bias": bad}, ("1 of 32 values of 'transformer.resblocks.1.ln_1.bias' are not finite",)),
        ({f"{block}ln_1.bias": torch.full((TINY.width,), float("inf"))}, ("32 of 32 values",)),
    ):
        changed(tree, "tall", **entries)
        with refused("the expert of 'mnist'", *parts):
            checkpoints.find(request(tree, "tall"))
        assert not list((tree / "cache").rglob("expert-*.safetensors"))


def test_files_that_are_something_else(tree: Path) -> None:
    path = tree / "ta" / FILES["ta"]
    for content in (b"", b"<html>Too many requests</html>", bytes(200), b"\x89HDF\r\n\x1a\n" * 9, path.read_bytes()[:-100]):
        path.write_bytes(content)
        with refused(str(path)):
            checkpoints.find(request(tree, "ta"))
    vision_files.write_module_head(path, vision_files.head_weight(TINY, "mnist", 10))
    with refused("no image tower of CLIP"):
        checkpoints.find(request(tree, "ta"))
    save_file({"a": torch.zeros(3)}, tree / "fusionbench" / FILES["fusionbench"])
    with refused("no image tower of CLIP"):
        checkpoints.find(request(tree, "fusionbench"))
    whole = (tree / "tall" / FILES["tall"]).with_suffix(".safetensors")
    save_file(vision_files.expert_state(TINY, "mnist"), whole)
    whole.write_bytes(whole.read_bytes()[:-10])
    whole.rename(tree / "tall" / FILES["tall"])
    with refused("incomplete or damaged"):
        checkpoints.find(request(tree, "tall"))


def test_missing_local_files(tree: Path) -> None:
    with refused("lacks the expert of 'svhn'", "ViT-B-32/SVHN/finetuned.pt", "SphereLab/vision_models_in_FDA", "Google Drive"):
        checkpoints.find(request(tree, "ta", ("svhn",)))
    with refused("lacks the expert of 'svhn'", "tanganke/clip-vit-base-patch32_svhn/model.safetensors"):
        checkpoints.find(request(tree, "fusionbench", ("svhn",)))


@pytest.mark.parametrize(("weight", "options", "parts"), [
    (vision_files.head_weight(TINY, "mnist", 9), {}, ("(9, 16)", "(10, 16)")),
    (vision_files.head_weight(dataclasses.replace(TINY, output=12), "mnist", 10), {}, ("(10, 12)", "(10, 16)")),
    (vision_files.head_weight(TINY, "mnist", 10), {"normalize": False}, ("normalize=False",)),
    (vision_files.head_weight(TINY, "mnist", 10) * torch.linspace(1, 1.1, 10)[:, None], {}, ("norms from 100 to 110",)),
    (torch.zeros(10, 16), {}, ("norms from 0",)), (torch.full((10, 16), float("nan")), {}, ("not finite",)),
])
def test_heads_that_do_not_fit(weight: torch.Tensor, options: dict[str, bool], parts: tuple[str, ...], tree: Path) -> None:
    vision_files.write_module_head(tree / "ta" / "ViT-B-32" / "head_MNIST.pt", weight, **options)
    with refused("the head of 'mnist'", "head_MNIST.pt", *parts):
        checkpoints.find(request(tree, "ta"))


def test_heads_with_a_bias_and_files_that_are_no_heads(tree: Path) -> None:
    path = tree / "ta" / "ViT-B-32" / "head_MNIST.pt"
    head = nn.Linear(16, 10)
    with torch.no_grad():
        head.weight.copy_(vision_files.head_weight(TINY, "mnist", 10))
    torch.save(head, path)
    with refused("a bias of up to"):
        checkpoints.find(request(tree, "ta"))
    shutil.copy(tree / "ta" / FILES["ta"], path)
    with refused("is no head"):
        checkpoints.find(request(tree, "ta"))


def test_published_hashes_of_local_files(tree: Path) -> None:
    """A file that lies where the published one does and is not that one; elsewhere, as re-uploads, it may differ."""
    with refused("bytes, the published file 453,892,355", "checkpoints.manifest"):
        checkpoints.find(request(tree, "ta", manifest=None))
    folder = tree / "ta" / "ViT-B-32_TA"
    (tree / "ta" / "ViT-B-32").rename(folder)
    assert checkpoints.find(request(tree, "ta", manifest=None)).expert_hashes


@pytest.mark.parametrize(("change", "parts"), [
    ({"extra": 1}, ("unknown key 'extra'",)), ({"layout": "pakced"}, ("layout is packed or separate",)),
    ({"places": [{"repo": "a/b"}]}, ("KeyError: 'expert'",)), ({"family": "mine"}, ("family is 'mine'",)),
    ({"places": [{"repo": "a/b", "expert": "{arhc}/x"}]}, ("arhc",)), ({"models": 5}, ("form of a family file",)),
    ({"places": [{"repo": "a/b", "expert": "x", "files": {"x": {"sha256": 123}}}]}, ("sha256 a text in quotes",)),
])
def test_bad_manifests(change: dict[str, object], parts: tuple[str, ...], tree: Path) -> None:
    path = tree / "manifests" / "ta.yaml"
    path.write_text(yaml.safe_dump(yaml.safe_load(path.read_text()) | change))
    with refused(str(path), *parts):
        checkpoints.inventory(request(tree, "ta"))
    if "family" not in change:
        with refused(str(path), *parts):
            checkpoints.inventory(request(tree, "ta", manifest=path))


def test_manifests_that_are_no_files(tree: Path) -> None:
    with refused("does not exist"):
        checkpoints.inventory(request(tree, "ta", manifest=tree / "none.yaml"))
    (tree / "text.yaml").write_text("[1, 2]")
    with refused("must hold a mapping"):
        checkpoints.inventory(request(tree, "ta", manifest=tree / "text.yaml"))
    (tree / "text.yaml").write_text("a: [")
    with refused("cannot read"):
        checkpoints.inventory(request(tree, "ta", manifest=tree / "text.yaml"))


def test_own_folders(tree: Path) -> None:
    folder = tree / "own"
    folder.mkdir()
    with refused("checkpoints.dir=FOLDER"):
        checkpoints.find(request(tree, "own", dir=None))
    with refused("pretrained.safetensors is missing"):
        checkpoints.find(request(tree, "own"))
    tower = {name[7:]: tensor for name, tensor in vision_files.base_state(TINY).items() if name.startswith("visual.")}
    save_file(tower, folder / "pretrained.safetensors")
    save_file(tower, folder / "individual-mnits.safetensors")
    with refused("individual-mnist.safetensors is missing", "did you mean 'individual-mnits.safetensors'?"):
        checkpoints.find(request(tree, "own", ("mnist",)))
    save_file({name: tensor for name, tensor in tower.items() if name != "proj"}, folder / "individual-mnist.safetensors")
    with refused("individual-mnist.safetensors lacks 'proj', which pretrained.safetensors has"):
        checkpoints.find(request(tree, "own", ("mnist",)))
    save_file(tower | {"more": torch.zeros(1)}, folder / "individual-mnist.safetensors")
    with refused("'more'"):
        checkpoints.find(request(tree, "own", ("mnist",)))
    save_file(tower, folder / "individual-shapes.safetensors")
    with refused("no class embeddings of task 'shapes'"):
        checkpoints.find(request(tree, "own", ("shapes",)))
    (folder / "heads.safetensors").write_bytes(b"x")
    with refused("cannot read", "heads.safetensors: it is text"):
        checkpoints.find(request(tree, "own", ("shapes",)))
    save_file(vision_files.base_state(dataclasses.replace(TINY, layers=1)), folder / "individual-shapes.safetensors")
    with refused("another backbone"):
        checkpoints.find(request(tree, "own", ("shapes",)))


def test_packaged_families_name_every_task() -> None:
    tall = families.family_of("tall")
    assert len(families.family_of("ta").tasks) == 8
    assert len(tall.tasks) == len(families.family_of("fusionbench").tasks) == 20
    assert set(families.family_of("fusionbench").tasks) == set(tall.tasks)
    assert set(families.family_of("ta").tasks) < set(tall.tasks)
    for family in map(families.family_of, families.PACKAGED):
        assert set(family.archs) == set(family.bases) == set(clip.SIZES)
        for place in family.places:
            assert all(known.sha256 is None or len(known.sha256) in (12, 64) for known in place.files.values())

"""Converted files whose bytes changed while size, dates and number stayed: found before anything is computed, made again."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from fusionbench_lite import checkpoints
from fusionbench_lite.base.file_hashes import state_of
from fusionbench_lite.checkpoints import Found, soundness, store
from fusionbench_lite.errors import InputError
from fusionbench_lite.weights.readers import checksum, write_tensors
from tests.checkpoints.test_checkpoints import TASKS, request, same, visual
from tests.support import vision_files
from tests.support.mirror import Mirror, mirror  # noqa: F401  (a fixture)
from tests.support.vision_files import TINY


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    """The releases of two tasks, and the base models."""
    root = tmp_path / "releases"
    vision_files.write_ta(root / "ta", "vit_b32", TASKS, TINY)
    vision_files.write_fusionbench(root / "fusionbench", "vit_b32", TASKS, TINY)
    vision_files.write_openai(root / "fusionbench", "vit_b32", TINY)
    vision_files.write_manifests(root / "manifests")
    return root


@pytest.fixture(autouse=True)
def new_process() -> None:
    soundness._seen.clear()


def rot(path: Path) -> None:
    """Change bytes as a disk does: the file system, and so the stamp, say what they said before."""
    content = bytearray(path.read_bytes())
    start = 8 + int.from_bytes(content[:8], "little")
    for byte in range(start + 2, len(content), 4):
        content[byte] ^= 0x40
    path.write_bytes(content)
    path.with_suffix(".stamp").write_text(state_of(path))
    soundness._seen.clear()


def hashed(monkeypatch: pytest.MonkeyPatch) -> list[Path]:
    """The files that are hashed from here on."""
    found: list[Path] = []
    original = soundness.is_sound
    monkeypatch.setattr(soundness, "is_sound", lambda path, *rest: (found.append(path), original(path, *rest))[1])
    return found


def parts(found: Found) -> dict[str, Path]:
    """The converted files of a result, without heads that are built."""
    heads = {f"head-{task}": path for task, path in found.heads.items() if path is not None}
    base = {"pretrained": found.pretrained, "constants": found.constants, "text": found.text}
    return {**found.experts, **heads, **{name: path for name, path in base.items() if path is not None}}


@pytest.mark.parametrize(("family", "part"), [
    ("ta", "dtd"), ("ta", "pretrained"), ("ta", "head-mnist"), ("fusionbench", "constants"), ("fusionbench", "text"),
])
def test_a_file_that_rotted_is_made_again(family: str, part: str, tree: Path, tmp_path: Path, caplog) -> None:
    first = checkpoints.find(request(tree, tmp_path, family))
    path = parts(first)[part]
    sound = {name: tensor.clone() for name, tensor in load_file(path).items()}  # the file is mapped, and changes below
    rot(path)
    assert not same(path, sound)
    assert checkpoints.find(request(tree, tmp_path, family)) == first
    assert same(path, sound)
    assert [record.getMessage() for record in caplog.records] == [
        f"{path} does not hold what was written there: the disk may be damaged: it is made again from its source"
    ]


def test_a_new_expert_is_not_compared_with_a_base_that_rotted(tree: Path, tmp_path: Path) -> None:
    checkpoints.find(request(tree, tmp_path, "ta", ("mnist",)))
    (leftovers,) = (tmp_path / "checkpoints" / "base-open_clip").rglob("leftovers-*.safetensors")
    rot(leftovers)
    found = checkpoints.find(request(tree, tmp_path, "ta"))  # dtd is converted now
    assert same(found.experts["dtd"], visual(vision_files.expert_state(TINY, "dtd")))


def test_without_its_source_a_file_that_rotted_is_refused_by_name(
    mirror: Mirror, tmp_path: Path, monkeypatch: pytest.MonkeyPatch  # noqa: F811
) -> None:
    models = mirror.root / "models"
    vision_files.write_ta(models / "SphereLab" / "vision_models_in_FDA", "vit_b32", TASKS, TINY)
    vision_files.write_timm(models, "vit_b32", TINY)
    vision_files.write_manifests(tmp_path / "manifests")
    asked = request(tmp_path, tmp_path / "cache", "ta", dir=None)
    first = checkpoints.find(asked)
    rot(first.experts["dtd"])
    shutil.rmtree(tmp_path / "cache" / "hub")
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    with pytest.raises(InputError) as caught:
        checkpoints.find(asked)
    said = str(caught.value)
    assert said.startswith(f"{first.experts['dtd']} is damaged and cannot be made again: the ta expert of 'dtd'")
    assert "\n" not in said
    items = [item for item in checkpoints.inventory(asked) if not item.present]
    assert [item.task for item in items] == ["dtd"]  # `doctor` does not count it either
    monkeypatch.delenv("HF_HUB_OFFLINE")
    assert checkpoints.find(asked) == first  # downloaded again


def test_a_file_that_cannot_be_replaced_is_refused_by_name(tree: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = checkpoints.find(request(tree, tmp_path, "ta"))
    rot(first.experts["mnist"])
    (first.experts["mnist"].parent / "expert-mnist.lock").unlink()
    (first.experts["mnist"].parent / "expert-mnist.lock").mkdir()  # nothing can be converted
    with pytest.raises(InputError, match=r"expert-mnist-.*\.safetensors is damaged and cannot be made again: cannot write"):
        checkpoints.find(request(tree, tmp_path, "ta"))


def test_files_are_hashed_once_per_process(tree: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    files = hashed(monkeypatch)
    first = checkpoints.find(request(tree, tmp_path, "ta"))
    assert files == []  # what was just written is known
    soundness._seen.clear()
    told: list[tuple[str, int, int]] = []
    assert checkpoints.find(request(tree, tmp_path, "ta"), lambda *what: told.append(what)) == first
    assert len(files) == len(set(files)) == 6  # two experts, two heads, the tower and what lies beside it
    assert ("checking converted files", 6, 6) in told
    for tasks in (TASKS, ("dtd",)):
        checkpoints.find(request(tree, tmp_path, "ta", tasks))
    assert len(files) == 6
    first.experts["dtd"].write_bytes(first.experts["dtd"].read_bytes())  # another time of change
    first.experts["dtd"].with_suffix(".stamp").write_text(state_of(first.experts["dtd"]))
    checkpoints.find(request(tree, tmp_path, "ta"))
    assert files[6:] == [first.experts["dtd"]]


def test_the_base_of_a_fine_tuning_is_checked(tree: Path, tmp_path: Path) -> None:
    asked = request(tree, tmp_path, "fusionbench")
    first = checkpoints.find_base(asked)
    sound = {name: tensor.clone() for name, tensor in load_file(first.pretrained).items()}
    rot(first.pretrained)
    assert checkpoints.find_base(asked) == first
    assert same(first.pretrained, sound)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16, torch.float64])
def test_the_checksum_of_a_file_is_that_of_its_tensors(dtype: torch.dtype, tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr(soundness, "_PIECE", 64)  # pieces that end within tensors
    values = np.random.default_rng(0)
    tensors = {name: torch.from_numpy(values.normal(size=shape)).to(dtype) for name, shape in
               (("b", (5, 7)), ("a", (1000,)), ("scale", ()), ("none", (0, 3)))}
    path = tmp_path / "file.safetensors"
    write_tensors(path, tensors, {"said": "something"})
    assert soundness.is_sound(path, "salt", checksum("salt", tensors))
    assert not soundness.is_sound(path, "other salt", checksum("salt", tensors))
    path.write_bytes(path.read_bytes()[:-1])
    assert not soundness.is_sound(path, "salt", checksum("salt", tensors))
    assert not soundness.is_sound(tmp_path / "absent", "salt", None)


def test_several_files_that_rotted_are_all_named_or_counted(tree: Path, tmp_path: Path) -> None:
    first = checkpoints.find(request(tree, tmp_path, "ta"))
    for path in first.experts.values():
        rot(path)
    files = [(path, store.metadata_of(path)) for path in first.experts.values()]
    with pytest.raises(soundness.Damaged, match=r"expert-mnist-.* and 1 more does not hold"):
        store.check((path, metadata) for path, metadata in files if metadata is not None)


def test_what_is_missing_beside_a_file_that_was_made_again_is_named(tree: Path, tmp_path: Path) -> None:
    path = tmp_path / "one"
    path.write_bytes(b"rotten")
    soundness.note(path, sound=False)
    turns = iter([soundness.Damaged([path]), InputError("expert of 'dtd' is nowhere")])

    def look() -> None:
        soundness.note(path)  # as making it again does
        raise next(turns)

    with pytest.raises(InputError, match=r"^expert of 'dtd' is nowhere$"):
        soundness.until_sound(look)


def test_a_file_whose_dates_change_while_it_is_hashed_is_hashed_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path, given, states = tmp_path / "one", soundness._checksum, iter(["unseen", "before"])
    save_file({"weight": torch.ones(3)}, path)
    expected = checksum("salt", load_file(path))
    monkeypatch.setattr(soundness, "state_of", lambda path: next(states, "after"))
    hashed: list[Path] = []
    monkeypatch.setattr(soundness, "_checksum", lambda file, salt: (hashed.append(path), given(file, salt))[1])
    soundness.check({path: ("salt", expected)})
    assert len(hashed) == 2
    assert soundness.seen(path)

"""checkpoints=own says of each file of the folder what it is, where it is no model."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from fusionbench_lite import checkpoints
from fusionbench_lite.checkpoints import Request
from fusionbench_lite.errors import InputError
from tests.support import vision_files
from tests.support.vision_files import TINY

FILES = ("pretrained.safetensors", "individual-mnist.safetensors", "heads.safetensors", "traditional_mtl.safetensors")


def own(folder: Path) -> Path:
    """Write the folder with one task and all its files."""
    folder.mkdir(parents=True)
    tower = {name[7:]: tensor for name, tensor in vision_files.base_state(TINY).items() if name.startswith("visual.")}
    for file in FILES:
        save_file({"mnist": torch.eye(10, TINY.output)} if file == "heads.safetensors" else tower, folder / file)
    return folder


def refusal(folder: Path) -> str:
    asked = Request(
        model="vit_b32", size=TINY, layout="packed", family="own", tasks=("mnist",), cache=folder.parent / "cache", dir=folder
    )
    with pytest.raises(InputError) as caught:
        checkpoints.find(asked)
    assert "\n" not in str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize("file", FILES)
def test_files_that_are_something_else(tmp_path, file):
    path = own(tmp_path / "own") / file
    path.write_bytes(b"version https://git-lfs.github.com/spec/v1\noid sha256:" + b"a" * 64 + b"\nsize 7\n")
    assert f"cannot read {path}: it is a Git LFS pointer" in refusal(path.parent)
    path.unlink()
    path.symlink_to(tmp_path / "gone")  # no reason to build heads from prompts, or to do without
    assert f"cannot read {path}: it is a link to {tmp_path / 'gone'}, which is not there" in refusal(path.parent)


@pytest.mark.parametrize("file", FILES)
def test_files_of_other_kinds(tmp_path, file):
    path = own(tmp_path / "own") / file
    save_file({"w": torch.zeros(2, 2, dtype=torch.int8), "w_scale": torch.ones(2)}, path)
    assert f"{path}: 'w' is stored quantised" in refusal(path.parent)
    save_file({"q.lora_A.weight": torch.zeros(2, 2), "q.lora_B.weight": torch.zeros(2, 2)}, path)
    assert f"{path} holds the factors of a LoRA adapter" in refusal(path.parent)


def test_a_folder_too_high(tmp_path):
    own(tmp_path / "zoo" / "own")
    assert refusal(tmp_path / "zoo").endswith(f"or give checkpoints.dir={tmp_path / 'zoo' / 'own'}")

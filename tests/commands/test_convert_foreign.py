"""What `convert` cannot use is told in one line by what it is, with what to do; where that can be followed here, it is."""

from __future__ import annotations

import gzip
import shutil
import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn

from fusionbench_lite import convert
from fusionbench_lite.models import clip
from tests.commands.test_convert_wrapped import STATE, TOWER, converted, refused, same, small, under  # noqa: F401
from tests.support import vision_files
from tests.support.vision_files import TINY

POINTER = f"version https://git-lfs.github.com/spec/v1\noid sha256:{'a' * 64}\nsize 350000000\n"


def zipped(name: str) -> None:
    torch.save(STATE, "model.pt")
    with zipfile.ZipFile(name, "w") as archive:
        archive.write("model.pt")
    Path("model.pt").unlink()


def cut(name: str, length: int) -> None:
    save_file(STATE, name) if name.endswith(".safetensors") else torch.save(STATE, name)
    Path(name).write_bytes(Path(name).read_bytes()[:length])


def keras(name: str) -> None:
    Path(name).write_bytes(b"\x89HDF\r\n\x1a\n" + bytes(600))


FILES: dict[str, tuple[str, Callable[[str], object], tuple[str, ...]]] = {
    "empty": ("a.pt", lambda f: Path(f).touch(), ("is empty (0 bytes)", "fetch it again")),
    "page": ("a.pt", lambda f: Path(f).write_text("<!DOCTYPE html><html>Quota exceeded</html>"), ("a web page",)),
    "refusal of a hub": ("a.bin", lambda f: Path(f).write_text("Entry not found"), ("text ('Entry not found')",)),
    "pointer": ("a.safetensors", lambda f: Path(f).write_text(POINTER), ("Git LFS pointer", "350,000,000 bytes", "git lfs pull")),
    "pointer as .pt": ("a.pt", lambda f: Path(f).write_text(POINTER), ("git lfs pull",)),
    "configuration": ("config.json", lambda f: Path(f).write_text("{}"), ("is a configuration", "give its folder")),
    "numpy": ("a.npy", lambda f: np.save(f, np.zeros(3)), ("NumPy",)),
    "several of numpy": ("a.npz", lambda f: np.savez(f, a=np.zeros(3)), ("NumPy (.npz)", "as a state dict")),
    "gguf": ("a.gguf", lambda f: Path(f).write_bytes(b"GGUF" + bytes(600)), ("GGUF",)),
    "onnx": ("a.onnx", lambda f: Path(f).write_bytes(b"\x08\x07\x12\x07pytorch" + bytes(600)), ("ONNX", "state_dict()")),
    "keras": ("a.h5", keras, ("Keras or HDF5",)),
    "flax": ("a.msgpack", lambda f: Path(f).write_bytes(b"\x82\xa6params"), ("Flax",)),
    "zip": ("a.zip", zipped, ("a zip archive", "unpack it")),
    "gzip": ("a.pt.gz", lambda f: Path(f).write_bytes(gzip.compress(b"x" * 900)), ("gzip", "unpack it")),
    "cut header": ("a.safetensors", lambda f: cut(f, 900), ("incomplete",)),
    "cut values": ("a.safetensors", lambda f: cut(f, -9), ("incomplete",)),
    "cut archive": ("a.pt", lambda f: cut(f, -999), ("damaged archive",)),
    "nothing in it": ("a.safetensors", lambda f: save_file({}, f), ("0 tensors",)),
    "folder": ("a", lambda f: Path(f).mkdir(), ("is empty",)),
    "folder of pickles": ("a", lambda f: vision_files.save(STATE, Path(f, "pytorch_model.bin")), ("only pytorch_model.bin",)),
    "link": ("a.pt", lambda f: Path(f).symlink_to("blob"), ("a.pt", "a link to blob, which is not there")),
}


@pytest.mark.parametrize("name", FILES)
def test_files_that_are_no_weights(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    file, write, parts = FILES[name]
    write(file)
    message = refused(capsys, file, "out.safetensors")
    assert file in message
    for part in parts:
        assert part in message, message


TOWERS = {
    "quantised codes": ({**STATE, "visual.proj": torch.zeros(32, 16, dtype=torch.int8), "visual.proj_scale": torch.ones(1)},
                        ("'proj'", "quantised (I8", "16 or 32 bits")),
    "quantised fp8": ({**STATE, "visual.proj": torch.zeros(32, 16).to(torch.float8_e4m3fn)}, ("quantised (F8_E4M3",)),
    "bitsandbytes": ({**STATE, "visual.transformer.resblocks.0.mlp.c_fc.weight": torch.zeros(99, 1, dtype=torch.uint8),
                      "visual.transformer.resblocks.0.mlp.c_fc.weight.absmax": torch.ones(9)}, ("quantised (U8",)),
    "flat": ({**STATE, "visual.conv1.weight": torch.zeros(384)}, ("FULL_STATE_DICT",)),
    "flat block": ({**STATE, "visual.transformer.resblocks.0.mlp.c_fc.weight": torch.zeros(0)},
                   ("c_fc.weight", "(0,)", "zero_to_fp32")),
    "text side": ({name: tensor for name, tensor in STATE.items() if not name.startswith("visual.")}, ("text side",)),
    "half": ({name: tensor for name, tensor in STATE.items() if "conv1" not in name},
             ("lacks 'visual.conv1.weight'", "half a tower")),
    "adapter": ({"base_model.model.vision_model.encoder.layers.0.self_attn.q_proj.lora_A.weight": torch.zeros(2, 8)}, ("LoRA",)),
    "a prompt": ({**STATE, "visual.prompt": torch.zeros(4, 32)}, ("has 'prompt', which the model lacks", "give one without")),
    "integers": ({**STATE, "visual.proj": torch.zeros(32, 16, dtype=torch.int64)}, ("'proj' has dtype torch.int64",)),
    "not finite": ({**STATE, "visual.proj": torch.full((32, 16), float("nan"))}, ("512 of 512 values of 'proj' are not finite",)),
    "head with a bias": ({"weight": torch.ones(10, 16), "bias": torch.ones(10)}, ("a bias of up to 1", "zero-shot")),
    "layers": ({"a.weight": torch.ones(10, 16), "b.weight": torch.ones(10, 16)}, ("no image tower of CLIP",)),
    "another size": (vision_files.base_state(clip.ClipSize(
        image=32, patch=8, width=16, layers=1, heads=2, output=16, text_width=24, text_layers=1, text_heads=2, vocabulary=9
    )), ("no known model (patch 8, width 16, 1 blocks)", "give one of vit_b32")),
}


@pytest.mark.parametrize("name", TOWERS)
@pytest.mark.parametrize("form", ["safetensors", "pt"])
def test_towers_that_cannot_be_used(name: str, form: str, capsys: pytest.CaptureFixture[str]) -> None:
    tensors, parts = TOWERS[name]
    file = f"in.{form}"
    save_file(tensors, file) if form == "safetensors" else torch.save(tensors, file)
    message = refused(capsys, file, "out.safetensors")
    assert file in message
    for part in parts if "fp8" not in name or form == "safetensors" else ("8-bit floats", "16 or 32 bits"):
        assert part in message, message


def test_a_torchscript_program_is_mended_as_it_says(capsys: pytest.CaptureFixture[str]) -> None:
    class Model(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x

    model = Model()
    model.visual = clip.build(TINY, "packed")
    model.visual.load_state_dict(TOWER)
    with torch.no_grad():
        torch.jit.trace(model, torch.zeros(1)).save("in.pt")
    message = refused(capsys, "in.pt", "out.safetensors")
    assert "TorchScript" in message
    fix = message[message.index("torch.save("):].strip()
    exec(fix.replace("FILE", "'in.pt'"), {"torch": torch})
    assert same(converted("weights.pt"), TOWER)


def test_other_fixes_are_followed(capsys: pytest.CaptureFixture[str]) -> None:
    zipped("in.zip")
    assert "unpack it" in refused(capsys, "in.zip", "out.safetensors")
    shutil.unpack_archive("in.zip", "unpacked")
    assert same(converted("unpacked/model.pt"), TOWER)
    weight = vision_files.head_weight(TINY, "mnist", 10)
    torch.save(weight, "head.pt")
    assert "torch.save({'weight': tensor}, FILE)" in refused(capsys, "head.pt", "out2.safetensors")
    torch.save({"weight": weight}, "head.pt")
    assert same(converted("head.pt"), {"weight": weight})
    torch.save([STATE["visual.proj"], STATE["visual.class_embedding"]], "list.pt")
    assert "a list of 2 tensors without names" in refused(capsys, "list.pt", "out2.safetensors")
    torch.save({"w": TOWER["proj"].to_sparse(), **under("visual.", TOWER)}, "sparse.pt")
    assert "to_dense()" in refused(capsys, "sparse.pt", "out2.safetensors")


def test_no_right_to_read(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    def denied(*_: object, **__: object) -> None:
        raise PermissionError(13, "Permission denied")

    torch.save(STATE, "in.pt")
    with monkeypatch.context() as patched:
        patched.setattr(Path, "open", denied)
        assert "cannot read in.pt: Permission denied" in refused(capsys, "in.pt", "out.safetensors")
    monkeypatch.setattr(convert, "file_sha256", denied)
    assert "cannot read in.pt: Permission denied" in refused(capsys, "in.pt", "out.safetensors")


def test_what_lies_beside_a_tower_makes_no_difference() -> None:
    """A scale of shape [1], a quantised language model, positions and the state of a random generator."""
    beside = {
        "logit_scale": torch.ones(1), "lm.weight": torch.zeros(9, 9, dtype=torch.int8), "lm.weight_scale": torch.ones(9),
        "visual.position_ids": torch.arange(5), "rng": torch.get_rng_state(),
    }
    save_file({**under("visual.", TOWER), **beside}, "in.safetensors")
    assert same(converted("in.safetensors"), TOWER)
    assert load_file("out.safetensors")["proj"].dtype == torch.float32

"""`python -m fusionbench_lite.convert`: any supported file becomes safetensors, bad input one line and status 2."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from fusionbench_lite import convert
from fusionbench_lite.models import clip
from fusionbench_lite.paths import file_sha256
from tests.checkpoints.test_checkpoints import in_layout, same, visual
from tests.conftest import ROOT
from tests.support import vision_files
from tests.support.vision_files import TINY


@pytest.fixture(autouse=True)
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    """The models of the command line, small."""
    monkeypatch.setattr(clip, "SIZES", {"vit_b32": TINY, "vit_b16": clip.ClipSize(
        image=32, patch=8, width=32, layers=2, heads=2, output=16, text_width=24, text_layers=1, text_heads=2, vocabulary=64
    )})


STATE = vision_files.expert_state(TINY, "mnist")


def write(path: Path, form: str) -> Path:
    if form in ("zip", "legacy", "pickle"):
        vision_files.write_module_encoder(path, STATE, TINY, container=form)
    elif form == "tall":
        vision_files.save({**vision_files.encoder_entries(STATE), "model_name": "ViT-B-32"}, path)
    elif form == "tower":
        save_file(vision_files.transformers_tower(STATE, ""), path)
    elif form == "whole":
        vision_files.save(vision_files.transformers_model(STATE), path)
    else:
        save_file(STATE, path)
    return path


@pytest.mark.parametrize(("form", "family", "layout", "leftovers"), [
    ("zip", "ta", "packed", "6 tensors, 3,817 parameters left out: 'positional_embedding'"),
    ("legacy", "ta", "packed", "6 tensors"), ("pickle", "ta", "packed", "6 tensors"),
    ("tall", "tall (or a plain re-upload of ta)", "packed", "6 tensors"),
    ("tower", "fusionbench", "separate", "none"), ("whole", "a whole model of transformers", "separate", "22 tensors"),
    ("open_clip", "a whole model of open_clip", "packed", "18 tensors"),
])
@pytest.mark.parametrize("wanted", [None, "packed", "separate"])
def test_every_form(
    form: str, family: str, layout: str, leftovers: str, wanted: str | None, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    source, out = write(tmp_path / "in.pt", form), tmp_path / "new" / "out.safetensors"
    assert convert.main([str(source), str(out), "model=vit_b32", *([f"layout={wanted}"] if wanted else [])]) == 0
    said = capsys.readouterr().out
    for part in (file_sha256(source), f"family      {family}\n", f"leftovers   {leftovers}", "image tower of vit_b32", str(out)):
        assert part in said, said
    expected = in_layout(visual(STATE), wanted or layout)
    if form == "tower":
        expected = {name: tensor for name, tensor in expected.items() if name not in ("proj", "visual_projection.weight")}
    assert same(out, expected)
    with safe_open(out, "pt") as opened:
        assert opened.metadata()["source_sha256"] == file_sha256(source)


def test_the_model_is_found_by_its_shapes(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    source = write(tmp_path / "in.pt", "zip")
    assert convert.main([str(source), str(tmp_path / "out.safetensors")]) == 0
    assert "image tower of vit_b32, with its projection" in capsys.readouterr().out
    assert convert.main([str(source), str(tmp_path / "other.safetensors"), "model=vit_b16"]) == 2
    message = capsys.readouterr().err
    assert "looks like vit_b32" in message
    assert message.count("\n") == 1
    assert not (tmp_path / "other.safetensors").exists()


def test_heads(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    weight, source = vision_files.head_weight(TINY, "mnist", 10), tmp_path / "head.pt"
    vision_files.write_module_head(source, weight, "src.models.modeling")
    assert convert.main([str(source), str(tmp_path / "out.safetensors")]) == 0
    said = capsys.readouterr().out
    assert "head of 10 classes, 16 wide, row norm 100" in said
    assert "src.models.modeling.ClassificationHead with" in said
    assert "normalize=True" in said
    assert torch.equal(load_file(tmp_path / "out.safetensors")["weight"], weight)


def test_own_output_is_accepted_again(tmp_path: Path) -> None:
    source, out = write(tmp_path / "in.pt", "zip"), tmp_path / "out.safetensors"
    assert convert.main([str(source), str(out)]) == 0
    assert convert.main([str(out), str(tmp_path / "separate.safetensors"), "layout=separate"]) == 0
    assert convert.main([str(tmp_path / "separate.safetensors"), str(tmp_path / "back.safetensors"), "layout=packed"]) == 0
    assert same(tmp_path / "back.safetensors", load_file(out))


@pytest.mark.parametrize(("arguments", "parts"), [
    ([], ("give SOURCE and OUT, got 0 paths",)), (["in.pt"], ("got 1 paths",)), (["in.pt", "a", "b"], ("got 3 paths",)),
    (["none.pt", "out.safetensors"], ("none.pt is no file",)), (["in.pt", "out.pt"], ("must end in .safetensors",)),
    (["in.pt", "out.safetensors", "model=vit_b23"], ("unknown model 'vit_b23'", "did you mean 'vit_b32'?")),
    (["in.pt", "out.safetensors", "layout=pack"], ("unknown layout 'pack'", "did you mean 'packed'?")),
    (["in.pt", "out.safetensors", "modle=vit_b32"], ("unknown key 'modle'", "did you mean 'model'?")),
    (["same.safetensors", "same.safetensors"], ("is the source itself",)),
    (["junk.pt", "out.safetensors"], ("junk.pt", "text ('junk')")),
    (["a" * 300, "out.safetensors"], ("File name too long", "give another path")),
    (["in.pt", "a" * 300 + ".safetensors"], ("File name too long", "give another path")),
    (["in.pt", "folder.safetensors"], ("folder.safetensors",)),
    (["in.pt", "junk.pt/out.safetensors"], ("junk.pt/out.safetensors",)),
    (["evil.pt", "out.safetensors"], ("evil.pt", "posix.system")), (["other.safetensors", "out.safetensors"], ("no image tower",)),
])
def test_bad_input(
    arguments: list[str], parts: tuple[str, ...], tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    class Call:
        def __reduce__(self) -> object:
            import os

            return os.system, ("touch canary",)

    monkeypatch.chdir(tmp_path)
    write(Path("in.pt"), "tall")
    save_file({"w": torch.zeros(1)}, "same.safetensors")
    save_file({"a": torch.zeros(1), "b": torch.zeros(1)}, "other.safetensors")
    Path("junk.pt").write_bytes(b"junk")
    Path("folder.safetensors").mkdir()
    torch.save(Call(), "evil.pt")
    before = sorted(path.name for path in tmp_path.iterdir())
    assert convert.main(arguments) == 2
    message = capsys.readouterr().err
    assert message.startswith("fusionbench_lite: ")
    assert message.count("\n") == 1
    for part in parts:
        assert part in message, message
    assert sorted(path.name for path in tmp_path.iterdir()) == before


def test_help_does_not_import_torch() -> None:
    code = "import sys\nfrom fusionbench_lite.convert import main\nassert main(['--help']) == 0\nassert 'torch' not in sys.modules"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr
    assert "SOURCE" in done.stdout

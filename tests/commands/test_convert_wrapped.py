"""`convert` of training checkpoints: the same bits as of the bare state dict, with what was taken off told; two towers, shards."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import nn

from fusionbench_lite import convert
from fusionbench_lite.models import clip
from tests.support import vision_files
from tests.support.helpers import State
from tests.support.vision_files import TINY

STATE = vision_files.expert_state(TINY, "mnist")
TOWER = {name[7:]: tensor for name, tensor in STATE.items() if name.startswith("visual.")}
OPTIMIZER = {"state": {0: {"exp_avg": torch.zeros(3), "step": torch.tensor(1.0)}}, "param_groups": [{"lr": 1e-5, "params": [0]}]}


@pytest.fixture(autouse=True)
def small(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(clip, "SIZES", {"vit_b32": TINY})
    monkeypatch.chdir(tmp_path)


def under(prefix: str, state: State = STATE) -> State:
    return {prefix + name: tensor for name, tensor in state.items()}


def converted(*arguments: str) -> State:
    assert convert.main([*arguments, "out.safetensors"]) == 0
    return load_file("out.safetensors")


def refused(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    """The command is refused in one line, and nothing is written."""
    before = {path: path.lstat().st_mtime_ns for path in Path().rglob("*")}
    capsys.readouterr()
    assert convert.main([*arguments]) == 2
    said = capsys.readouterr()
    assert said.err.startswith("fusionbench_lite: ")
    assert said.err.count("\n") == 1
    assert not said.out
    assert {path: path.lstat().st_mtime_ns for path in Path().rglob("*")} == before
    return said.err


def same(a: State, b: State) -> bool:
    return set(a) == set(b) and all(a[name].dtype == b[name].dtype and torch.equal(a[name], b[name]) for name in a)


WRAPPED: dict[str, tuple[Callable[[], Any], str]] = {
    "epoch_32.pt": (
        lambda: {"epoch": 32, "name": "run", "state_dict": under("module."), "optimizer": OPTIMIZER}, "state_dict.module.",
    ),
    "model and optimizer": (lambda: {"model": STATE, "optimizer": OPTIMIZER, "iter": 10}, "model."),
    "model_state_dict": (lambda: {"model_state_dict": under("_orig_mod.module.")}, "model_state_dict._orig_mod.module."),
    "lightning": (lambda: {
        "epoch": 1, "pytorch-lightning_version": "2.6.6", "state_dict": under("model."), "loops": {}, "callbacks": {},
        "optimizer_states": [OPTIMIZER], "lr_schedulers": [], "hyper_parameters": {"lr": 0.1},
    }, "state_dict.model."),
    "visual compiled": (lambda: {name.replace("visual.", "visual._orig_mod."): t for name, t in STATE.items()}, "._orig_mod."),
    "average alone": (lambda: {"ema": under("module."), "args": None}, "ema.module."),
    "with a head": (lambda: {**under("image_encoder.model."), "head.weight": torch.ones(3, 16)}, "image_encoder.model."),
    "tuple": (lambda: (under("net."), 10), "0.net."), "deepspeed": (lambda: {"module": STATE, "dp_world_size": 1}, "module."),
    "averaged model": (lambda: {"n_averaged": torch.tensor(2), **under("module.")}, "module."),
}


@pytest.mark.parametrize("name", WRAPPED)
@pytest.mark.parametrize("container", ["zip", "legacy", "pickle"])
def test_wrapped_files_give_the_bits_of_the_bare_one(name: str, container: str, capsys: pytest.CaptureFixture[str]) -> None:
    vision_files.save(STATE, Path("bare.pt"))
    bare = converted("bare.pt")
    assert same(bare, TOWER)
    assert "taken off" not in capsys.readouterr().out
    make, taken = WRAPPED[name]
    vision_files.save(make(), Path("in.pt"), container)
    assert same(converted("in.pt"), bare)
    assert f"taken off   {taken} of the names" in capsys.readouterr().out
    with safe_open("out.safetensors", "pt") as opened:
        assert opened.metadata()["taken_off"] == taken


@pytest.mark.parametrize("prefix", ["module.", "model.module.", "net._orig_mod.", "clip."])
@pytest.mark.parametrize("layout", ["packed", "separate"])
def test_wrapped_safetensors(prefix: str, layout: str, capsys: pytest.CaptureFixture[str]) -> None:
    state = STATE if layout == "packed" else vision_files.transformers_model(STATE)
    save_file(under(prefix, state), "in.safetensors")
    assert same(converted("in.safetensors", "layout=packed"), TOWER)
    assert f"taken off   {prefix} of" in capsys.readouterr().out


def test_model_and_moving_average(capsys: pytest.CaptureFixture[str]) -> None:
    average = {name: tensor + 0.5 for name, tensor in STATE.items()}
    torch.save({"state_dict": under("module."), "state_dict_ema": under("module.", average), "epoch": 1}, "in.pt")
    message = refused(capsys, "in.pt", "out.safetensors")
    assert "two image towers that differ, at 'state_dict.visual' and at 'state_dict_ema.visual'" in message
    assert "tower=state_dict.visual` or tower=state_dict_ema.visual" in message
    for choice in ("state_dict_ema", "state_dict_ema.visual", "state_dict_ema.module"):  # the fix, and shorter
        assert torch.equal(converted("in.pt", f"tower={choice}")["proj"], average["visual.proj"])
    assert torch.equal(converted("in.pt", "tower=state_dict")["proj"], TOWER["proj"])
    message = refused(capsys, "in.pt", "other.safetensors", "tower=state_dict_emma")
    assert "nothing at tower=state_dict_emma: did you mean 'state_dict_ema.visual'?" in message


def test_student_and_teacher_of_a_safetensors_file(capsys: pytest.CaptureFixture[str]) -> None:
    save_file({**under("student."), **under("teacher.", {name: tensor + 1 for name, tensor in STATE.items()})}, "in.safetensors")
    assert "'student.visual' and at 'teacher.visual'" in refused(capsys, "in.safetensors", "out.safetensors")
    assert torch.equal(converted("in.safetensors", "tower=teacher")["proj"], TOWER["proj"] + 1)


def test_one_tower_under_two_names(capsys: pytest.CaptureFixture[str]) -> None:
    torch.save({"state_dict": {**under("model."), **under("encoder.", TOWER)}}, "in.pt")
    assert same(converted("in.pt"), TOWER)
    assert "twice       the same tensors are at 'state_dict.encoder' too" in capsys.readouterr().out


@pytest.mark.parametrize("wrap", [
    lambda w: {"weight": w}, lambda w: {"state_dict": {"head.weight": w, "head.bias": torch.zeros(len(w))}, "optimizer": OPTIMIZER},
    lambda w: {"head": linear(w)}, lambda w: [linear(w)],
])
def test_wrapped_heads(wrap: Callable[[torch.Tensor], Any], capsys: pytest.CaptureFixture[str]) -> None:
    weight = vision_files.head_weight(TINY, "mnist", 10)
    torch.save(wrap(weight), "in.pt")
    assert same(converted("in.pt"), {"weight": weight})
    assert "head of 10 classes" in capsys.readouterr().out


def linear(weight: torch.Tensor) -> nn.Module:
    layer = nn.Linear(weight.shape[1], weight.shape[0], bias=False)
    layer.weight.data.copy_(weight)
    return layer


def shards(folder: Path, state: State, count: int = 2) -> None:
    folder.mkdir()
    names, places = list(state), {}
    for number in range(count):
        file = f"model-{number + 1:05d}-of-{count:05d}.safetensors"
        part = names[number::count]
        save_file({name: state[name] for name in part}, folder / file)
        places |= dict.fromkeys(part, file)
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": places}))


def test_shards_an_index_and_their_folder(capsys: pytest.CaptureFixture[str]) -> None:
    shards(Path("model"), under("module."))
    message = refused(capsys, "model/model-00001-of-00002.safetensors", "out.safetensors")
    assert "is part 1 of 2 of a model" in message
    assert "give the folder" in message
    expected = TOWER
    assert same(converted("model"), expected)  # the fix
    assert same(converted("model/model.safetensors.index.json"), expected)
    assert "among the files of the source" in refused(capsys, "model", "model/model-00001-of-00002.safetensors")
    Path("model/model-00002-of-00002.safetensors").unlink()
    assert "model-00002-of-00002.safetensors" in refused(capsys, "model", "out.safetensors")


def test_a_shard_that_holds_the_whole_tower() -> None:
    """As the first of a vision and language model may."""
    save_file(under("model.vision_tower.", STATE), "model-00001-of-00003.safetensors")
    assert same(converted("model-00001-of-00003.safetensors"), TOWER)


def test_a_pickled_shard(capsys: pytest.CaptureFixture[str]) -> None:
    torch.save(dict(list(STATE.items())[:5]), "pytorch_model-00001-of-00002.bin")
    message = refused(capsys, "pytorch_model-00001-of-00002.bin", "out.safetensors")
    assert "is part 1 of 2 of a model" in message
    assert "save them as safetensors" in message


def test_the_home_folder_and_misspelt_names(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setenv("HOME", str(Path().absolute()))
    monkeypatch.setenv("RUNS", "runs")
    torch.save(STATE, "in.pt")
    assert convert.main(["~/in.pt", "~/$RUNS/out.safetensors"]) == 0
    assert Path("runs/out.safetensors").is_file()
    assert "did you mean 'in.pt'?" in refused(capsys, "inn.pt", "out.safetensors")

"""Training checkpoints: what lies inside dictionaries, lists and modules comes out, the rest is data or passed over."""

from __future__ import annotations

import argparse
import collections
import contextlib
import datetime
import sys
import types
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from fusionbench_lite.weights.pickles import read_pickled
from tests.support import vision_files
from tests.support.clip_models import input_refused
from tests.support.helpers import State

CONTAINERS = ("zip", "legacy", "pickle")
WEIGHTS = {"fc.weight": torch.arange(6.0).reshape(2, 3), "fc.bias": torch.arange(2.0)}


def same(a: State, b: State) -> bool:
    return list(a) == list(b) and all(torch.equal(a[name], b[name]) for name in a)


def trained() -> tuple[nn.Module, torch.optim.Optimizer]:
    model = nn.Sequential(collections.OrderedDict(fc=nn.Linear(3, 2)))
    model.load_state_dict(WEIGHTS)
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.0, weight_decay=0.0)
    model(torch.ones(1, 3)).sum().backward()
    optimizer.step()
    return model, optimizer


def read(content: Any, path: Path, container: str = "zip", **options: Any) -> Any:
    if options:
        torch.save(content, path, **options)
    else:
        vision_files.save(content, path, container)
    return read_pickled(path)


@pytest.mark.parametrize("container", CONTAINERS)
def test_what_training_scripts_save(container: str, tmp_path: Path) -> None:
    model, optimizer = trained()
    scheduler = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, 10)
    found = read({
        "epoch": 3, "name": "run", "state_dict": model.state_dict(), "optimizer": optimizer.state_dict(), "whole": optimizer,
        "scheduler": scheduler.state_dict(), "args": argparse.Namespace(lr=0.1, device=torch.device("cpu"), dtype=torch.float16),
        "rng": [torch.get_rng_state(), np.random.get_state()], "best": np.float64(0.5), "when": datetime.datetime(2024, 1, 2),
        "history": collections.defaultdict(list, {"loss": [1.0, 0.5]}), "last": collections.deque([1, 2], maxlen=2),
        "torch": torch.__version__, "out": Path("runs"), "space": types.SimpleNamespace(a=1), "n": collections.Counter("aab"),
    }, tmp_path / "c.pt", container)
    assert (found.kind, found.class_name) == ("checkpoint", "")
    assert found.attributes == {"epoch": 3, "name": "run"}
    expected = {f"state_dict.{name}": tensor for name, tensor in WEIGHTS.items()}
    assert same(found.tensors, {**expected, "rng.0": torch.get_rng_state()})


@pytest.mark.parametrize("container", CONTAINERS)
@pytest.mark.parametrize(("wrap", "prefix"), [
    (lambda s: {"a": {"b": {"c": s}}}, "a.b.c."), (lambda s: (s, 5), "0."), (lambda s: [s], "0."), (lambda s: {3: s}, "3."),
    (lambda s: {"models": [{"weights": s}]}, "models.0.weights."),
])
def test_state_dicts_inside(wrap: Any, prefix: str, container: str, tmp_path: Path) -> None:
    found = read(wrap(WEIGHTS), tmp_path / "c.pt", container)
    assert same(found.tensors, {prefix + name: tensor for name, tensor in WEIGHTS.items()})


@pytest.mark.parametrize("container", CONTAINERS)
def test_modules_inside(container: str, tmp_path: Path) -> None:
    model, _ = trained()
    model.normalize = False
    found = read({"epoch": 1, "model": model}, tmp_path / "c.pt", container)
    assert (found.kind, found.class_name) == ("checkpoint", "torch.nn.modules.container.Sequential")
    assert found.attributes == {"epoch": 1, "training": True, "normalize": False}
    assert same(found.tensors, {f"model.{name}": tensor for name, tensor in WEIGHTS.items()})
    for wrapped in (nn.DataParallel(model), torch.optim.swa_utils.AveragedModel(model)):
        found = read(wrapped, tmp_path / "c.pt", container)
        assert found.kind == "module"
        tensors = {name: tensor for name, tensor in found.tensors.items() if name != "n_averaged"}
        assert same(tensors, {f"module.{name}": tensor for name, tensor in WEIGHTS.items()})


def test_tensors_with_attributes_of_their_own(tmp_path: Path) -> None:
    parameter, tensor = nn.Parameter(torch.ones(2)), torch.zeros(3)
    parameter.tag, tensor.tag = "x", {"deep": [1]}  # type: ignore[attr-defined]
    found = read({"p": parameter, "t": tensor}, tmp_path / "c.pt")
    assert same(found.tensors, {"p": torch.ones(2), "t": torch.zeros(3)})


def test_the_state_of_optimizers_is_not_read(tmp_path: Path) -> None:
    """Its bytes may be gone or damaged: nothing but the model is taken from the file."""
    model, optimizer = trained()
    torch.save({"model": model.state_dict(), "optimizer": optimizer.state_dict()}, tmp_path / "c.pt")
    with zipfile.ZipFile(tmp_path / "c.pt") as source, zipfile.ZipFile(tmp_path / "d.pt", "w") as target:
        for entry in source.infolist():
            content = source.read(entry)
            target.writestr(entry.filename, b"" if "/data/" in entry.filename and entry.filename[-1] not in "01" else content)
    assert same(read_pickled(tmp_path / "d.pt").tensors, {f"model.{name}": tensor for name, tensor in WEIGHTS.items()})


@contextlib.contextmanager
def importable(module: str, **classes: type) -> Iterator[None]:
    """Classes under names of a package that is not there after the block."""
    made = types.ModuleType(module)
    for name, value in classes.items():
        value.__module__, value.__qualname__ = module, name
        setattr(made, name, value)
    before = {name: sys.modules.get(name) for name in (module, module.split(".")[0])}
    sys.modules[module] = made
    sys.modules.setdefault(module.split(".")[0], types.ModuleType(module.split(".")[0]))
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                sys.modules.pop(name, None)
            else:
                sys.modules[name] = value


@pytest.mark.parametrize("module", ["yacs.config", "easydict", "ml_collections.config_dict", "lightning.fabric.utilities.data"])
def test_configurations_of_packages_that_are_not_there(module: str, tmp_path: Path) -> None:
    """Kinds of dictionaries too, which are filled after they are made."""
    node = type("Node", (dict,), {})
    with importable(module, Node=node):
        config = node(lr=0.1, deep=node(a=[1, 2]))
        config.frozen = True
        torch.save({"model": WEIGHTS, "config": config, "models": node(ema=WEIGHTS)}, tmp_path / "c.pt")
    found = read_pickled(tmp_path / "c.pt")
    assert list(found.tensors) == [f"{place}.{name}" for place in ("model", "models.ema") for name in WEIGHTS]


def test_a_kind_of_dictionary_at_the_top(tmp_path: Path) -> None:
    node = type("EasyDict", (dict,), {})
    for content, kind in ((WEIGHTS, "state_dict"), ({"model": WEIGHTS}, "checkpoint")):
        with importable("easydict", EasyDict=node):
            torch.save(node(content), tmp_path / "c.pt")
        found = read_pickled(tmp_path / "c.pt")
        assert (found.kind, len(found.tensors)) == (kind, 2)


def test_callbacks_under_their_classes(tmp_path: Path) -> None:
    """As Lightning before 1.6 kept them."""
    callback = type("ModelCheckpoint", (), {})
    with importable("pytorch_lightning.callbacks.model_checkpoint", ModelCheckpoint=callback):
        torch.save({"callbacks": {callback: {"best": 1.0}, (callback, "a"): 2}, "state_dict": WEIGHTS}, tmp_path / "c.pt")
    assert list(read_pickled(tmp_path / "c.pt").tensors) == [f"state_dict.{name}" for name in WEIGHTS]


def test_containers_that_contain_themselves_end(tmp_path: Path) -> None:
    around: dict[str, Any] = {"model": WEIGHTS}
    around["self"] = around
    torch.save(around, tmp_path / "self.pt")
    laughs: Any = [torch.zeros(1)]
    for _ in range(40):
        laughs = [laughs, laughs]
    torch.save({"a": laughs}, tmp_path / "laughs.pt")
    for name in ("self", "laughs"):
        with input_refused("contains itself"):
            read_pickled(tmp_path / f"{name}.pt")


def test_two_tensors_under_one_name(tmp_path: Path) -> None:
    with input_refused("two tensors under the name 'a.b'"):
        read({"a.b": torch.zeros(1), "a": {"b": torch.ones(1)}}, tmp_path / "c.pt")


@pytest.mark.parametrize(("content", "parts"), [
    (torch.zeros(3), ("one tensor of shape (3,) without a name", "{'weight': tensor}")), (None, ("nothing (None)",)),
    ({}, ("an empty dictionary",)), ([], ("a list without tensors",)), ("text", ("a str without tensors",)),
    ({"state": {0: {"exp_avg": torch.zeros(3)}}, "param_groups": [{"lr": 1.0}]}, ("the state of an optimizer",)),
    ({"optimizer": {"state": {}, "param_groups": []}, "epoch": 1}, ("no tensors (entries 'optimizer', 'epoch')",)),
    (argparse.Namespace(a=1), ("'argparse.Namespace'",)), (nn.GELU(), ("no tensors",)),
    ({"w": torch.zeros(3).to(torch.float8_e4m3fn)}, ("8-bit floats", "quantised", "16 or 32 bits")),
    ({"w": torch.zeros(3, dtype=torch.complex64)}, ("complex tensors",)),
    ({"w": torch.eye(3).to_sparse()}, ("sparse", "to_dense()")),
    ({"w": torch.zeros(3, device="meta")}, ("without values, of the device meta",)),
])
def test_files_of_something_else_say_what(content: Any, parts: tuple[str, ...], tmp_path: Path) -> None:
    torch.save(content, tmp_path / "c.pt")
    with input_refused("c.pt: it holds", "nothing of the file was run: "):
        read_pickled(tmp_path / "c.pt")
    with pytest.raises(ValueError, match=r"c\.pt") as caught:
        read_pickled(tmp_path / "c.pt")
    for part in parts:
        assert part in str(caught.value)


def test_parts_of_sharded_tensors_are_named(tmp_path: Path) -> None:
    shard = type("DTensor", (), {})
    with importable("torch.distributed.tensor_of_tests", DTensor=shard):
        torch.save({"w": shard()}, tmp_path / "c.pt")
    with input_refused("one process's part", "FULL_STATE_DICT"):
        read_pickled(tmp_path / "c.pt")

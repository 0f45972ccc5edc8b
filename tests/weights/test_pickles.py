"""The restricted unpickler: what published files hold comes out, what a malicious one asks for never runs."""

from __future__ import annotations

import pickle
import random
import struct
import sys
import zipfile
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from fusionbench_lite.errors import InputError
from fusionbench_lite.weights.pickles import MAGIC, read_pickled
from tests.support import vision_files
from tests.support.vision_files import TINY

CONTAINERS = ("zip", "legacy", "pickle")


def same(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> bool:
    return list(a) == list(b) and all(a[n].dtype == b[n].dtype and torch.equal(a[n], b[n]) for n in a)


# ---------------------------------------------------------------- what comes out


@pytest.mark.parametrize("container", CONTAINERS)
def test_image_encoder_of_a_package_that_is_gone(container: str, tmp_path: Path) -> None:
    state, path = vision_files.base_state(TINY), tmp_path / "finetuned.pt"
    vision_files.write_module_encoder(path, state, TINY, container=container)
    assert "src" not in sys.modules
    with pytest.raises((ModuleNotFoundError, pickle.UnpicklingError, AttributeError)):
        torch.load(path, weights_only=False)
    found = read_pickled(path)
    assert (found.kind, found.class_name) == ("module", "src.modeling.ImageEncoder")
    assert found.attributes == {"training": True, "cache_dir": None}
    entries = vision_files.encoder_entries(state)
    assert set(found.tensors) == set(entries)
    assert all(torch.equal(found.tensors[name], entries[name]) for name in entries)
    assert "src" not in sys.modules


@pytest.mark.parametrize("container", CONTAINERS)
@pytest.mark.parametrize("modeling", ["src.modeling", "src.models.modeling"])
def test_head(container: str, modeling: str, tmp_path: Path) -> None:
    weight, path = vision_files.head_weight(TINY, "mnist", 10), tmp_path / "head.pt"
    vision_files.write_module_head(path, weight, modeling, container)
    found = read_pickled(path)
    assert found.class_name == f"{modeling}.ClassificationHead"
    assert found.attributes["normalize"] is True
    assert torch.equal(found.tensors["weight"], weight)
    assert not found.tensors["bias"].any()


@pytest.mark.parametrize("write", [
    lambda m, p: torch.save(m, p), lambda m, p: torch.save(m, p, _use_new_zipfile_serialization=False),
    *(lambda m, p, n=n: p.write_bytes(pickle.dumps(m, protocol=n)) for n in (2, 3, 4, 5)),
    lambda m, p: torch.save(m, p, pickle_protocol=4),
])
def test_modules_as_state_dict_lists_them(write: Callable[[Any, Path], None], tmp_path: Path) -> None:
    module = nn.Sequential(OrderedDict(
        first=nn.Linear(3, 4), norm=nn.BatchNorm1d(4), attention=nn.MultiheadAttention(8, 2), none=nn.Linear(2, 2, bias=False),
        deep=nn.ModuleList([nn.Sequential(nn.GELU(), nn.LayerNorm(4))]),
    ))
    module.first.register_buffer("mask", torch.ones(3), persistent=False)
    write(module, tmp_path / "m.pt")
    assert same(read_pickled(tmp_path / "m.pt").tensors, dict(module.state_dict()))


@pytest.mark.parametrize("container", CONTAINERS)
def test_state_dicts_with_odd_tensors(container: str, tmp_path: Path) -> None:
    base = torch.arange(60.0).reshape(6, 10)
    state: dict[str, Any] = OrderedDict(
        transposed=base.T, view=base[1:3, ::2], again=base, scalar=torch.tensor(4.6052), empty=torch.zeros(0, 3),
        half=torch.randn(3).half(), brain=torch.randn(3).bfloat16(), long=torch.arange(3), bytes=torch.arange(3, dtype=torch.uint8),
        flag=torch.tensor([True, False]), double=torch.randn(2, dtype=torch.float64), model_name="ViT-B-32", epoch=3,
    )
    vision_files.save(state, tmp_path / "s.pt", container)
    found = read_pickled(tmp_path / "s.pt")
    assert (found.kind, found.class_name, found.attributes) == ("state_dict", "", {"model_name": "ViT-B-32", "epoch": 3})
    assert same(found.tensors, {name: value for name, value in state.items() if isinstance(value, torch.Tensor)})


def text(value: str) -> bytes:
    raw = value.encode()
    return b"X" + struct.pack("<I", len(raw)) + raw


def old_start() -> bytes:
    system = {"protocol_version": 1001, "little_endian": True, "type_sizes": {"short": 2, "int": 4, "long": 4}}
    return b"".join(pickle.dumps(part, protocol=2) for part in (MAGIC, 1001, system))


def test_modules_that_contain_themselves_end(tmp_path: Path) -> None:
    module = nn.Module()
    module._modules["again"] = module
    torch.save(module, tmp_path / "self.pt")
    laughs: nn.Module = nn.Linear(1, 1)
    for _ in range(40):
        laughs = nn.ModuleList([laughs, laughs])
    torch.save(laughs, tmp_path / "laughs.pt")
    for name in ("self", "laughs"):
        with pytest.raises(InputError, match="modules and tensors"):
            read_pickled(tmp_path / f"{name}.pt")


def test_bombs_end(tmp_path: Path) -> None:
    deep = b"\x80\x02" + b")" + b"\x85" * 200_000
    bombs = {
        "memo": b"\x80\x02Nr\xff\xff\xff\x7f.", "length": b"\x80\x04\x8e" + struct.pack("<Q", 1 << 62) + b"x.",
        "text": b"\x80\x02X\xff\xff\xff\xff.", "key": b"\x80\x02}" + deep[2:] + b"K\x01s.", "deep": deep + b".",
        "marks": b"((((.",
        "list": b"\x80\x02" + b"]" + b"(]" * 100_000 + b"e" * 100_000 + b".", "long": b"L" + b"9" * 100_000 + b"L\n.",
        "set": b"\x80\x04\x8f(" + deep[2:] + b"\x90.", "nothing": b"", "stop": b".", "zeros": bytes(1000),
        "call": b"\x80\x02ctorch\nSize\n]" + deep[2:] + b"aR.",
    }
    for name, content in bombs.items():
        (tmp_path / name).write_bytes(content)
        with pytest.raises(InputError) as caught:
            read_pickled(tmp_path / name)
        assert "\n" not in str(caught.value)


def tensor_pickle(numel: int, offset: int, size: tuple[int, ...], stride: tuple[int, ...]) -> bytes:
    """A state dict of one tensor over a storage of `numel` floats, in the old format."""
    def numbers(values: tuple[int, ...]) -> bytes:
        return b"(" + b"".join(pickle.dumps(value, protocol=2)[2:-1] for value in values) + b"t"

    storage = b"(" + text("storage") + b"ctorch\nFloatStorage\n" + text("0") + text("cpu")
    storage += b"J" + struct.pack("<i", numel) + b"NtQ"
    body = b"\x80\x02}" + text("w") + b"ctorch._utils\n_rebuild_tensor_v2\n(" + storage + b"J" + struct.pack("<i", offset)
    body += numbers(size) + numbers(stride) + b"\x89}tRs."
    content = struct.pack("<q", numel) + struct.pack(f"<{numel}f", *range(numel))
    return old_start() + body + pickle.dumps(["0"], protocol=2) + content


@pytest.mark.parametrize(("numel", "offset", "size", "stride", "reason"), [
    (6, 0, (7,), (1,), "beyond its storage"), (6, 3, (2, 2), (2, 1), "beyond its storage"),
    (6, 0, (1 << 40,), (0,), "beyond its storage"),
    (6, 0, (1 << 60, 1 << 60), (0, 0), "impossible shape"), (6, -1, (2,), (1,), "impossible shape"),
    (6, 0, (2,), (1, 1), "impossible shape"), (6, 0, (2,), (-1,), "impossible shape"), (6, 6, (1,), (1,), "beyond its storage"),
])
def test_tensors_beyond_their_storage(
    numel: int, offset: int, size: tuple[int, ...], stride: tuple[int, ...], reason: str, tmp_path: Path
) -> None:
    (tmp_path / "good").write_bytes(tensor_pickle(6, 1, (2, 2), (2, 1)))
    assert read_pickled(tmp_path / "good").tensors["w"].tolist() == [[1, 2], [3, 4]]
    (tmp_path / "bad").write_bytes(tensor_pickle(numel, offset, size, stride))
    with pytest.raises(InputError, match=reason):
        read_pickled(tmp_path / "bad")


def test_tensors_that_repeat_a_storage_end(tmp_path: Path) -> None:
    weight = torch.randn(1000)
    torch.save({f"t{number}": weight for number in range(100)}, tmp_path / "s.pt")
    with pytest.raises(InputError, match="repeat one another"):
        read_pickled(tmp_path / "s.pt")
    torch.save({"a": weight, "b": weight}, tmp_path / "tied.pt")  # a tie, as of embeddings, is fine
    assert set(read_pickled(tmp_path / "tied.pt").tensors) == {"a", "b"}


def rezipped(path: Path, change: Callable[[zipfile.ZipFile, str, bytes], None]) -> Path:
    out = path.with_name("changed.pt")
    with zipfile.ZipFile(path) as source, zipfile.ZipFile(out, "w") as target:
        for entry in source.infolist():
            change(target, entry.filename, source.read(entry))
    return out


def test_archives_that_are_not_torch_saves(tmp_path: Path) -> None:
    path = tmp_path / "s.pt"
    torch.save({"w": torch.arange(6.0)}, path)
    changes: dict[str, tuple[Callable[[zipfile.ZipFile, str, bytes], None], str]] = {
        "compressed": (lambda z, n, c: z.writestr(n, c, zipfile.ZIP_DEFLATED), "no archive of torch.save"),
        "TorchScript": (lambda z, n, c: (z.writestr(n, c), "data.pkl" in n and z.writestr("s/code/x.py", "")), "TorchScript"),
        "lost storage": (lambda z, n, c: None if n.endswith("data/0") else z.writestr(n, c), "lacks its storage '0'"),
        "short storage": (lambda z, n, c: z.writestr(n, c[:-4] if n.endswith("data/0") else c), "truncated or damaged at 'w'"),
        "big end": (lambda z, n, c: z.writestr(n, b"big" if n.endswith("byteorder") else c), "big-endian"),
        "no pickle": (lambda z, n, c: None if n.endswith("data.pkl") else z.writestr(n, c), "0 data.pkl"),
        "two pickles": (lambda z, n, c: (z.writestr(n, c), "data.pkl" in n and z.writestr("o/data.pkl", c)), "2 data.pkl"),
    }
    for change, reason in changes.values():
        with pytest.raises(InputError, match=reason):
            read_pickled(rezipped(path, change))
    content = bytearray(path.read_bytes())
    position = content.index(torch.arange(6.0).numpy().tobytes())
    content[position + 5] ^= 1
    path.write_bytes(content)
    with pytest.raises(InputError, match="damaged archive.*CRC"):
        read_pickled(path)


@pytest.mark.parametrize("content", [
    [1, 2], 5, {"a": [1]}, {"a": {"b": 1}}, {"name": "text"}, {}, nn.GELU(), torch.zeros(3),
])
def test_files_of_something_else(content: Any, tmp_path: Path) -> None:
    torch.save(content, tmp_path / "s.pt")
    with pytest.raises(InputError, match=r"neither|no tensors"):
        read_pickled(tmp_path / "s.pt")


@pytest.mark.parametrize("container", CONTAINERS)
def test_damaged_files_end_in_one_line(container: str, tmp_path: Path) -> None:
    """Truncated and changed files are refused or read, and raise nothing else; never is a file read that is cut short."""
    path = tmp_path / "head.pt"
    vision_files.write_module_head(path, vision_files.head_weight(TINY, "mnist", 3), container=container)
    content, rng = path.read_bytes(), random.Random(0)
    for length in rng.sample(range(len(content)), 80):
        path.write_bytes(content[:length])
        with pytest.raises(InputError):
            read_pickled(path)
    messages = []
    for _ in range(200):
        changed = bytearray(content)
        for _ in range(rng.choice((1, 1, 1, 4, 30))):
            changed[rng.randrange(len(changed))] = rng.randrange(256)
        path.write_bytes(changed)
        try:
            read_pickled(path)
        except InputError as error:
            messages.append(str(error))
    assert len(messages) > 25
    assert not any("\n" in message for message in messages)


def test_missing_and_unreadable_files(tmp_path: Path) -> None:
    for path in (tmp_path / "none.pt", tmp_path):
        with pytest.raises(InputError, match="cannot read"):
            read_pickled(path)

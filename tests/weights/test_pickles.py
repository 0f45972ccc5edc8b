"""The restricted unpickler: what published files hold comes out, what a malicious one asks for never runs."""

from __future__ import annotations

import io
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


# ---------------------------------------------------------------- attacks


class Reduced:
    """Pickles as a call."""

    def __init__(self, function: Any, *arguments: Any) -> None:
        self.call = function, arguments

    def __reduce__(self) -> Any:
        return self.call


def text(value: str) -> bytes:
    raw = value.encode()
    return b"X" + struct.pack("<I", len(raw)) + raw


def stack_global(module: str, name: str) -> bytes:
    return text(module) + text(name) + b"\x93"


def called(function: bytes, *arguments: str) -> bytes:
    """A pickle that calls what `function` leaves on the stack."""
    return b"\x80\x04" + function + b"(" + b"".join(map(text, arguments)) + b"tR."


def attacks(canary: Path) -> dict[str, tuple[bytes, str]]:
    """Pickles that would make the canary file, and a part of the refusal."""
    shell, code = f"touch {canary}", f"open({str(canary)!r}, 'w').close()"
    names = {
        "os.system": ("os", "system", shell), "posix": ("posix", "system", shell), "nt": ("nt", "system", shell),
        "subprocess": ("subprocess", "getoutput", shell), "eval": ("builtins", "eval", code), "exec": ("builtins", "exec", code),
        "exec2": ("__builtin__", "eval", code), "open": ("builtins", "open", str(canary)), "io": ("io", "open", str(canary)),
        "import": ("builtins", "__import__", "antigravity"), "getattr": ("builtins", "getattr", "os"),
        "import_module": ("importlib", "import_module", "antigravity"), "runpy": ("runpy", "run_path", str(canary)),
        "partial": ("functools", "partial", shell), "attrgetter": ("operator", "attrgetter", "system"),
        "torch.load": ("torch", "load", str(canary)), "serialization": ("torch.serialization", "load", str(canary)),
        "hub": ("torch.hub", "load", str(canary)), "numpy.load": ("numpy", "load", "x"), "shutil": ("shutil", "rmtree", "x"),
        "reconstruct": ("copyreg", "_reconstructor", "x"), "reconstruct2": ("copy_reg", "_reconstructor", "x"),
        "marshal": ("marshal", "loads", "x"), "ctypes": ("ctypes", "CDLL", "x"), "timeit": ("timeit", "timeit", code),
        "pickle": ("pickle", "loads", "x"), "cProfile": ("cProfile", "run", code), "code": ("types", "FunctionType", "x"),
        "numpy": ("numpy.core.multiarray", "_reconstruct", "x"), "package": ("fusionbench_lite.paths", "atomic_file", "x"),
        "legacy lower": ("src.modeling", "os", shell), "prefix": ("src.modelingx", "ImageEncoder", "x"),
        "inside": ("torch.nn.modules.linear.os", "System", "x"), "functional": ("torch.nn.modules.linear", "init", "x"),
    }
    found = {name: (called(stack_global(m, n), argument), f"'{m}.{n}'") for name, (m, n, argument) in names.items()}
    dotted = [
        ("torch", "_utils.os.system"), ("torch._utils", "os.system"), ("collections", "OrderedDict.fromkeys"),
        ("src.modeling", "ImageEncoder.__init__.__globals__"), ("torch.nn.modules.linear", "Linear.forward"),
        ("os", "path.os.system"), ("torch", "storage.io.open"), ("open_clip.model", "CLIP.__class__"),
        ("torch.nn.modules.linear", "Linear\nos"), ("torch", "_utils._rebuild_tensor_v2"), ("torch.nn", "modules.linear.Linear"),
    ]
    found |= {f"dotted {m} {n}": (called(stack_global(m, n), shell), "no plain name") for m, n in dotted}
    found |= {
        "GLOBAL": (b"\x80\x02cos\nsystem\n" + text(shell) + b"\x85R.", "'os.system'"),
        "no module": (called(stack_global("", "system"), shell), "'.system'"),
        "GLOBAL with a space": (b"\x80\x02cos system x\nsystem\n" + text(shell) + b"\x85R.", "asks for"),
        "INST": (b"(" + text(shell) + b"ios\nsystem\n.", "'os.system'"),
        "OBJ": (b"(cos\nsystem\n" + text(shell) + b"o.", "'os.system'"),
        "NEWOBJ": (b"\x80\x02cos\nsystem\n" + text(shell) + b"\x85\x81.", "'os.system'"),
        "NEWOBJ_EX": (b"\x80\x04" + stack_global("os", "system") + text(shell) + b"\x85}\x92.", "'os.system'"),
        "memo": (
            b"\x80\x04" + text("os") + b"q\x01" + text("system") + b"q\x020h\x01h\x02\x93" + text(shell) + b"\x85R.",
            "'os.system'",
        ),
        "module is a number": (b"\x80\x04K\x01" + text("system") + b"\x93.", "asks for"),
        "EXT1": (b"\x80\x02\x82\x01.", "EXT1"), "EXT4": (b"\x80\x02\x84\x01\x00\x00\x00.", "EXT4"),
        "PERSID": (b"Pos.system\n.", "PERSID"), "BINPERSID": (b"\x80\x02" + text("os.system") + b"Q.", "persistent id"),
        "buffer": (b"\x80\x05\x97.", "NEXT_BUFFER"), "bytearray": (b"\x80\x05\x96" + struct.pack("<Q", 1) + b"x.", "BYTEARRAY8"),
        "call of a stub": (stub() + b"(" + text(shell) + b"tR.", "calls a"),
        "call of text": (b"\x80\x02" + text("x") + b")R.", "calls a"),
        "arguments are no tuple": (b"\x80\x02ccollections\nOrderedDict\n]R.", "with a list"),
        "state of a class": (b"\x80\x02csrc.modeling\nImageEncoder\n}" + text("__init__") + text("x") + b"sb.", "state of a"),
        "slots of a maker": (b"\x80\x02ctorch._utils\n_rebuild_tensor\nN}" + text("make") + text("x") + b"s\x86b.", "state of a"),
        "state of a list": (b"\x80\x02]}b.", "state of a list"),
        "append to a stub": (stub() + b"K\x01a.", "fills a stub"),
        "item of a maker": (b"\x80\x02ctorch.nn.parameter\nParameter\nK\x01K\x02s.", "fills a maker"),
        "add to a dict": (b"\x80\x04}(K\x01\x90.", "fills a dict"),
        "tensor of text": (called(stack_global("torch._utils", "_rebuild_tensor_v2"), *"abcd"), "tensor of a str"),
        "storage of text": (called(stack_global("torch.storage", "_load_from_bytes"), shell), "storage"),
    }
    return found


def stub() -> bytes:
    return b"\x80\x02csrc.modeling\nImageEncoder\n)\x81"


def in_zip(content: bytes) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        archive.writestr("archive/data.pkl", content)
        archive.writestr("archive/version", "3\n")
    return buffer.getvalue()


def old_start() -> bytes:
    system = {"protocol_version": 1001, "little_endian": True, "type_sizes": {"short": 2, "int": 4, "long": 4}}
    return b"".join(pickle.dumps(part, protocol=2) for part in (MAGIC, 1001, system))


def in_old(content: bytes) -> bytes:
    return old_start() + content


def in_keys(content: bytes) -> bytes:
    """In the list of storages of the old format."""
    return old_start() + pickle.dumps({}, protocol=2) + content


def in_storage(content: bytes) -> bytes:
    """In a storage that lies in a bare pickle."""
    inner = in_old(content)
    return b"\x80\x03ctorch.storage\n_load_from_bytes\nB" + struct.pack("<I", len(inner)) + inner + b"\x85R."


def in_state(content: bytes) -> bytes:
    """In the state of a module, where its tensors are."""
    body = content[:-1].removeprefix(b"\x80\x02").removeprefix(b"\x80\x04").removeprefix(b"\x80\x05")
    return stub() + b"}" + text("_parameters") + b"}" + text("weight") + body + b"ssb."


PLACES = {"bare": bytes, "zip": in_zip, "old": in_old, "keys": in_keys, "storage": in_storage, "state": in_state}
NAMES = list(attacks(Path("canary")))


@pytest.mark.parametrize("name", NAMES)
def test_malicious_pickles_are_refused(name: str, tmp_path: Path) -> None:
    canary = tmp_path / "canary"
    content, reason = attacks(canary)[name]
    modules = set(sys.modules)
    for place, wrap in PLACES.items():
        path = tmp_path / f"{place}.pt"
        path.write_bytes(wrap(content))
        with pytest.raises(InputError) as caught:
            read_pickled(path)
        message = str(caught.value)
        assert str(path) in message
        assert reason in message or place == "storage", (place, message)
        assert "\n" not in message
        assert len(message) < 500
    assert not canary.exists()
    assert not {"antigravity", "src", "nt", "cProfile", "timeit", "this"} & (set(sys.modules) - modules)


@pytest.mark.parametrize("name", ["os.system", "eval", "GLOBAL", "INST", "OBJ", "NEWOBJ_EX", "memo"])
def test_the_attacks_work_elsewhere(name: str, tmp_path: Path) -> None:
    """The control: Python's own unpickler runs them, as far as the call needs no class."""
    canary = tmp_path / "canary"
    try:
        pickle.loads(attacks(canary)[name][0])
    except (TypeError, AttributeError, pickle.UnpicklingError):
        if name not in ("OBJ", "NEWOBJ_EX"):
            raise
        return
    assert canary.exists()


@pytest.mark.parametrize("build", [
    {"__class__": "os"}, {"__setstate__": "x"}, {"__reduce__": "x"}, {"__dict__": {"a": 1}}, {"_modules": "text"},
    {"_parameters": [1]}, {"_buffers": {"b": "text"}}, {"_modules": {"child": "text"}}, "state", (None, {"a": 1}),
    {"_modules": {"child": {"_parameters": {}}}},
])
def test_odd_states_of_stubs_are_data(build: Any, tmp_path: Path) -> None:
    (tmp_path / "m.pt").write_bytes(stub() + pickle.dumps(build, protocol=2)[2:-1] + b"b.")
    with pytest.raises(InputError, match=r"m\.pt: it(s module| holds no tensors|s 'b')"):
        read_pickled(tmp_path / "m.pt")


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
    [1, 2], 5, {"a": [1]}, {"a": {"b": 1}}, {"name": "text"}, {}, nn.GELU(), {"a": torch.zeros(1), "b": [torch.zeros(1)]},
    torch.zeros(3),
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

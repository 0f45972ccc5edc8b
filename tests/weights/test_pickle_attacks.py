"""Pickles that would run code, or end the machine, are refused."""

from __future__ import annotations

import io
import pickle
import struct
import sys
import zipfile
from pathlib import Path
from typing import Any

import pytest

from fusionbench_lite.errors import InputError
from fusionbench_lite.weights.pickles import read_pickled
from tests.weights.test_pickles import old_start, text

# ---------------------------------------------------------------- attacks


class Reduced:
    """Pickles as a call."""

    def __init__(self, function: Any, *arguments: Any) -> None:
        self.call = function, arguments

    def __reduce__(self) -> Any:
        return self.call


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
        "tensor of a kind by text": (
            called(stack_global("torch._tensor", "_rebuild_from_type_v2"), *"abcd"), "makes a tensor by a str",
        ),
        "tensor of a kind by a call": (
            b"\x80\x04" + stack_global("torch._tensor", "_rebuild_from_type_v2") + b"(" + stack_global("os", "system") + b"N("
            + text(shell) + b"tNtR.", "'os.system'",
        ),
        "default": (
            b"\x80\x04" + stack_global("collections", "defaultdict") + stack_global("os", "system") + b"\x85R.", "'os.system'",
        ),
        "queue of text": (called(stack_global("collections", "deque"), shell), "makes a list of a str"),
        "name of a package": (called(stack_global("lightning.pytorch.cli", "main"), shell), "'lightning.pytorch.cli.main'"),
        "builtins": (called(stack_global("builtins", "compile"), code), "'builtins.compile'"),
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

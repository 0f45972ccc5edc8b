"""Pickles of a few bytes that would grow to fill the memory or keep the machine busy are refused while they are small."""

from __future__ import annotations

import io
import struct
import time
import tracemalloc
from pathlib import Path

import pytest
import torch

from fusionbench_lite.errors import InputError
from fusionbench_lite.weights.pickles import read_pickled
from tests.weights.test_pickles import text

REPEATED = "it makes more of its values than it holds"


def asked(module: str, name: str) -> bytes:
    return f"c{module}\n{name}\n".encode()


def doubled(function: bytes, first: bytes, times: int) -> bytes:
    """What makes x of (x, x) again and again; the last x stays on the stack."""
    return b"\x80\x02" + function + b"q\x00" + first + b"q\x01" + b"0h\x00h\x01h\x01\x86Rq\x01" * times


def copied(function: bytes, value: bytes, times: int) -> bytes:
    """What makes many copies of one value."""
    return b"\x80\x02" + function + b"q\x00" + value + b"q\x01(" + b"h\x00h\x01\x85R" * times + b"t."


NUMBERS = b"(" + b"".join(b"J" + struct.pack("<i", number) for number in range(20_000)) + b"t"
STORAGE = asked("torch.storage", "_load_from_bytes")


def stored() -> bytes:
    """A storage of 100,000 bytes as it is pickled by itself, and the code that names its bytes."""
    buffer = io.BytesIO()
    torch.save(torch.zeros(100_000, dtype=torch.uint8).untyped_storage(), buffer, _use_new_zipfile_serialization=False)
    return b"B" + struct.pack("<I", len(buffer.getvalue())) + buffer.getvalue()


GROWING = {
    "text": (doubled(asked("torch", "device"), text("x" * 1000), 60) + b".", REPEATED),
    "lists": (copied(asked("builtins", "list"), NUMBERS, 10_000), REPEATED),
    "sets": (copied(asked("builtins", "set"), NUMBERS, 10_000), REPEATED),
    "sizes": (copied(asked("torch", "Size"), NUMBERS, 10_000), REPEATED),
    "bytes": (copied(asked("_codecs", "encode"), text("x" * 100_000), 10_000), REPEATED),
    "storages": (copied(STORAGE, stored(), 10_000), REPEATED),
    "a key that is an object of objects": (doubled(asked("argparse", "Namespace"), b"N", 60) + b"0}h\x01Ns.", "<Stub 0>"),
    "a name of objects": (doubled(asked("argparse", "Namespace"), b"N", 60) + b"0}h\x01}" + text("w") + b"}ss.", "no tensors"),
    "long names": (b"\x80\x02}" + text("k" * 100_000) + b"](" + b"}" * 50_000 + b"es.", "a name of 100,000 characters"),
    "long classes": (
        b"\x80\x04" + text("lightning." + "a" * 100_000) + b"q\x00" + text("A") + b"q\x010(" + b"h\x00h\x01\x93" * 10_000 + b"t.",
        "no plain name of a class",
    ),
    "a long key": (b"\x80\x02}" + NUMBERS + b"Ns.", "a tuple of 20000 parts as a key"),
    "a tensor of a kind within one": (
        b"\x80\x02" + asked("torch._tensor", "_rebuild_from_type_v2") + b"q\x00(h\x00N(h\x00N)NttR.", "makes a tensor by a maker",
    ),
}


@pytest.mark.parametrize("name", GROWING)
def test_a_small_file_does_not_grow(name: str, tmp_path: Path) -> None:
    content, reason = GROWING[name]
    (tmp_path / "c.pt").write_bytes(content)
    tracemalloc.start()
    start = time.process_time()
    try:
        with pytest.raises(InputError, match=r"c\.pt: ") as caught:
            read_pickled(tmp_path / "c.pt")
        assert tracemalloc.get_traced_memory()[1] < 200 << 20
    finally:
        tracemalloc.stop()
    assert time.process_time() - start < 30  # seconds under tracemalloc; without the refusals, hours or the end of memory
    assert reason in str(caught.value)
    assert len(str(caught.value)) < 500


def test_what_files_share_is_no_growth(tmp_path: Path) -> None:
    """Sizes and texts that tensors have in common are named again and again in honest files."""
    tensors = {f"layer.{number}.weight": torch.full((2, 2), float(number)) for number in range(3000)}
    torch.save(tensors, tmp_path / "c.pt")
    assert list(read_pickled(tmp_path / "c.pt").tensors) == list(tensors)
    torch.save(torch.nn.Sequential(*(torch.nn.Linear(2, 2) for _ in range(300))), tmp_path / "m.pt")
    assert len(read_pickled(tmp_path / "m.pt").tensors) == 600

"""Indexes written by other programs, and files that are something else than their names say."""

from __future__ import annotations

import gzip
import json
import os
import re
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

import fusionbench_lite as fbl
from fusionbench_lite import convert
from fusionbench_lite.weights.stored.folders import describe
from fusionbench_lite.weights.stored.indexes import INDEX
from tests.support.helpers import rng, same_bits
from tests.support.lora_files import write_adapter
from tests.support.stored_models import NAMES, expert_read, fault, indexed, model, one, reads, shards, unnumbered

LFS = b"version https://git-lfs.github.com/spec/v1\noid sha256:" + b"a" * 64 + b"\nsize 350000000\n"
PAGE = b"\n<!DOCTYPE html><html><title>Quota exceeded</title></html>"


# ---------------------------------------------------------------- indexes


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-16-le", "utf-32"])
@pytest.mark.parametrize("start", ["", "./", ".\\", "././"])
def test_indexes_are_read_leniently(tmp_path, encoding, start):
    index = indexed(tmp_path / "m") / INDEX
    content = json.loads(index.read_text())
    content["weight_map"] = {name: start + file for name, file in content["weight_map"].items()}
    index.write_text(json.dumps(content), encoding=encoding)
    assert reads(tmp_path / "m").index == index


def test_an_index_that_leaves_a_stored_tensor_out(tmp_path):
    index = indexed(tmp_path / "m") / INDEX
    content = json.loads(index.read_text())
    del content["weight_map"][NAMES[0]]
    index.write_text(json.dumps(content))
    text = fault(tmp_path / "m")
    assert f"does not list {NAMES[0]!r}, which 'model-00001-of-00003.safetensors' holds" in text
    assert f"remove {INDEX} to have all tensors of the shards read" in text
    index.unlink()
    reads(tmp_path / "m")


def test_an_index_that_leaves_a_tensor_of_unnumbered_files_out(tmp_path):
    places = unnumbered(tmp_path)
    index = tmp_path / INDEX
    index.write_text(json.dumps({"weight_map": {name: places[name] for name in NAMES[1:]}}))
    assert f"or list it in {INDEX}" in fault(tmp_path)
    index.write_text(json.dumps({"weight_map": places}))
    reads(tmp_path)


def test_an_index_that_leaves_a_shard_out(tmp_path):
    index = indexed(tmp_path / "m") / INDEX
    content = json.loads(index.read_text())
    content["weight_map"] = {name: file for name, file in content["weight_map"].items() if "00002" not in file}
    index.write_text(json.dumps(content))
    assert "lists parts of a set without 'model-00002-of-00003.safetensors', which is there" in fault(tmp_path / "m")
    (tmp_path / "m" / "model-00002-of-00003.safetensors").unlink()
    assert "without 'model-00002-of-00003.safetensors', which is missing" in fault(tmp_path / "m")


@pytest.mark.parametrize(
    ("content", "words"), [(LFS, "Git LFS pointer"), (PAGE, "web page"), (b"", "empty"), (b'{"weight_map": {}}', "empty")]
)
def test_an_index_that_was_not_fetched(tmp_path, content, words):
    (indexed(tmp_path / "m") / INDEX).write_bytes(content)
    text = fault(tmp_path / "m")
    assert f"cannot read {tmp_path / 'm' / INDEX}: " in text
    assert words in text


def test_an_index_that_leads_nowhere(tmp_path):
    index = indexed(tmp_path / "m") / INDEX
    index.rename(tmp_path / "blob")
    index.symlink_to(tmp_path / "blob")
    reads(tmp_path / "m")
    (tmp_path / "blob").rename(tmp_path / "gone")
    assert f"{INDEX}: it is a link to {tmp_path / 'blob'}, which is not there: fetch the file again" in fault(tmp_path / "m")


# ---------------------------------------------------------------- files that are something else

CONTENTS: dict[str, tuple[Callable[[Path], object], str]] = {
    "empty": (lambda p: p.touch(), "it is empty (0 bytes): fetch it again"),
    "pointer": (lambda p: p.write_bytes(LFS), "it is a Git LFS pointer (134 bytes in place of 350,000,000 bytes): run git lfs"),
    "page": (lambda p: p.write_bytes(PAGE), "it is a web page that was saved in its place: fetch it again"),
    "page of storage": (lambda p: p.write_bytes(b"\xef\xbb\xbf<?xml version='1.0'?><Error>Denied"), "it is a web page"),
    "words": (lambda p: p.write_text("Entry not found\n"), "it is text ('Entry not found'), not a safetensors file"),
    "json": (lambda p: p.write_text('{"error": "gated"}'), "it is text"),
    "archive of torch": (lambda p: torch.save(model(), p), "it is an archive of torch.save"),
    "cut archive": (lambda p: (torch.save(model(), p), p.write_bytes(p.read_bytes()[:300])), "it is an archive of torch.save"),
    "old torch": (lambda p: torch.save(model(), p, _use_new_zipfile_serialization=False), "it is a pickle, which is never opened"),
    "arrays": (lambda p: np.savez(p.open("wb"), a=np.zeros(3)), "it is an archive of NumPy (.npz)"),
    "gzip": (lambda p: p.write_bytes(gzip.compress(b"x" * 99)), "it is packed with gzip: unpack it"),
    "gguf": (lambda p: p.write_bytes(b"GGUF\x03" + bytes(99)), "it is a file of llama.cpp (GGUF)"),
    "keras": (lambda p: p.write_bytes(b"\x89HDF\r\n\x1a\n" + bytes(99)), "it is a file of Keras or HDF5"),
    "pipe": (os.mkfifo, "it is no regular file but a pipe or device"),
    "cut": (lambda p: (one(p), p.write_bytes(p.read_bytes()[:-9])), "it is incomplete or not a safetensors file: fetch it again"),
    "noise": (lambda p: p.write_bytes(bytes(range(256)) * 2), "it is incomplete or not a safetensors file: fetch it again"),
}  # fmt: skip


@pytest.mark.parametrize("case", CONTENTS)
@pytest.mark.parametrize("where", ["file", "folder", "shard"])
def test_files_that_are_something_else(tmp_path, case, where):
    make, words = CONTENTS[case]
    folder = indexed(tmp_path / "m") if where == "shard" else tmp_path / "m"
    path = folder / ("model-00002-of-00003.safetensors" if where == "shard" else "model.safetensors")
    folder.mkdir(exist_ok=True)
    path.unlink(missing_ok=True)
    make(path)
    text = fault(path if where == "file" else folder)
    assert text.startswith(f"cannot read {path}: ")
    assert words in text


@pytest.mark.parametrize("case", ["empty", "pointer", "page", "words", "archive of torch", "gguf"])
def test_adapters_that_are_something_else(tmp_path, case):
    make, words = CONTENTS[case]
    path = write_adapter(tmp_path / "lora") / "adapter_model.safetensors"
    path.unlink()
    make(path)
    assert f"adapter_model.safetensors cannot be read: {words}" in describe(tmp_path / "lora").sentence


@pytest.mark.parametrize("name", ["model.safetensors", "model-00002-of-00003.safetensors", "adapter_model.safetensors"])
def test_links_that_lead_nowhere(tmp_path, name):
    folder = write_adapter(tmp_path / "m") if name.startswith("adapter") else shards(tmp_path / "m", keep=(1, 3))
    (folder / name).unlink(missing_ok=True)
    (folder / name).symlink_to("../blobs/none")
    assert "it is a link to ../blobs/none, which is not there: fetch the file again" in describe(folder).sentence
    assert "it is a link to ../blobs/none" in describe(folder / name).sentence


# ---------------------------------------------------------------- pickles, and what helps


def test_a_pickled_state_dict_is_given_itself(tmp_path):
    path = tmp_path / "pytorch_model.bin"
    torch.save(model(), path)
    text = fault(path)
    found = eval(re.search(r"torch\.load\([^)]*\)", text)[0])  # the fix that the message names
    assert same_bits(fbl.merge("individual", model(9), {"a": found}).state_dict("a"), model())


@pytest.mark.parametrize("name", ["pytorch_model.bin", "weights.pt", "last.ckpt", "model.pth"])
def test_folders_of_pickles(tmp_path, name):
    torch.save(model(), tmp_path / name)
    (tmp_path / "optimizer.pt").touch()
    (tmp_path / "training_args.bin").touch()
    text = fault(tmp_path)
    assert f"holds no .safetensors file, only {name}: load the model with its library" in text
    assert "torch.load(FILE, weights_only=True)" in text
    assert "fusionbench_lite.convert" in text


def test_a_pickled_model_is_saved_again_by_its_library(tmp_path):
    from fusionbench_lite.base import torchvision_ops  # noqa: F401 (before transformers imports torchvision)

    transformers = pytest.importorskip("transformers")
    config = transformers.GPT2Config(vocab_size=11, n_positions=8, n_embd=8, n_layer=1, n_head=2)
    made = transformers.GPT2LMHeadModel(config)
    config.save_pretrained(tmp_path / "old")
    torch.save(made.state_dict(), tmp_path / "old" / "pytorch_model.bin")
    assert "save_pretrained(FOLDER, safe_serialization=True)" in fault(tmp_path / "old")
    transformers.GPT2LMHeadModel.from_pretrained(tmp_path / "old").save_pretrained(tmp_path / "new", safe_serialization=True)
    stored = {name: tensor for name, tensor in made.state_dict().items() if name != "lm_head.weight"}  # tied, and written once
    found = expert_read(tmp_path / "new", stored)
    assert all(torch.equal(tensor, stored[name]) for name, tensor in found.items())


def test_a_pickled_head_is_converted(tmp_path):
    path, out = tmp_path / "head.pt", tmp_path / "head.safetensors"
    torch.save({"weight": torch.nn.functional.normalize(torch.randn(3, 512, generator=rng(1)))}, path)
    assert "of a CLIP image tower or head, python -m fusionbench_lite.convert makes" in fault(path)
    assert convert.main([str(path), str(out)]) == 0
    assert describe(out).kind == "model"


def test_folders_of_other_programs(tmp_path):
    (tmp_path / "tf_model.h5").touch()
    (tmp_path / "flax_model.msgpack").touch()
    assert "holds no .safetensors file, only flax_model.msgpack, tf_model.h5: load the model with its library" in fault(tmp_path)
    assert "torch.load" not in fault(tmp_path)

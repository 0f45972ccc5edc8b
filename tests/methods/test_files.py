"""Models read from files and written to files: the bits of memory, shards, nothing half-written."""

from __future__ import annotations

import json
import resource
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

import fusionbench_lite as fbl
from fusionbench_lite import registry
from fusionbench_lite.weights.readers import SafetensorsWeights
from fusionbench_lite.weights.stored.indexes import INDEX
from tests.support.helpers import State, expert_of, experts_of, same_bits, snapshot
from tests.support.key_sets import gpt2_state, t5_state, tied_experts_of
from tests.support.merging import PAIRS, arguments
from tests.support.spectral_cases import hf_clip_state

METHODS = [m for m in registry.names() if not registry.get(m).adaptive]
STEPS = ("awd_ta", "doge_ta", "wudi")
KINDS = ("file", "directory", "shards")
LAST = "vision_model.pre_layrnorm.weight"


def write(state: State, path: Path, kind: str) -> Path:
    """Write a state dict as the hub lays it out."""
    path.parent.mkdir(parents=True, exist_ok=True)
    state = {name: tensor.clone().contiguous() for name, tensor in state.items()}
    if kind == "file":
        save_file(state, path.with_suffix(".safetensors"))
        return path.with_suffix(".safetensors")
    path.mkdir()
    names = list(state)
    count = 3 if kind == "shards" else 1
    places = {n: f"model-{i % count + 1:05d}-of-{count:05d}.safetensors" for i, n in enumerate(names)}
    for file in set(places.values()):
        save_file({n: state[n] for n in names if places[n] == file}, path / file, metadata={"format": "pt"})
    if kind == "shards":
        total = sum(tensor.nbytes for tensor in state.values())
        (path / INDEX).write_text(json.dumps({"metadata": {"total_size": total}, "weight_map": places}))
    return path


def given(method: str, base: State, tasks: list[str]) -> dict:
    extra = {"steps": 5} if method in STEPS else {}
    if method == "traditional_mtl":
        extra["multitask"] = expert_of(base, 77)
    return arguments(method, base, tasks, extra)


def case(method: str, dtype: torch.dtype = torch.float32) -> tuple[State, dict[str, State], dict]:
    base = hf_clip_state(3, dtype)
    experts = experts_of(base, 2 if method in PAIRS else 3, size=0.02)
    return base, experts, given(method, base, list(experts))


def states(merged: fbl.Merged) -> dict[str, State]:
    return {task: merged.state_dict(task) for task in merged.tasks} if merged.per_task else {".": merged.state_dict()}


def read(folder: Path) -> State:
    return {name: tensor for file in sorted(folder.glob("*.safetensors")) for name, tensor in load_file(file).items()}


def same(a: State, b: State) -> bool:
    """The same bits; the order is that of the files."""
    return same_bits(dict(sorted(a.items())), dict(sorted(b.items())))


@contextmanager
def full_disk(limit: int) -> Iterator[None]:
    """No file can grow beyond `limit` bytes."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


# ---------------------------------------------------------------- reading


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("method", METHODS)
def test_files_give_the_bits_of_memory(tmp_path, method, kind):
    base, experts, extra = case(method)
    base_path = write(base, tmp_path / "base", kind)
    paths = {task: write(state, tmp_path / task, kind) for task, state in experts.items()}
    # Sums over all tensors are taken in the order of the pretrained model, which a file keeps sorted.
    from_files = fbl.merge(method, base_path, {t: str(p) for t, p in paths.items()}, **extra)
    in_order = {name: base[name] for name in SafetensorsWeights(base_path)}
    expected, found = states(fbl.merge(method, in_order, experts, **extra)), states(from_files)
    assert list(found) == list(expected)
    assert all(same_bits(found[task], expected[task]) for task in expected)
    mixed = states(fbl.merge(method, base, {**paths, next(iter(paths)): next(iter(experts.values()))}, **extra))
    expected = states(fbl.merge(method, base, experts, **extra))
    assert all(same_bits(mixed[task], expected[task]) for task in expected)


@pytest.mark.parametrize("method", ["individual", "pretrained", "slerp", "tsv_c"])
def test_the_result_does_not_live_in_the_files(tmp_path, method):
    base, experts, extra = case(method)
    paths = {task: write(state, tmp_path / task, "file") for task, state in experts.items()}
    base_path = write(base, tmp_path / "base", "file")
    extra |= {"t": 0.0} if method == "slerp" else {}
    found = states(fbl.merge(method, base_path, paths, **extra))
    before = {task: snapshot(state) for task, state in found.items()}
    for path in (base_path, *paths.values()):
        with path.open("r+b") as file:  # overwritten in place, as a careless copy does
            file.write(b"\x01" * path.stat().st_size)
    assert all(same_bits(found[task], before[task]) for task in found)


def test_links_of_the_hub_cache_are_followed(tmp_path):
    base, experts, _ = case("task_arithmetic")
    blobs = write(base, tmp_path / "blobs", "shards")
    (tmp_path / "snapshot").mkdir()
    for file in blobs.iterdir():
        (tmp_path / "snapshot" / file.name).symlink_to(file)
    merged = fbl.merge("task_arithmetic", tmp_path / "snapshot", experts).state_dict()
    assert same(merged, fbl.merge("task_arithmetic", base, experts).state_dict())


# ---------------------------------------------------------------- writing


@pytest.mark.filterwarnings("ignore::fusionbench_lite.weights.ranks.RankWarning")  # what bfloat16 does to the smallest component
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("method", METHODS)
def test_written_shards_hold_the_bits_of_merge(tmp_path, method, dtype):
    base, experts, extra = case(method, dtype)
    merged = states(fbl.merge(method, base, experts, **extra))
    out = fbl.merge_files(method, base, experts, tmp_path / "out", shard_bytes=700, **extra)
    assert out == tmp_path / "out"
    assert [path.name for path in tmp_path.iterdir()] == ["out"]
    assert sorted(p.name for p in out.iterdir() if p.is_dir()) == sorted(t for t in merged if t != ".")
    for task, expected in merged.items():
        folder = out / task
        assert same(read(folder), expected)
        index = json.loads((folder / INDEX).read_text())
        assert index["metadata"]["total_size"] == sum(tensor.nbytes for tensor in expected.values())
        assert set(index["weight_map"]) == set(base)
        files = sorted(folder.glob("*.safetensors"))
        assert len(files) > 3
        assert [f.name for f in files] == [f"model-{i + 1:05d}-of-{len(files):05d}.safetensors" for i in range(len(files))]
        for file in files:
            held = load_file(file)
            assert all(index["weight_map"][name] == file.name for name in held)
            assert sum(tensor.nbytes for tensor in held.values()) <= 700 or len(held) == 1


def test_one_shard_needs_no_index(tmp_path):
    base, experts, _ = case("magmax")
    fbl.merge_files("magmax", base, experts, tmp_path / "deep" / "out")
    assert [path.name for path in (tmp_path / "deep" / "out").iterdir()] == ["model.safetensors"]
    assert same(read(tmp_path / "deep" / "out"), fbl.merge("magmax", base, experts).state_dict())


@pytest.mark.parametrize("shard_bytes", [1, 200, 1 << 30])
@pytest.mark.parametrize("method", ["task_arithmetic", "ties_merging", "individual", "emr_merging", "tsv_c", "pretrained"])
@pytest.mark.parametrize("make", [gpt2_state, t5_state])
def test_tied_tensors_are_written_under_every_name(tmp_path, make, method, shard_bytes):
    base = make()
    experts = tied_experts_of(base)
    fbl.merge_files(method, base, experts, tmp_path / "out", shard_bytes=shard_bytes)
    merged = states(fbl.merge(method, base, experts))
    assert all(same(read(tmp_path / "out" / task), expected) for task, expected in merged.items())


def test_a_result_is_an_input_again(tmp_path):
    base, experts, _ = case("task_arithmetic")
    first = fbl.merge_files("task_arithmetic", base, experts, tmp_path / "first", shard_bytes=500)
    experts_of_two = fbl.merge_files("emr_merging", base, experts, tmp_path / "second", shard_bytes=500)
    paths = {"again": first, "emr": experts_of_two / "task1"}
    values = {"again": fbl.merge("task_arithmetic", base, experts).state_dict()}
    values["emr"] = fbl.merge("emr_merging", base, experts).state_dict("task1")
    found = fbl.merge("magmax", fbl.merge_files("pretrained", base, experts, tmp_path / "base"), paths).state_dict()
    assert same(found, fbl.merge("magmax", base, values).state_dict())


# ---------------------------------------------------------------- nothing half-written


@pytest.mark.parametrize("who", ["expert", "base"])
@pytest.mark.parametrize("method", METHODS)
def test_nothing_is_left_after_a_non_finite_value(tmp_path, method, who):
    base, experts, extra = case(method)
    poisoned = list(experts.values())[-1] if who == "expert" else base
    poisoned[LAST][-1] = float("nan")
    experts = {task: write(state, tmp_path / "in" / task, "shards") for task, state in experts.items()}
    out = tmp_path / "out" / "merged"
    out.mkdir(parents=True)
    (out / "model.safetensors").write_bytes(b"an earlier result")
    with pytest.raises(fbl.MergeError, match=f"{LAST}' has 1 non-finite"):
        fbl.merge_files(method, base, experts, out, shard_bytes=100, **extra)
    assert [path.name for path in out.parent.iterdir()] == ["merged"]
    assert (out / "model.safetensors").read_bytes() == b"an earlier result"


@pytest.mark.parametrize("method", ["task_arithmetic", "individual", "emr_merging"])
def test_nothing_is_left_when_the_disk_is_full(tmp_path, method):
    base, experts, _ = case(method)
    experts["task2"]["vision_model.big"] = torch.zeros(30000)
    for state in (base, experts["task0"], experts["task1"]):
        state["vision_model.big"] = torch.zeros(30000)
    with full_disk(60000), pytest.raises(fbl.InputError, match="cannot write .*out: .*File too large") as caught:
        fbl.merge_files(method, base, experts, tmp_path / "out", shard_bytes=3000)
    assert "\n" not in str(caught.value)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("method", ["task_arithmetic", "tsv_c"])
def test_an_earlier_result_is_replaced_as_a_whole(tmp_path, method):
    base, experts, _ = case(method)
    for shard_bytes in (300, 1 << 30, 2000):
        fbl.merge_files(method, base, experts, tmp_path / "out", shard_bytes=shard_bytes)
        merged = states(fbl.merge(method, base, experts))
        assert all(same(read(tmp_path / "out" / task), expected) for task, expected in merged.items())
    assert len(list(tmp_path.iterdir())) == 1


@pytest.mark.parametrize("method", ["task_arithmetic", "tsv_c"])
@pytest.mark.parametrize("other", ["notes.txt", "mnist.safetensors", "sub/model.safetensors", "task0/thesis.tex"])
def test_a_folder_with_other_files_is_not_replaced(tmp_path, method, other):
    base, experts, _ = case(method)
    (tmp_path / "out" / other).parent.mkdir(parents=True)
    (tmp_path / "out" / other).write_text("precious")
    with pytest.raises(fbl.MergeError, match="choose another directory"):
        fbl.merge_files(method, base, experts, tmp_path / "out")
    assert (tmp_path / "out" / other).read_text() == "precious"


def test_out_that_cannot_be_a_directory(tmp_path):
    base, experts, _ = case("task_arithmetic")
    (tmp_path / "file").write_text("precious")
    with pytest.raises(fbl.MergeError, match="file is a file"):
        fbl.merge_files("task_arithmetic", base, experts, tmp_path / "file")
    with pytest.raises(fbl.InputError, match=r"file/out: Not a directory|file/out: File exists"):
        fbl.merge_files("task_arithmetic", base, experts, tmp_path / "file" / "out")
    for shard_bytes in (0, -1, 2.0, True, None):
        with pytest.raises(fbl.MergeError, match="shard_bytes"):
            fbl.merge_files("task_arithmetic", base, experts, tmp_path / "out", shard_bytes=shard_bytes)
    for task in ("", "..", ".", "a/b", "/etc"):
        with pytest.raises(fbl.MergeError, match="rename it"):
            fbl.merge_files("individual", base, {task: experts["task0"]}, tmp_path / "out")
    assert [path.name for path in tmp_path.iterdir()] == ["file"]

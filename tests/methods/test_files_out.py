"""Where `merge_files` writes: never over its inputs, whole or not at all, and nothing temporary stays."""

from __future__ import annotations

import errno
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

import fusionbench_lite as fbl
from fusionbench_lite.weights import readers
from fusionbench_lite.weights.readers import SafetensorsWeights
from tests.support.helpers import State, same_bits
from tests.support.lora_files import base_state, write_adapter
from tests.support.stored_models import indexed, model, one

WHOLE = dict(sorted(fbl.merge("weight_averaging", model(), {"a": model(1), "b": model(2)}).state_dict().items()))


def everything(root: Path) -> dict[str, bytes | str]:
    """All files and links below a folder with what they hold."""
    found = {}
    for path in sorted(root.rglob("*")):
        name = str(path.relative_to(root))
        found[name] = str(path.readlink()) if path.is_symlink() else path.read_bytes() if path.is_file() else ""
    return found


def write(out: Path | str, method: str = "weight_averaging", base: object = None, **experts: object) -> Path:
    experts = experts or {"a": model(1), "b": model(2)}
    return fbl.merge_files(method, model() if base is None else base, experts, out, shard_bytes=200)


def untouched(root: Path, out: Path | str, match: str, monkeypatch: pytest.MonkeyPatch, **given: object) -> None:
    """The write is refused in one line before anything is read, and the folder is as it was."""
    before = everything(root)
    monkeypatch.setattr(readers, "describe", lambda *_, **__: pytest.fail("it was read"))
    with pytest.raises(fbl.InputError, match=match) as caught:
        write(out, **given)
    assert "\n" not in str(caught.value)
    assert everything(root) == before
    monkeypatch.undo()


# ---------------------------------------------------------------- inputs are safe


@pytest.mark.parametrize("who", ["pretrained", "expert 'a'"])
@pytest.mark.parametrize("spelling", ["{}", "{}/", "{}/.", "{}/../m", "link", "loop/m"])
def test_out_that_is_an_input(tmp_path, monkeypatch, who, spelling):
    folder = indexed(tmp_path / "m")
    (tmp_path / "link").symlink_to(folder)
    (tmp_path / "loop").symlink_to(tmp_path)
    given = {"base": folder} if who == "pretrained" else {"a": folder}
    out = spelling.format(folder) if "{" in spelling else str(tmp_path / spelling)
    untouched(tmp_path, out, f"is .*m, which {who} is read from: give another directory", monkeypatch, **given)
    given = dict.fromkeys(given, tmp_path / "link")  # the input through a link, out by its name
    untouched(tmp_path, folder, f"is .*link, which {who} is read from", monkeypatch, **given)


def test_out_that_contains_an_input(tmp_path, monkeypatch):
    indexed(tmp_path / "all" / "deep" / "m")
    one(tmp_path / "file" / "model.safetensors")
    (tmp_path / "elsewhere").symlink_to(tmp_path / "file" / "model.safetensors")
    contains = "contains .*, which expert 'a' is read from"
    untouched(tmp_path, tmp_path / "all", contains, monkeypatch, a=tmp_path / "all" / "deep" / "m")
    untouched(tmp_path, tmp_path / "file", contains, monkeypatch, a=tmp_path / "file" / "model.safetensors")
    untouched(tmp_path, tmp_path / "file", contains, monkeypatch, a=tmp_path / "elsewhere")
    untouched(tmp_path, tmp_path, contains, monkeypatch, a=tmp_path / "elsewhere")


def test_out_that_holds_what_the_links_of_an_input_lead_to(tmp_path, monkeypatch):
    one(tmp_path / "blobs" / "model.safetensors")
    (tmp_path / "snapshot").mkdir()
    (tmp_path / "snapshot" / "model.safetensors").symlink_to("../blobs/model.safetensors")
    untouched(tmp_path, tmp_path / "blobs", "contains .*blobs/model.safetensors, which", monkeypatch, a=tmp_path / "snapshot")


def test_out_inside_an_input(tmp_path, monkeypatch):
    folder = indexed(tmp_path / "m")
    (tmp_path / "link").symlink_to(folder)
    for out in (folder / "merged", folder / "new" / "deep", tmp_path / "link" / "merged"):
        untouched(tmp_path, out, "lies inside .*m, which expert 'a' is read from: give a directory outside", monkeypatch, a=folder)


def test_inputs_that_were_opened_before(tmp_path, monkeypatch):
    folder = one(tmp_path / "m" / "model.safetensors", model(1)).parent
    untouched(tmp_path, folder, "which expert 'a' is read from", monkeypatch, a=SafetensorsWeights(folder))
    with pytest.raises(fbl.MergeError, match="which multitask is read from"):
        fbl.merge_files("traditional_mtl", model(), {"a": model(1)}, folder, multitask=SafetensorsWeights(folder))
    lora, base = write_adapter(tmp_path / "lora"), base_state()
    untouched(tmp_path, lora, "which expert 'a' is read from", monkeypatch, base=base, a=lora)


def test_neighbours_of_inputs_are_no_inputs(tmp_path):
    a, b = one(tmp_path / "a.safetensors", model(1)), one(tmp_path / "b" / "model.safetensors", model(2)).parent
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "model.safetensors").hardlink_to(a)  # the same bytes by another name: replaced here, kept there
    assert same_bits(dict(sorted(SafetensorsWeights(write(tmp_path / "out", a=a, b=b)).items())), WHOLE)
    assert same_bits(load_file(a), model(1))
    assert same_bits(load_file(b / "model.safetensors"), model(2))
    write(tmp_path / "bb", a=a, b=b)  # begins like an input


# ---------------------------------------------------------------- directories that cannot be replaced


@pytest.mark.parametrize("out", [".", "..", "/", "", None, 3])
def test_out_that_is_no_name(tmp_path, monkeypatch, out):
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    with pytest.raises(fbl.MergeError, match="working directory|give the path of a directory"):
        write(out)
    assert everything(tmp_path) == {"here": ""}


@pytest.mark.parametrize("length", [256, 300, 5000])
def test_a_name_that_is_too_long(tmp_path, length):
    for out in (tmp_path / ("x" * length), tmp_path / "new" / ("ä" * (length // 2)) / "out"):
        with pytest.raises(fbl.InputError, match="cannot write .*File name too long") as caught:
            write(out)
        assert "\n" not in str(caught.value)
    assert everything(tmp_path) == {}


@pytest.mark.parametrize("name", ["x" * 255, "ä" * 127 + "x", "with blank", " ", "-", "a=b", "ünï"])
def test_a_name_that_is_just_possible(tmp_path, name):
    for _ in range(2):  # the second time it is replaced
        assert same_bits(dict(sorted(SafetensorsWeights(write(tmp_path / name)).items())), WHOLE)
        assert [path.name for path in tmp_path.iterdir()] == [name]


def test_a_name_with_a_null(tmp_path):
    with pytest.raises(fbl.InputError, match="null"):
        write(str(tmp_path / "a\0b"))
    assert everything(tmp_path) == {}


def test_a_folder_without_the_right_to_write(tmp_path, monkeypatch):
    def refuse(**_: object) -> str:
        raise PermissionError(errno.EACCES, "Permission denied")

    monkeypatch.setattr(tempfile, "mkdtemp", refuse)
    with pytest.raises(fbl.InputError, match="cannot write .*out: Permission denied; nothing was left there, permit writing"):
        write(tmp_path / "new" / "deep" / "out")
    assert everything(tmp_path) == {}


def test_tilde(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    assert write("~/out") == tmp_path / "out"
    assert (tmp_path / "out" / "model-00001-of-00002.safetensors").is_file()
    with pytest.raises(fbl.MergeError, match="which expert 'a' is read from"):
        write("~/out", a=tmp_path / "out")


def test_out_through_links(tmp_path):
    (tmp_path / "big").mkdir()
    (tmp_path / "out").symlink_to(tmp_path / "big")
    assert write(tmp_path / "out") == tmp_path / "out"
    assert (tmp_path / "out").is_symlink()
    assert same_bits(dict(sorted(SafetensorsWeights(tmp_path / "big").items())), WHOLE)
    (tmp_path / "nowhere").symlink_to(tmp_path / "gone")
    with pytest.raises(fbl.MergeError, match="nowhere is a link that leads nowhere: remove it"):
        write(tmp_path / "nowhere")
    (tmp_path / "nowhere").unlink()
    write(tmp_path / "nowhere")


def test_a_mounted_file_system_is_not_replaced(tmp_path, monkeypatch):
    (tmp_path / "volume").mkdir()
    monkeypatch.setattr(os.path, "ismount", lambda path: Path(path) == tmp_path / "volume")
    with pytest.raises(fbl.MergeError, match="volume is where a file system is mounted .*: give a directory below it"):
        write(tmp_path / "volume")
    write(tmp_path / "volume" / "out")


# ---------------------------------------------------------------- tasks that name folders


@pytest.mark.parametrize(
    "task",
    ["", ".", "..", ".hidden", "a/b", "/etc", "a\\b", "a\0b", "a\nb", "c:", "what?", "CON", "nul", "Aux.txt", "com1", "x.", "x ",
     " x", "model.safetensors", "model.safetensors.index.json", "0.part", "x" * 256, "ä" * 128, "\ud800", 3, None],
)  # fmt: skip
def test_tasks_that_cannot_be_folders(tmp_path, task):
    for method in ("individual", "emr_merging"):
        with pytest.raises(fbl.MergeError, match=r"cannot name a directory below .*: rename it") as caught:
            fbl.merge_files(method, model(), {"b": model(1), task: model(2)}, tmp_path / "out")
        assert "\n" not in str(caught.value)
    assert everything(tmp_path) == {}
    if isinstance(task, str):  # one model for all needs no folder of that name
        fbl.merge_files("task_arithmetic", model(), {"b": model(1), task: model(2)}, tmp_path / "out")


@pytest.mark.parametrize("pair", [("Cars", "cars"), ("STRASSE", "straße"), ("caf\u00e9", "cafe\u0301")])
def test_tasks_that_are_one_folder_on_some_systems(tmp_path, pair):
    with pytest.raises(fbl.MergeError, match="are one name where case does not count"):
        fbl.merge_files("individual", model(), {pair[0]: model(1), pair[1]: model(2)}, tmp_path / "out")
    assert everything(tmp_path) == {}


def test_tasks_that_can_be_folders(tmp_path):
    tasks = {name: model(1) for name in ("a b", "a.b", "console", "x" * 255, "ä", "(1)", "a=b,c", "~")}
    out = fbl.merge_files("individual", model(), tasks, tmp_path / "out")
    assert {path.name for path in out.iterdir()} == set(tasks)


# ---------------------------------------------------------------- nothing partial


class Failing(Mapping[str, torch.Tensor]):
    """A state dict that fails at its last tensor, after shards of the others were written."""

    def __init__(self, state: State, error: BaseException) -> None:
        self.state, self.error, self.asked = state, error, 0

    def __getitem__(self, name: str) -> torch.Tensor:
        self.asked += name == list(self.state)[-1]
        if self.asked > 1:  # the first time is for its shape
            raise self.error
        return self.state[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self.state)

    def __len__(self) -> int:
        return len(self.state)


@pytest.mark.parametrize("error", [RuntimeError("boom"), KeyboardInterrupt(), OSError(errno.ENOSPC, "No space left on device")])
@pytest.mark.parametrize("earlier", [False, True])
@pytest.mark.parametrize("method", ["weight_averaging", "individual"])
def test_an_error_in_the_middle(tmp_path, error, earlier, method):
    out = tmp_path / "new" / "deep" / "out"
    if earlier:
        write(out, method, a=model(1))
    before = everything(tmp_path)
    with pytest.raises((type(error), fbl.InputError)):
        write(out, method, a=Failing(model(1), error))
    assert everything(tmp_path) == before


@pytest.mark.parametrize("earlier", [False, True])
@pytest.mark.parametrize("step", ["first", "second"])
def test_a_rename_that_fails_at_the_end(tmp_path, monkeypatch, earlier, step):
    out = tmp_path / "new" / "out"
    if earlier:
        write(out, a=model(1))
    before, rename, calls = everything(tmp_path), Path.rename, []

    def refuse(path: Path, target: Path) -> Path:
        if path.name == "out" or (path.name.endswith(".tmp") and target == out):
            calls.append(path)
            if len(calls) == (2 if step == "second" and earlier else 1):
                raise OSError(errno.EBUSY, "Device or resource busy")
        return rename(path, target)

    monkeypatch.setattr(Path, "rename", refuse)
    with pytest.raises(fbl.InputError, match="cannot write .*out: Device or resource busy"):
        write(out, a=model(2))
    assert calls
    monkeypatch.undo()
    assert everything(tmp_path) == before


LIMITED = """
import resource, sys, torch
import fusionbench_lite as fbl
resource.setrlimit(resource.RLIMIT_FSIZE, (20000, 20000))
state = {f"w{i}": torch.full((1000,), float(i)) for i in range(12)}
try:
    fbl.merge_files(sys.argv[2], state, {"a": state, "b": state}, sys.argv[1], shard_bytes=int(sys.argv[3]))
except fbl.InputError as error:
    print(error)
"""


@pytest.mark.parametrize("method", ["weight_averaging", "individual"])
def test_a_limit_of_the_size_of_files(tmp_path, method):
    """In a process of its own, which the signal of the limit would end."""
    out, tree = tmp_path / "new" / "out", Path(fbl.__file__).parent.parent

    def run(shard_bytes: int) -> str:
        command = [sys.executable, "-c", LIMITED, str(out), method, str(shard_bytes)]
        return subprocess.run(command, capture_output=True, text=True, check=True, cwd=tree).stdout

    assert "out: File too large; nothing was left there, free some space" in run(1 << 30)
    assert everything(tmp_path) == {}
    assert run(5000) == ""
    before = everything(tmp_path)
    assert "File too large" in run(1 << 30)
    assert everything(tmp_path) == before


def test_what_a_method_refuses_at_once_writes_nothing(tmp_path, monkeypatch):
    from fusionbench_lite.methods import resuming

    monkeypatch.setattr(resuming, "atomic_directory", lambda _: pytest.fail("it was written"))
    wrong = {name: tensor[:2] for name, tensor in model(3).items()}
    with pytest.raises(fbl.MergeError, match="shape"):
        fbl.merge_files("traditional_mtl", model(), {"a": model(1)}, tmp_path / "new" / "out", multitask=wrong)
    assert everything(tmp_path) == {}

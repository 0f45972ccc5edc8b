"""Checkpoints are converted once, told apart and made again where they were damaged."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from safetensors.torch import load_file

from fusionbench_lite import checkpoints
from fusionbench_lite.base import file_hashes
from fusionbench_lite.checkpoints import store
from tests.checkpoints.test_checkpoints import moved, request, same, tree, visual  # noqa: F401
from tests.conftest import ROOT
from tests.support import vision_files
from tests.support.vision_files import TINY


def test_files_are_converted_once(tree: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:  # noqa: F811
    from fusionbench_lite.checkpoints import reading

    opened: list[Path] = []
    read = reading.read
    monkeypatch.setattr(reading, "read", lambda path: (opened.append(path), read(path))[1])
    told: list[tuple[str, int, int]] = []
    first = checkpoints.find(request(tree, tmp_path, "ta"), lambda *what: told.append(what))
    assert len(opened) == 6  # the pretrained model twice: its tower, and its text side to compare with
    assert told
    assert all(0 <= done <= total for _, done, total in told)
    times = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*.safetensors")}
    opened.clear()
    assert checkpoints.find(request(tree, tmp_path, "ta")) == first
    assert not opened
    assert times == {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*.safetensors")}


@pytest.mark.parametrize("damage", ["flip", "truncate", "empty", "other", "flip, and the time set back"])
def test_damaged_conversions_are_made_again(damage: str, tree: Path, tmp_path: Path) -> None:  # noqa: F811
    first = checkpoints.find(request(tree, tmp_path, "ta"))
    path = first.experts["dtd"]
    content, status = bytearray(path.read_bytes()), path.stat()
    sound = {name: tensor.clone() for name, tensor in load_file(path).items()}  # the file is mapped, and changes below
    if damage.startswith("flip"):
        content[-3] ^= 1
    path.write_bytes({"truncate": content[:-8], "empty": b"", "other": bytes(len(content))}.get(damage, content))
    if "time" in damage:
        os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns + 1))
    assert checkpoints.find(request(tree, tmp_path, "ta")) == first
    assert same(path, sound)


def test_a_changed_source_is_converted_anew(tree: Path, tmp_path: Path) -> None:  # noqa: F811
    folder = moved(tree / "ta", tmp_path / "files")
    first = checkpoints.find(request(tree, tmp_path, "ta", dir=folder))
    changed = vision_files.expert_state(TINY, "mnist", 0, 0.1)
    vision_files.write_module_encoder(folder / "ViT-B-32" / "MNIST" / "finetuned.pt", changed, TINY)
    second = checkpoints.find(request(tree, tmp_path, "ta", dir=folder))
    assert second.experts["mnist"] != first.experts["mnist"]
    assert second.experts["dtd"] == first.experts["dtd"]
    assert second.expert_hashes["mnist"] != first.expert_hashes["mnist"]
    assert same(second.experts["mnist"], visual(changed))


def test_experts_that_change_places_are_told_apart(
    tree: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch  # noqa: F811
) -> None:
    """Experts are of one size, and an archive may give all its files one date."""
    monkeypatch.setattr(file_hashes, "GRAIN", -10**10)  # files that were just written count as at rest
    folder = moved(tree / "ta", tmp_path / "files")
    mnist, dtd = (folder / "ViT-B-32" / name / "finetuned.pt" for name in ("MNIST", "DTD"))
    for path in (mnist, dtd):
        os.utime(path, ns=(0, 0))
    first = checkpoints.find(request(tree, tmp_path, "ta", dir=folder))
    assert mnist.stat().st_size == dtd.stat().st_size
    mnist.rename(tmp_path / "other")
    dtd.rename(mnist)
    (tmp_path / "other").rename(dtd)
    second = checkpoints.find(request(tree, tmp_path, "ta", dir=folder))
    assert second.expert_hashes == {"mnist": first.expert_hashes["dtd"], "dtd": first.expert_hashes["mnist"]}
    assert checkpoints.find(request(tree, tmp_path, "ta", dir=folder)) == second


def test_a_source_is_not_hashed_again(tree: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:  # noqa: F811
    monkeypatch.setattr(file_hashes, "GRAIN", -10**10)
    first = checkpoints.find(request(tree, tmp_path, "ta"))
    monkeypatch.setattr(file_hashes, "file_sha256", lambda path: pytest.fail(f"{path} is hashed again"))
    assert checkpoints.find(request(tree, tmp_path, "ta")) == first


def test_another_base_is_compared_again(tree: Path, tmp_path: Path) -> None:  # noqa: F811
    """An expert that was found to share the text side of one pretrained model is not taken for another's."""
    folder = moved(tree / "ta", tmp_path / "files")
    checkpoints.find(request(tree, tmp_path, "ta", dir=folder))
    vision_files.write_module_encoder(folder / "ViT-B-32" / "zeroshot.pt", vision_files.base_state(TINY, 5), TINY)
    with pytest.raises(checkpoints_error(), match="differs from the pretrained model"):
        checkpoints.find(request(tree, tmp_path, "ta", dir=folder))


def checkpoints_error() -> type[Exception]:
    from fusionbench_lite.errors import InputError

    return InputError


_JOB = """
import sys
from pathlib import Path
from fusionbench_lite import checkpoints
from fusionbench_lite.base import file_hashes
from tests.checkpoints import test_checkpoints
tree, cache = map(Path, sys.argv[1:])
print(sorted(checkpoints.find(test_checkpoints.request(tree, cache, "ta")).files.values()))
"""


@pytest.mark.slow  # two processes import torch and open_clip
def test_two_processes_do_not_clash(tree: Path, tmp_path: Path) -> None:  # noqa: F811
    jobs = [
        subprocess.Popen(
            [sys.executable, "-c", _JOB, str(tree), str(tmp_path / "cache")], cwd=ROOT, text=True, stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
        ) for _ in range(2)
    ]
    answers = [job.communicate(timeout=120) for job in jobs]
    assert [job.returncode for job in jobs] == [0, 0], answers
    assert answers[0][0] == answers[1][0] != ""
    assert not list((tmp_path / "cache").rglob("*.tmp"))
    assert len(list((tmp_path / "cache").rglob("expert-*.safetensors"))) == 2


def test_stamps_hold_what_was_checked(tree: Path, tmp_path: Path) -> None:  # noqa: F811
    found = checkpoints.find(request(tree, tmp_path, "ta"))
    for path in tmp_path.rglob("*.stamp"):
        path.unlink()
    assert checkpoints.find(request(tree, tmp_path, "ta")) == found  # checked in full, and stamped again
    metadata = store.metadata_of(found.experts["dtd"])
    assert metadata is not None
    assert metadata["sha256"] == found.expert_hashes["dtd"]
    assert found.experts["dtd"].name == f"expert-dtd-{metadata['sha256'][:12]}.safetensors"
    assert found.experts["dtd"].with_suffix(".stamp").is_file()

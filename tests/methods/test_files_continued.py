"""A merge of files that was killed, interrupted or asked to end continues with the bits of an undisturbed one, or starts over."""

from __future__ import annotations

import os
import shutil
import signal
import warnings
from pathlib import Path

import filelock
import pytest
import torch

import fusionbench_lite as fbl
from fusionbench_lite import registry
from fusionbench_lite.errors import MergeWarning
from fusionbench_lite.methods.resuming import JOURNAL, LOCK, STATE, Journal
from fusionbench_lite.paths import unfinished
from fusionbench_lite.weights.experts import Experts
from tests.methods.test_files_out import everything
from tests.support.helpers import expert_of, experts_of
from tests.support.merging import PAIRS
from tests.support.spectral_cases import hf_clip_state
from tests.support.stored_models import indexed, model

WHOLE = [m for m in registry.names() if not (registry.get(m).adaptive or registry.get(m).per_task or registry.get(m).inputs)]
STEPS = ("awd_ta", "doge_ta", "wudi")
pytestmark = pytest.mark.filterwarnings("ignore::fusionbench_lite.weights.ranks.RankWarning")


class Stopped(BaseException):
    """Neither an error nor an interruption."""


def after(count: int, monkeypatch: pytest.MonkeyPatch, act: object) -> list[str]:
    """Call `act` when so many tensors are written; return the list to which every written tensor is added."""
    record, written = Journal.record, []

    def recording(journal: Journal, name: str, crc: int) -> None:
        record(journal, name, crc)
        written.append(name)
        if len(written) == count:
            act()

    monkeypatch.setattr(Journal, "record", recording)
    return written


def stop(error: BaseException) -> object:
    def act() -> None:
        raise error

    return act


def inputs(folder: Path, method: str = "task_arithmetic") -> tuple[Path, dict[str, Path]]:
    base = hf_clip_state(3)
    states = experts_of(base, 2 if method in PAIRS else 3, size=0.02)
    paths = {task: fbl.merge_files("individual", base, {task: state}, folder / task) / task for task, state in states.items()}
    return fbl.merge_files("pretrained", base, states, folder / "base"), paths


@pytest.mark.parametrize("method", WHOLE)
def test_a_killed_merge_continues_with_the_same_bits(tmp_path, monkeypatch, method):
    base, experts = inputs(tmp_path / "in", method)
    given = {"steps": 5} if method in STEPS else {}
    whole = fbl.merge_files(method, base, experts, tmp_path / "whole", shard_bytes=700, **given)
    out, saved = tmp_path / "new" / "out", tmp_path / "saved"
    with monkeypatch.context() as patch:
        total = after(4, patch, lambda: shutil.copytree(unfinished(out), saved))  # what SIGKILL leaves
        fbl.merge_files(method, base, experts, out, shard_bytes=700, **given)
    shutil.rmtree(out)
    saved.rename(unfinished(out))
    written = after(0, monkeypatch, None)
    fbl.merge_files(method, base, experts, out, shard_bytes=700, **given)
    assert everything(out) == everything(whole)
    assert sorted([*written, *total[:4]]) == sorted(total)
    assert [path.name for path in out.parent.iterdir()] == ["out"]


def test_an_interrupted_merge_continues_and_computes_only_the_rest(tmp_path, monkeypatch):
    base, experts = indexed(tmp_path / "base"), {"a": indexed(tmp_path / "a", model(1))}
    whole = fbl.merge_files("task_arithmetic", base, experts, tmp_path / "whole")
    out = tmp_path / "out"
    with monkeypatch.context() as patch:
        after(2, patch, stop(KeyboardInterrupt()))
        with pytest.raises(KeyboardInterrupt):
            fbl.merge_files("task_arithmetic", base, experts, out)
    assert not out.exists()
    assert {STATE, JOURNAL} < {path.name for path in unfinished(out).iterdir()}
    asked = []
    combination = Experts.combination
    monkeypatch.setattr(
        Experts, "combination", lambda view, name, weights: (asked.append(name), combination(view, name, weights))[1]
    )
    fbl.merge_files("task_arithmetic", base, experts, out)
    assert asked == list(model())[2:]
    assert everything(out) == everything(whole)


@pytest.mark.parametrize("from_files", [True, False])
def test_sigterm_leaves_what_can_be_continued_or_nothing(tmp_path, monkeypatch, from_files):
    base, expert = indexed(tmp_path / "in" / "base"), indexed(tmp_path / "in" / "a", model(1))
    out = tmp_path / "new" / "out"
    with monkeypatch.context() as patch:
        after(2, patch, lambda: os.kill(os.getpid(), signal.SIGTERM))
        with pytest.raises(SystemExit) as ended:
            fbl.merge_files("task_arithmetic", base, {"a": expert if from_files else model(1)}, out)
    assert ended.value.code == 128 + signal.SIGTERM
    assert signal.getsignal(signal.SIGTERM) is signal.SIG_DFL
    if not from_files:
        assert not out.parent.exists()
        return
    assert [path.name for path in out.parent.iterdir()] == [unfinished(out).name]
    fbl.merge_files("task_arithmetic", base, {"a": expert}, out)
    assert everything(out) == everything(fbl.merge_files("task_arithmetic", base, {"a": expert}, tmp_path / "whole"))


def test_votes_of_finished_tensors_count_where_entries_cancel(tmp_path, monkeypatch):
    # Entries of the first tensor cancel: its signs are the majority's, which the tensors that are finished before decide.
    state = {name: torch.zeros(4, 4) for name in model()}
    first = {name: torch.full((4, 4), 1.0 if number == 0 else -1.0) for number, name in enumerate(state)}
    second = {name: torch.full((4, 4), -1.0) for name in state}
    base, experts = indexed(tmp_path / "base", state), {"a": indexed(tmp_path / "a", first), "b": indexed(tmp_path / "b", second)}
    whole = fbl.merge_files("ties_merging", base, experts, tmp_path / "whole", keep=1.0)
    out = tmp_path / "out"
    with monkeypatch.context() as patch:
        after(4, patch, stop(KeyboardInterrupt()))
        with pytest.raises(KeyboardInterrupt):
            fbl.merge_files("ties_merging", base, experts, out, keep=1.0)
    written = after(0, monkeypatch, None)
    fbl.merge_files("ties_merging", base, experts, out, keep=1.0)
    assert written == [list(state)[-1], next(iter(state))]
    assert everything(out) == everything(whole)


def interrupted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, **given: object) -> tuple[Path, dict[str, Path], Path]:
    base, experts, out = indexed(tmp_path / "base"), {"a": indexed(tmp_path / "a", model(1))}, tmp_path / "out"
    with monkeypatch.context() as patch:
        after(3, patch, stop(KeyboardInterrupt()))
        with pytest.raises(KeyboardInterrupt):
            fbl.merge_files("task_arithmetic", base, experts, out, **given)
    return base, experts, out


@pytest.mark.parametrize("what", ["expert 'a'", "hyperparameters", "method", "shard_bytes", "order of the inputs"])
def test_a_changed_input_starts_over_with_a_word(tmp_path, monkeypatch, what):
    base, experts, out = interrupted(tmp_path, monkeypatch)
    method, given = "task_arithmetic", {}
    if what == "expert 'a'":
        shutil.rmtree(experts["a"])
        indexed(experts["a"], model(2))
    elif what == "order of the inputs":
        experts["b"] = indexed(tmp_path / "b", model(2))
    elif what == "method":
        method = "weight_averaging"
    else:
        given = {"scaling": 0.7} if what == "hyperparameters" else {"shard_bytes": 100}
    written = after(0, monkeypatch, None)
    with pytest.warns(MergeWarning, match=f"{what}.* changed: the interrupted merge into .*out starts over"):
        fbl.merge_files(method, base, experts, out, **given)
    assert written == list(model())
    assert everything(out) == everything(fbl.merge_files(method, base, experts, tmp_path / "whole", **given))


def test_what_is_damaged_is_written_again(tmp_path, monkeypatch):
    base, experts, out = interrupted(tmp_path, monkeypatch)
    file, journal = unfinished(out) / "model.safetensors", unfinished(out) / JOURNAL
    content = bytearray(file.read_bytes())
    content[-3 * 64 - 1] ^= 1  # the last byte of the third tensor
    file.write_bytes(content)
    journal.write_text(journal.read_text() + '{"finished": {"layers.5')  # half a line
    written = after(0, monkeypatch, None)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        fbl.merge_files("task_arithmetic", base, experts, out)
    assert written == list(model())[2:]
    assert everything(out) == everything(fbl.merge_files("task_arithmetic", base, experts, tmp_path / "whole"))


def test_two_merges_into_one_directory(tmp_path, monkeypatch):
    base, experts, out = interrupted(tmp_path, monkeypatch)
    with filelock.FileLock(unfinished(out) / LOCK), pytest.raises(fbl.MergeError, match="another process is merging into .*out"):
        fbl.merge_files("task_arithmetic", base, experts, out)
    fbl.merge_files("task_arithmetic", base, experts, out)


def test_bits_that_the_disk_changed_are_told(tmp_path, monkeypatch):
    out = tmp_path / "out"

    def change() -> None:
        file = next(tmp_path.glob(".out.*")) / "model.safetensors"
        content = bytearray(file.read_bytes())
        content[-6 * 64] ^= 1  # the first byte of the first tensor
        file.write_bytes(content)

    after(6, monkeypatch, change)
    with pytest.raises(fbl.InputError, match=r"holds 'layers\.0\.fc\.weight' with checksum \w{8}, \w{8} was written"):
        fbl.merge_files("task_arithmetic", model(), {"a": model(1)}, out)
    assert list(tmp_path.iterdir()) == []


def test_no_space_is_told_before_anything_is_computed(tmp_path, monkeypatch):
    monkeypatch.setattr(shutil, "disk_usage", lambda _: shutil._ntuple_diskusage(1, 1, 0))
    with pytest.raises(fbl.InputError, match=r"it needs 0\.00 GB and .* has 0\.00 GB free"):
        fbl.merge_files("task_arithmetic", model(), {"a": model(1)}, tmp_path / "out")
    assert list(tmp_path.iterdir()) == []


def test_files_are_those_of_the_formats_own_library(tmp_path):
    from safetensors.torch import save_file

    state = {"ü": torch.zeros(2, 3), "half": torch.ones(3).half(), "b": torch.tensor(True), "n": torch.tensor(3)}
    state["e"] = torch.zeros(0, 4)
    save_file(state, tmp_path / "theirs.safetensors", metadata={"format": "pt"})
    expert = expert_of(state, 1) | {name: state[name] for name in ("b", "n")}
    out = fbl.merge_files("pretrained", state, {"a": expert}, tmp_path / "out")
    assert (out / "model.safetensors").read_bytes() == (tmp_path / "theirs.safetensors").read_bytes()

"""Records: whole, consistent, found by content; everything else is no record."""

from __future__ import annotations

import errno
import json
import os

import numpy as np
import pytest

from fusionbench_lite.errors import InputError
from fusionbench_lite.tables import records
from tests.support.record_factory import TASKS, hits, result, selection, store

ACCURACIES = dict.fromkeys(TASKS, 0.7)


def _path(folder, key):
    return records.find(folder, key).path


def test_round_trip(tmp_path):
    key = store(tmp_path, "tsv_m", ACCURACIES, best=dict.fromkeys(TASKS, 0.8))
    record = records.find(tmp_path, key)
    assert record.path.name == f"tsv_m-vit_mini-mini8-{key}"
    assert [other.key for other in records.read_all(tmp_path)] == [key]
    assert record.correct("last")["digits"].sum() == 350
    assert record.correct("best_test")["digits"].sum() == 400
    assert record.selection("best_test")[1]["uses_test_labels"]
    assert records.find(tmp_path, "0" * 16) is None


def test_a_data_free_record_answers_with_its_only_selection(tmp_path):
    record = records.find(tmp_path, store(tmp_path, "tsv_m", ACCURACIES))
    assert record.selection("best_test")[0] == "last"


def test_key_depends_on_content_not_on_order():
    assert records.key({"a": 1, "b": [1, 2]}) == records.key({"b": [1, 2], "a": 1})
    assert records.key({"a": 1}) != records.key({"a": 2})
    with pytest.raises(InputError, match="plain JSON"):
        records.key({"a": float("nan")})


@pytest.mark.parametrize("flaw", ["no result", "no samples", "truncated samples", "other key", "other count", "renamed"])
def test_what_is_not_whole_is_ignored_and_named(tmp_path, flaw):
    good = store(tmp_path, "cart", ACCURACIES)
    path = _path(tmp_path, store(tmp_path, "tsv_m", ACCURACIES))
    if flaw == "no result":
        (path / "result.json").unlink()
    elif flaw == "no samples":
        (path / "samples.npz").unlink()
    elif flaw == "truncated samples":
        content = (path / "samples.npz").read_bytes()
        (path / "samples.npz").write_bytes(content[: len(content) // 2])
    elif flaw == "renamed":
        path.rename(path.with_name("tsv_m-copy"))
    else:
        data = json.loads((path / "result.json").read_text())
        if flaw == "other key":
            data["key"] = "f" * 16
        else:
            data["selections"]["last"]["per_task"]["digits"]["correct"] -= 1
        (path / "result.json").write_text(json.dumps(data))
    skipped: list[str] = []
    assert [record.key for record in records.read_all(tmp_path, skipped=skipped)] == [good]
    assert len(skipped) == 1
    assert "tsv_m" in skipped[0]
    assert "\n" not in skipped[0]


def test_temporary_directories_are_no_news(tmp_path):
    store(tmp_path, "cart", ACCURACIES)
    (tmp_path / "records" / ".half.tmp").mkdir()
    skipped: list[str] = []
    assert len(records.read_all(tmp_path, skipped=skipped)) == 1
    assert not skipped


def test_a_full_disk_leaves_nothing(tmp_path, monkeypatch):
    def full(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(InputError, match="No space left on device"):
        store(tmp_path, "cart", ACCURACIES)
    assert not list(tmp_path.iterdir())


def test_samples_must_agree_with_the_counts(tmp_path):
    arrays = {task: hits(0.5) for task in TASKS}
    data = result("cart", {"last": selection(arrays)})
    wrong = {"last": {t: {"predictions": np.zeros(500, int), "correct": ~a | True} for t, a in arrays.items()}}
    with pytest.raises(InputError, match=r"result\.json counts 250"):
        records.write(tmp_path, data, wrong)
    assert not (tmp_path / "records").exists()


def test_writing_again_replaces(tmp_path):
    key = store(tmp_path, "cart", ACCURACIES)
    before = _path(tmp_path, key).stat().st_ino
    assert store(tmp_path, "cart", ACCURACIES) == key
    assert _path(tmp_path, key).stat().st_ino != before
    assert len(records.read_all(tmp_path)) == 1

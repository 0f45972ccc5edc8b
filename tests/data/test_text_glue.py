"""GLUE from the hub, by a mirror with files of the published names."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import pytest

from fusionbench_lite.data import text
from fusionbench_lite.data.text import descriptions, glue
from fusionbench_lite.data.text.protocols import protocol
from fusionbench_lite.errors import InputError
from tests.support import text_files
from tests.support.mirror import Mirror, mirror  # noqa: F401


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> text.Tokenizer:
    return text.Tokenizer(text_files.byte_level(tmp_path_factory.mktemp("tokenizer") / "gpt2", "gpt2"))


@pytest.fixture
def reading(tokenizer: text.Tokenizer, tmp_path: Path):
    def made(**changes) -> text.Reading:
        return text.Reading(tokenizer=tokenizer, protocol=protocol("plain", "gpt2"), cache=tmp_path / "cache", **changes)

    return made


@pytest.fixture
def served(mirror: Mirror) -> Mirror:  # noqa: F811
    """SST-2 and MNLI with their splits; the hidden labels of test splits are -1."""
    text_files.glue(mirror, "sst2", "train", text_files.labelled(7))
    text_files.glue(mirror, "sst2", "validation", text_files.labelled(4, start=7))
    text_files.glue(mirror, "sst2", "test", text_files.labelled(3, -1))
    for split, label in (("train", 0), ("validation_matched", 1), ("validation_mismatched", 2)):
        rows = [{"premise": f"the plot {at}", "hypothesis": split, "label": label} for at in range(5)]
        text_files.glue(mirror, "mnli", split, rows)
    return mirror


def test_the_validation_split_is_the_test_split_and_training_waits(served: Mirror, reading):
    found = text.load("sst2", reading())
    assert found.labels("test").tolist() == [1, 0, 1, 0]
    assert found.classes == ("negative", "positive")
    assert found.texts["sentence"].tolist() == [row["sentence"] for row in text_files.labelled(4, start=7)]
    assert found.source == "dataset nyu-mll/glue, sst2, split validation"
    (file, sha256), = found.files.items()
    commit = served.commit("dataset", "nyu-mll/glue")
    assert file == f"nyu-mll/glue@{commit}:sst2/validation-00000-of-00001.parquet"
    assert sha256 == served.files("dataset", "nyu-mll/glue")["sst2/validation-00000-of-00001.parquet"].sha256
    assert len(found.sha256) == 64
    assert served.asked("*train-00000*") == []  # its fingerprint is that of the listed files
    assert len(found.labels("train")) == len(found.inputs("train")) == 7
    assert np.asarray(found.labels("train")).tolist() == [0, 1, 0, 1, 0, 1, 0]
    assert len(served.asked("*train-00000*", "GET")) == 1
    assert served.asked("*/test-00000*") == []


def test_answers_of_the_training_split_wait_too(served: Mirror, tmp_path: Path):
    tokenizer = text.Tokenizer(text_files.t5(tmp_path / "t5"))
    reading = text.Reading(tokenizer=tokenizer, protocol=protocol(None, "flan_t5_base"), cache=tmp_path / "cache")
    found = text.load("sst2", reading)
    assert found.test_targets is not None
    assert found.test_targets.tolist() == ["positive", "negative"] * 2
    assert found.texts["text"][0].endswith("determine the sentiment. Is it positive or negative?")
    assert found.train_targets is not None
    assert found.train_targets.fingerprint != found.inputs("train").fingerprint
    assert served.asked("*train-00000*") == []
    assert tokenizer.decode(found.train_targets.rows()) == ["negative", "positive"] * 3 + ["negative"]
    assert len(found.inputs("train")) == len(found.labels("train")) == 7


@pytest.mark.parametrize(
    ("model", "name", "split"),
    [
        ("gpt2", "adarank", "mismatched"), ("gpt2", "metamerging", "mismatched"), ("gpt2", "fusionbench", "matched"),
        ("roberta", "adarank", "matched"),
    ],
)
def test_mnli_is_read_from_the_protocol_s_split(served: Mirror, reading, model: str, name: str, split: str):
    given = dataclasses.replace(protocol(name, model), beyond="truncate")  # the tokenizer is of a model of 64 positions
    found = text.load("mnli", dataclasses.replace(reading(), protocol=given))
    assert set(found.texts["hypothesis"].tolist()) == {f"validation_{split}"}
    assert found.source.endswith(f"validation_{split}")
    assert set(found.labels("test").tolist()) == {1 if split == "matched" else 2}
    assert any("MNLI: " in note for note in found.caveats) == (split == "mismatched")


def test_another_number_of_examples_is_told(served: Mirror, reading):
    said = "sst2: dataset nyu-mll/glue, sst2, split validation has 4 examples, the published split 872: not comparable."
    assert said in text.load("sst2", reading()).caveats


def test_a_second_run_needs_no_network(served: Mirror, reading, monkeypatch: pytest.MonkeyPatch):
    first = text.load("sst2", reading())
    first.labels("train")[:1]
    asked = len(served.log)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    again = text.load("sst2", reading())
    assert again.sha256 == first.sha256
    assert len(again.inputs("train")) == 7
    assert len(served.log) == asked


def test_files_of_data_dir_come_first(served: Mirror, reading, tmp_path: Path):
    text_files.jsonl(tmp_path / "data" / "sst2.validation.jsonl", text_files.labelled(2))
    found = text.load("sst2", reading(data_dir=tmp_path / "data"))
    assert len(found.inputs("test")) == 2
    assert served.log == []
    assert len(text.load("sst2", reading(data_dir=tmp_path)).inputs("test")) == 4


def test_what_is_missing_or_damaged_is_named(served: Mirror, reading):
    with pytest.raises(InputError, match=r"nyu-mll/glue.* of split 'validation' of cola|cola.*nyu-mll/glue"):
        text.load("cola", reading())
    served.put("dataset", "nyu-mll/glue", "rte/validation-00000-of-00001.parquet", b"no parquet")
    with pytest.raises(InputError, match="is not readable parquet") as refused:
        text.load("rte", reading())
    assert "\n" not in str(refused.value)
    text_files.glue(served, "qnli", "validation", [{"question": "a", "label": 0}])
    with pytest.raises(InputError, match="row 1 has no column 'sentence', which text of task 'qnli' names"):
        text.load("qnli", reading())
    served.put("dataset", "nyu-mll/glue", "mrpc/validation-00000-of-00002.parquet", text_files.parquet([]))
    with pytest.raises(InputError, match="has 1 of 2 files of split 'validation' of mrpc"):
        text.load("mrpc", reading())


def test_the_inventory_tells_sizes_and_fetches_nothing(served: Mirror, reading, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    def listed():
        return text.inventory("mnli", protocol("adarank", "gpt2"), tmp_path / "cache")

    before = listed()
    assert [need.where for need in before] == [
        f"{glue.REPO}:mnli/validation_mismatched-00000-of-00001.parquet", f"{glue.REPO}:mnli/train-00000-of-00001.parquet"
    ]
    files = served.files("dataset", glue.REPO)
    assert [need.nbytes for need in before] == [files[need.where.partition(":")[2]].size for need in before]
    assert not any(need.present for need in before)
    assert served.asked("*.parquet") == []
    glue.split(descriptions.glue("mnli"), "validation_mismatched", tmp_path / "cache")
    assert [need.present for need in listed()] == [True, False]
    assert ["MNLI: " in need.note for need in before] == [True, False]
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    alone = text.inventory("rte", protocol("adarank", "gpt2"), tmp_path / "other")
    assert [(need.present, need.nbytes) for need in alone] == [(False, None)] * 2
    assert "its size is known with the hub" in alone[0].note

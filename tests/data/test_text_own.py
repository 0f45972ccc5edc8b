"""A user's own text tasks, and what is said of files that are not as they should be."""

from __future__ import annotations

import json
import re
from pathlib import Path

import numpy as np
import pytest

from fusionbench_lite.data import text
from fusionbench_lite.data.text import descriptions, own
from fusionbench_lite.errors import InputError
from tests.support import text_files
from tests.support.commands import ROOT


def read(folder: Path, name: str = "mine"):
    entry = own.description(name, folder)
    return own.split(entry, own.test_file(name, folder))


def test_labels_are_numbers_or_names(tmp_path: Path):
    folder = text_files.task(tmp_path)
    labels = [0, "good", 1.0, "bad"]
    text_files.jsonl(folder / "mine.test.jsonl", [{"sentence": str(at), "label": label} for at, label in enumerate(labels)])
    found = read(folder)
    assert found.labels.tolist() == [0, 1, 1, 0]
    assert found.labels.dtype == np.int64
    assert found.columns == {"sentence": ["0", "1", "2", "3"]}
    assert list(found.files) == [str(folder / "mine.test.jsonl")]


def test_scores_are_float64(tmp_path: Path):
    folder = text_files.task(tmp_path, classes=None, metric="spearman", label="grade")
    text_files.jsonl(folder / "mine.test.jsonl", [{"sentence": "a", "grade": 2}, {"sentence": "b", "grade": 3.75}])
    assert read(folder).labels.tolist() == [2.0, 3.75]
    assert read(folder).labels.dtype == np.float64


def test_validation_is_read_where_there_is_no_test(tmp_path: Path):
    folder = text_files.task(tmp_path)
    (folder / "mine.test.jsonl").rename(folder / "mine.validation.jsonl")
    assert len(read(folder)) == 4
    assert own.names(folder) == ("mine",)
    assert text.names(folder)[0] == "mine"


def test_the_names_of_glue_need_no_description(tmp_path: Path):
    rows = [{"sentence1": "a", "sentence2": "b", "label": 1}, {"sentence1": "a", "sentence2": "c", "label": "entailment"}]
    text_files.jsonl(tmp_path / "rte.validation.jsonl", rows)
    found = read(tmp_path, "rte")
    assert found.labels.tolist() == [1, 0]
    assert found.columns == {"sentence1": ["a", "a"], "sentence2": ["b", "c"]}


def test_an_empty_line_and_a_byte_order_mark_are_passed_over(tmp_path: Path):
    folder = text_files.task(tmp_path)
    (folder / "mine.test.jsonl").write_bytes(b'\xef\xbb\xbf{"sentence": "caf\xc3\xa9", "label": 0}\r\n\r\n')
    assert read(folder).columns == {"sentence": ["café"]}


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ('{"sentence": "a"}', "line 2 has no label ('label'): add it"),
        ('{"sentence": "a", "label": null}', "line 2 has no label"),
        ('{"sentence": "a", "label": "goood"}', "line 2: label 'goood' is none of the 2 classes (0 bad, 1 good)"),
        ('{"sentence": "a", "label": 2}', "line 2: label 2 is none of the 2 classes"),
        ('{"sentence": "a", "label": -1}', "line 2: label -1 is none of the 2 classes"),
        ('{"sentence": "a", "label": 0.5}', "line 2: label 0.5 is none of the 2 classes"),
        ('{"sentence": "a", "label": true}', "line 2: label True is none of the 2 classes"),
        ('{"sentence": "a", "label": NaN}', "line 2: label nan is none of the 2 classes"),
        ('{"sentense": "a", "label": 0}', "has no column 'sentence', which text of task 'mine' names (it has sentense, label)"),
        ('{"sentence": 3, "label": 0}', "line 2: column 'sentence' must be a text, got 3"),
        ('{"sentence": "a \\ud83d", "label": 0}', "line 2: column 'sentence' holds half of a UTF-16 pair"),
        ('{"sentence": "a", "label": 0', "line 2 is not JSON"),
        ('["a", 0]', "line 2 holds list, not an object"),
        ('{"sentence": "\xff"', "not readable as UTF-8"),
    ],
)
def test_a_wrong_line_is_named_by_its_number(tmp_path: Path, line: str, said: str):
    folder = text_files.task(tmp_path)
    file = folder / "mine.test.jsonl"
    file.write_bytes(b'{"sentence": "fine", "label": 1}\n' + line.encode("latin-1") + b"\n")
    with pytest.raises(InputError) as refused:
        read(folder)
    assert said in str(refused.value)
    assert str(file) in str(refused.value)
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize(
    ("description", "said"),
    [
        ({"text": []}, '"text" must list the columns'),
        ({"text": "sentence"}, "text must be a list of strings, got 'sentence'"),
        ({"classes": None}, '"classes" must list at least two different names'),
        ({"classes": ["a", "a"]}, '"classes" must list at least two different names'),
        ({"metric": "acuracy"}, "unknown metric 'acuracy': did you mean 'accuracy'"),
        ({"metric": "spearman"}, "metric spearman is of scores, but classes lists 2 names"),
        ({"words": ["yes"]}, "words has 1 answers, classes 2 names"),
        ({"words": ["yes", "yes"]}, "words has one answer for two classes (yes, yes)"),
        ({"templat": "x"}, "unknown key 'templat': did you mean 'template'"),
        ({"template": "Is {sentence good?"}, "template or score is not one"),
        ({"template": "Is {sentence.__class__} good?"}, "template holds {sentence.__class__}, which names no column"),
        ({"template": "Is {} good?"}, "template holds {}, which names no column"),
        ({"template": "Is it good?"}, "template names no column"),
        ({"template": 3}, "template must be a string, got 3"),
    ],
)
def test_a_wrong_description_is_named_by_its_key(tmp_path: Path, description: dict, said: str):
    folder = text_files.task(tmp_path, **description)
    with pytest.raises(InputError) as refused:
        own.description("mine", folder)
    assert said in str(refused.value)
    assert str(folder / "mine.json") in str(refused.value)


def test_a_template_s_column_has_to_be_there(tmp_path: Path):
    folder = text_files.task(tmp_path, template="{sentence} {context}")
    with pytest.raises(InputError, match="has no column 'context', which the template of task 'mine' names"):
        read(folder)


def test_names_of_classes_that_are_other_numbers_are_not_guessed(tmp_path: Path):
    """Labels 1 to 5 of the classes "1" to "5" would be read one class too high."""
    folder = text_files.task(tmp_path, classes=["1", "2", "3"])
    with pytest.raises(InputError, match="label 1 may be number 1 or the name '1'"):
        read(folder)
    text_files.jsonl(folder / "mine.test.jsonl", [{"sentence": "a", "label": "3"}])
    assert read(folder).labels.tolist() == [2]
    fine = text_files.task(tmp_path / "fine", classes=["0", "1"])
    assert read(fine).labels.tolist() == [0, 1, 0, 1]


def test_missing_files_are_named(tmp_path: Path):
    folder = text_files.task(tmp_path)
    (folder / "mine.json").unlink()
    with pytest.raises(InputError, match=r'mine.json is missing: write the columns.*"text": \["sentence"\]'):
        own.description("mine", folder)
    (folder / "mine.test.jsonl").unlink()
    text_files.task(tmp_path, "mines")
    with pytest.raises(InputError, match=r"mine.test.jsonl is missing.*\(the nearest task there is mines\)"):
        own.test_file("mine", folder)
    (folder / "mines.test.jsonl").write_text("\n")
    with pytest.raises(InputError, match=r"mines.test.jsonl holds no example: put at least one there"):
        read(folder, "mines")


def test_glue_s_descriptions_are_whole():
    """The prompts' spelling is what published experts were trained with."""
    assert descriptions.glue_names() == ("cola", "mnli", "mrpc", "qnli", "qqp", "rte", "sst2", "stsb")
    tasks = {name: descriptions.glue(name) for name in descriptions.glue_names()}
    assert all(set(descriptions.fields_of(entry.template)) == set(entry.text) for entry in tasks.values())
    assert sum("Answere" in (entry.template or "") for entry in tasks.values()) == 4
    assert [tasks["rte"].answer(label) for label in (0, 1)] == [tasks["qnli"].answer(label) for label in (0, 1)] == ["yes", "no"]
    assert [tasks["mrpc"].answer(label) for label in (0, 1)] == [tasks["qqp"].answer(label) for label in (0, 1)] == ["no", "yes"]
    assert [tasks["stsb"].answer(label) for label in (0.0, 4.25, 3.75)] == ["0.0", "4.2", "3.8"]
    assert json.dumps(tasks["sst2"].template) == (
        "\"Given the sentence '{sentence}', determine the sentiment. Is it positive or negative?\""
    )


def test_the_example_of_the_documentation_reads(tmp_path: Path):
    description, lines = re.findall(r"```json\n(.*?)```", (ROOT / "docs" / "text_tasks.md").read_text(), re.DOTALL)
    (tmp_path / "tickets.json").write_text(description)
    (tmp_path / "tickets.validation.jsonl").write_text(lines)
    found = read(tmp_path, "tickets")
    assert found.labels.tolist() == [0, 1, 2]
    entry = own.description("tickets", tmp_path)
    filled = (entry.template or "").format_map({name: texts[0] for name, texts in found.columns.items()})
    assert filled.startswith("Title: Charged twice Text: My card")
    keys = re.findall(r"^\| `(\w+)` \|", (ROOT / "docs" / "text_tasks.md").read_text(), re.MULTILINE)
    assert keys == list(descriptions._KEYS)

"""Text tasks as models read them: pairs and prompts, targets, the cache, and the notes of results."""

from __future__ import annotations

import dataclasses
import logging
from pathlib import Path

import pytest

from fusionbench_lite.base.task_sets import tasks_of
from fusionbench_lite.data import text
from fusionbench_lite.data.text import descriptions, encoding, mini
from fusionbench_lite.data.text.protocols import protocol
from fusionbench_lite.errors import InputError
from tests.support import text_files

PAIR = {"text": ["sentence1", "sentence2"], "classes": ["other", "same"]}


@pytest.fixture(scope="module")
def tokenizers(tmp_path_factory: pytest.TempPathFactory) -> dict[str, text.Tokenizer]:
    root = tmp_path_factory.mktemp("tokenizers")
    gpt2 = text.Tokenizer(text_files.byte_level(root / "gpt2", "gpt2"))
    return {"pair": gpt2, "prompt": text.Tokenizer(text_files.t5(root / "t5"))}


@pytest.fixture
def reading(tokenizers: dict[str, text.Tokenizer], tmp_path: Path):
    """A function that returns how tasks are read: `style` pair or prompt."""

    def made(style: str = "pair", **changes) -> text.Reading:
        usual = protocol("plain", {"pair": "gpt2", "prompt": "flan_t5_base"}[style])
        given = {"protocol": usual, "cache": tmp_path / "cache", "data_dir": tmp_path / "data", **changes}
        return text.Reading(tokenizer=tokenizers[style], **given)

    return made


def test_a_pair_is_read_by_its_columns(reading, tmp_path: Path):
    folder = text_files.task(tmp_path / "data", **PAIR)
    rows = [{"sentence1": "a plot", "sentence2": f"the plot {at}", "label": at % 2} for at in range(3)]
    for split in ("train", "test"):
        text_files.jsonl(folder / f"mine.{split}.jsonl", rows)
    found = text.load("mine", reading())
    tokenizer = reading().tokenizer
    expected = tokenizer.encode(["a plot"] * 3, [f"the plot {at}" for at in range(3)], 64)
    assert [row.tolist() for row in found.inputs("test").rows()] == [row.tolist() for row in expected]
    assert found.inputs("train").fingerprint == found.inputs("test").fingerprint
    assert found.labels("test").tolist() == [0, 1, 0]
    assert (found.classes, found.num_classes, found.metric) == (("other", "same"), 2, "accuracy")
    assert (found.words, found.train_targets, found.test_targets) == (None, None, None)
    assert {name: texts.tolist() for name, texts in found.texts.items()} == {
        "sentence1": ["a plot"] * 3, "sentence2": [f"the plot {at}" for at in range(3)]
    }
    assert any("3 of 3 test examples have the same texts as a training example" in note for note in found.caveats)


def test_a_prompt_is_filled_in_and_has_answers(reading, tmp_path: Path):
    text_files.task(tmp_path / "data", template="{sentence} positive or negative?", words=["negative", "positive"])
    found = text.load("mine", reading("prompt"))
    tokenizer = reading("prompt").tokenizer
    prompts = [f"{row['sentence']} positive or negative?" for row in text_files.labelled(4, start=6)]
    assert found.texts["text"].tolist() == prompts
    assert [row.tolist() for row in found.inputs("test").rows()] == [row.tolist() for row in tokenizer.encode(prompts, None, 128)]
    assert found.metric == "exact_match"
    assert found.words == ("negative", "positive")
    assert found.test_targets is not None
    assert found.test_targets.tolist() == ["negative", "positive"] * 2
    assert found.test_targets.dtype.kind == "U"
    assert found.train_targets is not None
    assert tokenizer.decode(found.train_targets.rows()) == ["negative", "positive"] * 3


def test_scores_are_answered_with_one_decimal(reading, tmp_path: Path):
    folder = text_files.task(tmp_path / "data", classes=None, metric="spearman", template="rate {sentence}")
    for split in ("train", "test"):
        text_files.jsonl(folder / f"mine.{split}.jsonl", [{"sentence": str(at), "label": at * 1.24} for at in range(3)])
    prompted, headed = text.load("mine", reading("prompt")), text.load("mine", reading())
    assert prompted.test_targets is not None
    assert prompted.test_targets.tolist() == ["0.0", "1.2", "2.5"]
    assert prompted.labels("test").tolist() == [0.0, 1.2, 2.5]
    assert headed.labels("test").tolist() == [0.0, 1.24, 2.48]
    assert (prompted.metric, prompted.classes, prompted.words) == ("spearman", ("score",), None)


def test_more_columns_than_a_pair_need_a_template(reading, tmp_path: Path):
    three = ["a", "b", "c"]
    folder = text_files.task(tmp_path / "data", text=three, template="{c} of {a}")
    for split in ("train", "test"):
        text_files.jsonl(folder / f"mine.{split}.jsonl", [{"a": "x", "b": "y", "c": "z", "label": at} for at in (0, 1)])
    assert text.load("mine", reading()).texts["text"].tolist() == ["z of x"] * 2
    text_files.task(tmp_path / "data", "other", text=three)
    for split in ("train", "test"):
        text_files.jsonl(folder / f"other.{split}.jsonl", [{"a": "x", "b": "y", "c": "z", "label": at} for at in (0, 1)])
    with pytest.raises(InputError, match="task 'other' has no template, and text names 3 columns"):
        text.load("other", reading())


def test_a_model_that_generates_needs_a_template_and_answers_that_differ(reading, tmp_path: Path):
    text_files.task(tmp_path / "data")
    with pytest.raises(InputError, match="task 'mine' has no template, and the model generates its answers: give one"):
        text.load("mine", reading("prompt"))
    text_files.task(tmp_path / "data", template="{sentence}", words=["Ü", "Ä"])  # letters that this tokenizer does not know
    with pytest.raises(InputError, match="task 'mine': the tokenizer in .* of the answers 'Ü' and 'Ä': give words"):
        text.load("mine", reading("prompt"))


def test_a_limit_takes_evenly_spaced_test_examples(reading, tmp_path: Path):
    folder = text_files.task(tmp_path / "data")
    text_files.jsonl(folder / "mine.test.jsonl", [*text_files.labelled(5, 0, 10), *text_files.labelled(5, 1, 15)])
    found = text.load("mine", reading(limit=4))
    assert found.labels("test").tolist() == [0, 0, 1, 1]
    assert len(found.inputs("test")) == 4
    assert len(found.inputs("train")) == 6
    assert len(text.load("mine", reading(limit=99)).inputs("test")) == 10


def test_without_a_training_split_there_are_no_training_texts(reading, tmp_path: Path):
    (text_files.task(tmp_path / "data") / "mine.train.jsonl").unlink()
    found = text.load("mine", reading())
    assert len(found.inputs("train")) == len(found.labels("train")) == 0
    assert found.caveats == ()


def test_tokens_are_kept_and_a_damaged_file_is_made_again(reading, tmp_path: Path, monkeypatch, caplog):
    text_files.task(tmp_path / "data")
    asked = []
    encode_all = text.Tokenizer.encode_all
    monkeypatch.setattr(text.Tokenizer, "encode_all", lambda self, *given: asked.append(1) or encode_all(self, *given))
    told: list[tuple[str, int, int]] = []
    first = text.load("mine", reading(), lambda *step: told.append(step))
    assert told == [("tokenising mine", 4, 4), ("tokenising mine", 6, 6)]
    assert len(asked) == 2
    assert text.load("mine", reading()).sha256 == first.sha256
    assert len(asked) == 2
    kept = sorted((tmp_path / "cache" / "text").glob("mine-*.npz"))
    assert len(kept) == 2
    content = kept[0].read_bytes()
    at = content.index(b"ids.npy") + 140
    for damaged in (content[: len(content) // 2], content[:at] + bytes([content[at] ^ 255]) + content[at + 1 :], b""):
        kept[0].write_bytes(damaged)
        with caplog.at_level(logging.WARNING):
            assert text.load("mine", reading()).sha256 == first.sha256
        assert f"{kept[0]} is damaged: tokenising again" in caplog.text
        assert kept[0].read_bytes() == content
        caplog.clear()
    assert len(asked) == 5


def test_the_key_of_kept_tokens_is_all_that_decides_them(reading, tokenizers):
    texts = [
        [["a", "bc"], ["d", "e"]], [["ab", "c"], ["d", "e"]], [["a", "bc", "d", "e"]], [["d", "e"], ["a", "bc"]],
        [["a", "bc"], ["d", "é"]],
    ]
    keys = {
        encoding._key(tokenizers[style], longest, given) for style in ("pair", "prompt") for longest in (8, 9) for given in texts
    }
    assert len(keys) == 2 * 2 * 5


def test_a_text_longer_than_the_model_is_cut_or_refused_as_the_protocol_says(reading, tmp_path: Path):
    folder = text_files.task(tmp_path / "data")
    text_files.jsonl(folder / "mine.test.jsonl", [*text_files.labelled(2), {"sentence": "she gave " * 90, "label": 1}])
    found = text.load("mine", reading())
    assert found.inputs("test").shape == (3, 64)
    assert "mine: 1 of 3 test texts are cut to the length that the model reads (33.3%)." in found.caveats
    published = protocol("adarank", "gpt2")
    with pytest.raises(InputError, match=r"example 3 has \d+ tokens, the model takes 64, .* adarank truncates at 512 only"):
        text.load("mine", reading(protocol=published))
    short = dataclasses.replace(published, longest=32)
    assert text.load("mine", reading(protocol=short)).inputs("test").shape == (3, 32)


def test_notes_are_of_classes_and_of_metrics_too(reading, tmp_path: Path):
    folder = text_files.task(tmp_path / "data", classes=["bad", "fair", "good"], metric="f1", template="{sentence}")
    text_files.jsonl(folder / "mine.test.jsonl", text_files.labelled(4, 2, start=9))
    notes = text.load("mine", reading("prompt")).caveats
    assert "mine: 2 of 3 classes have no test example (bad, fair): accuracy is that of the others." in notes
    assert any("1 of 3 classes have no training example (good)" in note and "4 of 4 test examples" in note for note in notes)
    assert "mine: f1 is of classes; generated answers are judged by exact_match." in notes


def test_an_empty_text_is_refused_where_it_has_no_token(reading, tmp_path: Path):
    folder = text_files.task(tmp_path / "data")
    text_files.jsonl(folder / "mine.test.jsonl", [*text_files.labelled(2), {"sentence": "", "label": 1}])
    with pytest.raises(InputError, match="example 3 of task 'mine' has no token: drop empty texts"):
        text.load("mine", reading())


def test_a_task_s_hash_is_of_its_texts_labels_and_answers(reading, tmp_path: Path):
    about = {"template": "{sentence}", "words": ["negative", "positive"]}
    folder = text_files.task(tmp_path / "data", **about)
    hashes = [text.load("mine", reading("prompt")).sha256]
    text_files.task(folder, **about, metric="f1")
    assert text.load("mine", reading("prompt")).sha256 == hashes[0]  # both are judged by exact match
    text_files.task(folder, **{**about, "words": ["no", "yes"]})
    hashes.append(text.load("mine", reading("prompt")).sha256)
    text_files.jsonl(folder / "mine.test.jsonl", text_files.labelled(4, 1, start=6))
    hashes.append(text.load("mine", reading("prompt")).sha256)
    judged = text.load("mine", reading("prompt")).test_sha256
    for rows in (text_files.labelled(5), text_files.labelled(5, 1)):
        text_files.jsonl(folder / "mine.train.jsonl", rows)
        hashes.append(text.load("mine", reading("prompt")).sha256)
        assert text.load("mine", reading("prompt")).test_sha256 == judged
    assert len(set(hashes)) == 5


def test_an_unknown_task_is_refused_with_the_nearest(reading, tmp_path: Path):
    text_files.task(tmp_path / "data")
    with pytest.raises(InputError, match="text task 'mine2' is not in .*, no task of GLUE and not drawn: did you mean 'mine'"):
        text.load("mine2", reading())
    with pytest.raises(InputError, match="text task 'colaa' is no task of GLUE and not drawn: did you mean 'cola'"):
        text.load("colaa", reading(data_dir=None))


def test_a_file_s_inventory_is_on_this_machine(reading, tmp_path: Path):
    folder = text_files.task(tmp_path / "data")
    needs = text.inventory("mine", reading().protocol, tmp_path / "cache", folder)
    assert [(need.what, need.present, Path(need.path).name) for need in needs] == [
        ("test texts", True, "mine.test.jsonl"), ("training texts", True, "mine.train.jsonl")
    ]
    assert [need.nbytes for need in needs] == [(folder / f"mine.{split}.jsonl").stat().st_size for split in ("test", "train")]
    (folder / "mine.json").write_text("{}")
    with pytest.raises(InputError, match='"text" must list the columns'):
        text.inventory("mine", reading().protocol, tmp_path / "cache", folder)


def test_a_drawn_task_is_read_as_a_file_is(reading, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(mini, "TRAIN", 5)
    monkeypatch.setattr(mini, "TEST", 4)
    for style, columns in (("pair", ("question", "sentence")), ("prompt", ("text",))):
        found = text.load("answer", reading(style, seed=4))
        rows = mini.draw("answer", "test", 4, 4)
        assert [found.classes[label] for label in found.labels("test")] == [row["label"] for row in rows]
        assert tuple(found.texts) == columns
        assert all(row["question"] in given for row, given in zip(rows, found.texts[columns[0]], strict=True))
        assert len(found.inputs("train")) == 5
        assert found.source == "drawn answer, test, seed 4"
        assert found.files == {}
        assert all("are cut" in note for note in found.caveats)  # a tokenizer of a few texts cuts words of others into letters
    assert text.load("answer", reading(seed=5)).sha256 != text.load("answer", reading(seed=4)).sha256


def test_drawn_tasks_are_a_task_set_and_need_nothing(reading):
    assert text.names()[-len(mini.TASKS) :] == mini.TASKS == tasks_of("mini_text")
    assert set(tasks_of("glue7")) | {"stsb"} == set(tasks_of("glue8")) == set(descriptions.glue_names())
    assert text.inventory("answer", reading().protocol, Path("cache")) == []

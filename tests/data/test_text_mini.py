"""The drawn text tasks: what holds of every drawing, and what single sentences have to mean."""

from __future__ import annotations

import itertools
from collections import Counter
from pathlib import Path

import numpy as np
import pytest

from fusionbench_lite.base.task_sets import tasks_of
from fusionbench_lite.data.text import Reading, Tokenizer, load, mini, protocol
from fusionbench_lite.data.text.mini import lexicon, pairs, sentences, tokenizer
from fusionbench_lite.data.text.mini.drawing import Choices

COUNT = 600
GENERAL = {
    special: {kind, top} for top, kinds in lexicon.KINDS.items() for kind, below in kinds.items() for special in below
} | {kind: {top} for top, kinds in lexicon.KINDS.items() for kind in kinds}


def texts(name: str, rows: list[dict[str, str]]) -> list[tuple[str, ...]]:
    return [tuple(row[column] for column in mini.DRAWINGS[name].columns) for row in rows]


def test_the_task_set_names_them():
    assert tasks_of("mini_text") == mini.TASKS


@pytest.mark.parametrize("name", mini.TASKS)
def test_splits_have_no_example_in_common_whatever_the_seeds(name: str):
    train = {one for seed in (0, 1) for one in texts(name, mini.draw(name, "train", seed, COUNT))}
    test = {one for seed in (0, 1, 2) for one in texts(name, mini.draw(name, "test", seed, COUNT // 2))}
    assert not train & test
    assert len(train) > COUNT
    assert len(set(texts(name, mini.draw(name, "test", 0, COUNT)))) == COUNT


@pytest.mark.parametrize("name", mini.TASKS)
def test_a_drawing_is_that_of_its_seed_and_balanced(name: str):
    rows = mini.draw(name, "test", 3, COUNT)
    assert rows == mini.draw(name, "test", 3, COUNT)
    assert rows != mini.draw(name, "test", 4, COUNT)
    classes = mini.DRAWINGS[name].classes
    count = Counter(row["label"] for row in rows)
    assert set(count) == set(classes)
    assert all(abs(count[each] - COUNT / len(classes)) < 30 for each in classes)


@pytest.mark.parametrize("name", mini.TASKS)
def test_so_many_labels_are_wrong(name: str, monkeypatch: pytest.MonkeyPatch):
    given = [row["label"] for row in mini.draw(name, "train", 0, COUNT)]
    monkeypatch.setattr(mini, "WRONG", 0.0)
    right = [row["label"] for row in mini.draw(name, "train", 0, COUNT)]
    wrong = np.mean([one != other for one, other in zip(given, right, strict=True)])
    assert 0.015 < wrong < 0.07  # 4 % of 600, three standard deviations


@pytest.mark.parametrize("kind", ["roberta", "gpt2", "t5"])
def test_the_tokenizer_knows_every_word_and_length(kind: str, tmp_path: Path):
    tokenizer.write(kind, tmp_path)
    own, ids = Tokenizer(tmp_path), tokenizer.vocabulary(kind)
    for name in mini.TASKS:
        rows = mini.draw(name, "train", 5, COUNT)
        columns = list(zip(*texts(name, rows), strict=True))
        encoded = own.encode(list(columns[0]), list(columns[1]) if len(columns) > 1 else None, tokenizer.LONGEST)
        assert max(map(len, encoded)) <= tokenizer.LONGEST // 2
        assert not any((row == ids["<unk>"]).any() for row in encoded)
    assert own.decode(own.encode(["Every small robin is red."], None, 64)) == ["every small robin is red ."]


@pytest.mark.parametrize(
    ("kind", "expected"), [("roberta", "<s> dog </s> </s> rose </s>"), ("gpt2", "dog rose"), ("t5", "dog rose </s>")]
)
def test_a_pair_is_as_the_models_are_trained(kind: str, expected: str, tmp_path: Path):
    tokenizer.write(kind, tmp_path)
    ids = tokenizer.vocabulary(kind)
    assert Tokenizer(tmp_path).encode(["Dog"], ["rose"], 64)[0].tolist() == [ids[word] for word in expected.split()]


def test_a_generating_model_reads_prompts_and_answers(tmp_path: Path):
    tokenizer.write("t5", tmp_path)
    form = protocol(None, "text_mini_seq2seq")
    reading = Reading(tokenizer=Tokenizer(tmp_path), protocol=form, cache=tmp_path / "cache", limit=20)
    task = load("entailment", reading)
    assert set(task.test_targets) == {"no", "yes"}
    assert all(text.startswith("entailment : ") for text in task.texts["text"])


def entails(premise: str, hypothesis: str) -> bool:
    """Decide by the sets that the words name, in the way a person would."""
    (quantifier, *one, _, colour), (_, *two, _, other) = (text[:-1].lower().split() for text in (premise, hypothesis))
    special, general = (one, two) if quantifier == "some" else (two, one)
    adjectives = set(general[:-1]) <= set(special[:-1])
    nouns = general[-1] == special[-1] or general[-1] in GENERAL.get(special[-1], set())
    return colour == other and adjectives and nouns


def test_entailment_is_as_sets_say():
    draw = Choices(np.random.default_rng(0))
    for label, _ in itertools.product((0, 1), range(200)):
        row = pairs.entailment(draw, label)
        assert entails(row["premise"], row["hypothesis"]) == bool(label), row


def test_a_paraphrase_has_the_same_roles():
    draw = Choices(np.random.default_rng(0))

    def roles(text: str) -> tuple[str, str]:
        people = [word for word in text[:-1].lower().split() if word in lexicon.PEOPLE]
        return (people[1], people[0]) if " was " in text else (people[0], people[1])

    for label, _ in itertools.product((0, 1), range(200)):
        row = pairs.paraphrase(draw, label)
        assert (roles(row["first"]) == roles(row["second"])) == bool(label), row


def test_sentiment_is_that_of_the_main_clause():
    draw = Choices(np.random.default_rng(0))
    for label, _ in itertools.product((0, 1), range(200)):
        text = sentences.sentiment(draw, label)["sentence"]
        clause = text.split(" but ")[-1].split(", ")[-1]
        words = clause.rstrip(".").split()
        assert ((words[-1] in lexicon.GOOD) != ("not" in words)) == bool(label), text


@pytest.mark.parametrize(("noun", "expected"), [("coach", "coaches"), ("lily", "lilies"), ("trout", "trout"), ("play", "plays")])
def test_plurals(noun: str, expected: str):
    assert lexicon.plural(noun) == expected


def test_verbs_of_one_meaning():
    verb = next(verb for verb in lexicon.TRANSITIVE if verb.base == "watch")
    assert lexicon.synonym(verb) == ("observe", "observes", "observed", "observed", "observing")
    assert lexicon.synonym(lexicon.INTRANSITIVE[0]) is None

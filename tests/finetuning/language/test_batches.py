"""The texts of every step, and what is measured on them."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from fusionbench_lite.data.text import Tokens
from fusionbench_lite.finetuning.language.batches import Questions, TextBatches, held_out_rows, in_chunks
from fusionbench_lite.models.language import encoder_of, full_model
from tests.support.language_job import pretrained, task

CPU = torch.device("cpu")


@pytest.mark.parametrize("grouped", [False, True])
def test_an_epoch_sees_every_text_once(grouped):
    lengths = np.random.default_rng(0).integers(1, 50, 1000)
    rows = np.arange(0, 1000, 2)
    made = TextBatches(lengths, rows, 16, grouped=grouped, seed=1, task="a")
    again = TextBatches(lengths, rows, 16, grouped=grouped, seed=1, task="a")
    assert made.an_epoch == 32
    epochs = []
    for epoch in range(2):
        batches = [made.rows(epoch * 32 + step) for step in range(32)]
        assert sorted(np.concatenate(batches).tolist()) == rows.tolist()
        assert sorted(len(batch) for batch in batches) == [4, *[16] * 31]
        epochs.append([batch.tolist() for batch in batches])
    assert epochs[0] != epochs[1]
    assert again.rows(40).tolist() == epochs[1][8]  # a step needs none before it
    others = [TextBatches(lengths, rows, 16, grouped=grouped, seed=seed, task=name) for seed, name in ((2, "a"), (1, "b"))]
    assert all(other.rows(0).tolist() != epochs[0][0] for other in others)
    padding = np.mean([np.ptp(lengths[batch]) for batch in epochs[0]])
    assert padding < 5 if grouped else padding > 30


def test_held_out_texts_are_the_same_for_every_seed():
    train, held = held_out_rows("cola", 95, 0.1)
    assert (len(train), len(held)) == (86, 9)
    assert sorted([*train, *held]) == list(range(95))
    assert held_out_rows("cola", 95, 0.1)[1].tolist() == held.tolist()
    assert held_out_rows("sst2", 95, 0.1)[1].tolist() != held.tolist()
    assert len(held_out_rows("cola", 95, 0.0)[1]) == 0


@pytest.mark.parametrize("kind", ["gpt2", "roberta", "bert", "t5"])
def test_losses_are_transformers_own(tmp_path, kind):
    model, given = full_model(pretrained(tmp_path, kind), None if kind == "t5" else 2), task(kind)
    questions, rows = Questions(given, CPU), np.arange(20)
    with torch.no_grad():
        losses = questions.losses(model, rows)
        inputs = {name: torch.from_numpy(array) for name, array in given.train_images[rows].items()}
        if kind == "t5":
            answers = given.train_targets[rows]
            labels = torch.from_numpy(np.where(answers["attention_mask"] == 1, answers["input_ids"], -100))
        else:
            labels = torch.from_numpy(given.train_labels[rows])
        torch.testing.assert_close(losses.mean(), model(**inputs, labels=labels).loss, rtol=1e-5, atol=1e-6)
        parts = torch.cat([questions.losses(model, part) for part in in_chunks(rows, 7)])
    assert questions.count(rows) == len(losses)
    torch.testing.assert_close(parts, losses, rtol=1e-4, atol=1e-5)


def test_exact_answers_are_those_that_generation_gives(tmp_path):
    model, given = full_model(pretrained(tmp_path, "t5")), task("t5")
    with torch.no_grad():
        model.lm_head.weight[1] *= 3.0  # so that some answers end early
    inputs = {name: torch.from_numpy(array) for name, array in given.train_images[:].items()}
    encoder = encoder_of(model)
    with torch.no_grad(), encoder.generating(longest=6):
        generated = encoder(**inputs).numpy()[:, 1:]
    ends = [list(row).index(1) + 1 if 1 in row else len(row) for row in generated]
    said = [row[:end].astype(np.int32) for row, end in zip(generated, ends, strict=True)]
    changed = [np.append(row[:-1], row[-1] + 1).astype(np.int32) if number % 3 == 0 else row for number, row in enumerate(said)]
    assert len(set(map(tuple, map(list, said)))) > 1
    asked = Questions(given, CPU)
    asked.answers = Tokens(changed, 0)
    rows = np.arange(len(changed))
    with torch.no_grad():
        found, right = asked.predictions(model, rows)
    assert right.tolist() == [1] * len(rows)
    assert found.tolist() == [int(number % 3 != 0) for number in rows]


@pytest.mark.parametrize("kind", ["bert", "t5"])
def test_autocast_changes_rounding_alone(tmp_path, kind):
    model, given = full_model(pretrained(tmp_path, kind), 2 if kind == "bert" else None), task(kind)
    with torch.no_grad():
        full, half = (Questions(given, CPU, bf16=bf16).losses(model, np.arange(8)) for bf16 in (False, True))
    assert half.dtype == torch.float32
    assert not torch.equal(full, half)
    torch.testing.assert_close(half, full, rtol=0.1, atol=0.1)

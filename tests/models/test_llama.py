"""The encoder of Llama: transformers' own logits and answers, whatever side the padding is on, and the tensors of its shapes."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from fusionbench_lite.finetuning.language import small
from fusionbench_lite.finetuning.language.batches import Questions
from fusionbench_lite.models import language
from fusionbench_lite.models.language.building import generates, own_state
from fusionbench_lite.models.language.llama import to_the_right
from fusionbench_lite.models.language_shapes import SIZES, of_size, size_of

transformers = pytest.importorskip("transformers")
CONFIG = small.config("text_mini_llama")


@pytest.fixture(scope="module")
def model():
    torch.manual_seed(0)
    return language.new_model(CONFIG).eval()


def prompts(lengths=(5, 9, 7), side="right"):
    generator = torch.Generator().manual_seed(1)
    ids, mask = torch.zeros(len(lengths), max(lengths), dtype=torch.long), torch.zeros(len(lengths), max(lengths), dtype=torch.long)
    for row, length in enumerate(lengths):
        part = slice(None, length) if side == "right" else slice(max(lengths) - length, None)
        ids[row, part] = torch.randint(3, CONFIG["vocab_size"], (length,), generator=generator)
        mask[row, part] = 1
    return ids, mask


def test_names_and_shapes_are_those_of_the_class(model):
    expected = {name: tuple(tensor.shape) for name, tensor in own_state(model).items()}
    assert size_of(CONFIG) == SIZES["text_mini_llama"]
    assert dict(of_size("text_mini_llama", SIZES["text_mini_llama"]).tensors) == expected
    assert set(language.encoder_of(model, vocabulary=True).state_dict()) == set(expected)


def test_sizes_of_the_large_one_are_published():
    """Llama 2, 13 B: 13,015,864,320 parameters by the index of its checkpoint."""
    assert of_size("llama2_13b", SIZES["llama2_13b"]).parameters == 13_015_864_320


@pytest.mark.parametrize("side", ["right", "left"])
def test_features_are_the_logits_after_each_prompt(model, side):
    ids, mask = prompts(side=side)
    encoder = language.encoder_of(model, vocabulary=True)
    with torch.no_grad():
        found = encoder(input_ids=ids, attention_mask=mask)
        for row, here in enumerate(mask.bool()):
            alone = model(input_ids=ids[row, here][None]).logits[0, -1]
            torch.testing.assert_close(found[row], alone, rtol=1e-5, atol=1e-5)
        headless = language.encoder_of(model)
        hidden = headless(input_ids=ids, attention_mask=mask)
        torch.testing.assert_close(headless.head(own_state(model))(hidden), found, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("side", ["right", "left"])
def test_answers_are_those_of_each_prompt_alone(model, side):
    ids, mask = prompts(side=side)
    encoder = language.encoder_of(model, vocabulary=True)
    with torch.no_grad(), encoder.generating(6):
        found = encoder(input_ids=ids, attention_mask=mask)
    assert not found.is_floating_point()
    for row, here in enumerate(mask.bool()):
        text = ids[row, here][None]
        for _ in range(found.shape[1]):  # greedy, by hand
            best = model(input_ids=text).logits[0, -1].argmax()
            text = torch.cat([text, best[None, None]], dim=1)
            if best == CONFIG["eos_token_id"]:
                break
        made = text[0, int(here.sum()) :]
        assert torch.equal(found[row, : len(made)], made)
        assert bool((found[row, len(made) :] == CONFIG["pad_token_id"]).all())


def test_losses_are_those_of_answers_behind_their_prompts(model):
    """By one text at a time, without padding."""

    class Padded:
        def __init__(self, rows):
            self.rows, self.lengths = rows, np.array([len(row) for row in rows])

        def __getitem__(self, chosen):
            kept = [self.rows[number] for number in chosen]
            ids, mask = (np.zeros((len(kept), max(map(len, kept))), np.int64) for _ in range(2))
            for row, tokens in enumerate(kept):
                ids[row, : len(tokens)], mask[row, : len(tokens)] = tokens, 1
            return {"input_ids": ids, "attention_mask": mask}

    texts, answers = Padded([[5, 6, 7, 1], [8, 9, 1]]), Padded([[10, 1], [11, 12, 1]])
    task = type("Task", (), {"train_images": texts, "train_targets": answers, "train_labels": np.zeros(2)})
    with torch.no_grad():
        found = Questions(task, torch.device("cpu")).losses(model, np.array([0, 1]))
        expected = []
        for text, answer in zip(texts.rows, answers.rows, strict=True):
            logits = model(input_ids=torch.tensor([text + answer])).logits[0, len(text) - 1 : -1]
            expected.append(torch.nn.functional.cross_entropy(logits, torch.tensor(answer), reduction="none"))
    torch.testing.assert_close(found, torch.cat(expected), rtol=1e-5, atol=1e-5)


def test_padding_goes_to_the_front_and_tokens_keep_their_order():
    ids, mask = torch.tensor([[4, 5, 0], [6, 7, 8]]), torch.tensor([[1, 1, 0], [1, 1, 1]])
    moved, there = to_the_right(ids, mask)
    assert moved.tolist() == [[0, 4, 5], [6, 7, 8]]
    assert there.tolist() == [[0, 1, 1], [1, 1, 1]]


def test_which_kinds_answer_in_words():
    assert {kind for kind in ("gpt2", "roberta", "bert", "t5", "llama") if generates(kind)} == {"t5", "llama"}

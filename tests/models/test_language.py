"""Language encoders and heads against those of transformers, what padding changes, and what is built from a configuration."""

from __future__ import annotations

import importlib.util
import sys

import pytest
import torch

from fusionbench_lite.errors import InputError
from fusionbench_lite.models import language
from fusionbench_lite.suites.text.judging import GeneratingEvaluator
from tests.adaptation.test_adapt_language import DOUBLE, EXACT, KINDS, call, double
from tests.support.helpers import distance, refused
from tests.support.language_models import (
    CONFIGS,
    PAD,
    VOCABULARY,
    direct_logits,
    encoder_of,
    full_model,
    texts,
)

# ---------------------------------------------------------------- encoders and heads


@pytest.mark.parametrize("kind", KINDS)
def test_tensor_names_are_those_of_transformers(kind):
    model, encoder = double(kind)
    state = model.state_dict()
    names = [name for name in state if not name.startswith(("score.", "classifier.", "lm_head."))]
    assert list(encoder.state_dict()) == names
    merged = encoder.merged(state)
    assert [name for name in merged if name != "lm_head.weight"] == names
    assert all(merged[name] is state[name] for name in merged)


@pytest.mark.parametrize(("kind", "count"), [("gpt2", 2 * 12 + 2), ("roberta", 2 * 16), ("t5", 2 * 9 + 2 * 14 + 2 + 2)])
def test_blocks_alone(kind, count):
    model, encoder = double(kind)
    names = encoder.merged(model.state_dict(), embeddings=False)
    assert len(names) == count
    assert not any("embed" in name or "wte" in name or "wpe" in name or "head" in name for name in names)
    assert set(names) < set(encoder.state_dict())


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("start", [0, 1])
def test_head_of_features_is_transformers_logits(kind, tied, start):
    if kind != "t5" and (start or not tied):
        return  # those are T5's alone
    model = full_model(kind, 3, tied=tied).double().eval()
    encoder = encoder_of(kind, model, **({"start": start} if kind == "t5" else {}))
    batch = texts(kind, 5, 6, 1)
    want = direct_logits(kind, model, batch, start).detach()
    features = call(encoder, {}, batch).detach()
    assert features.shape == (5, 8)
    assert distance(encoder.head(model.state_dict())(features), want) <= 1e-12
    if kind == "t5":
        inside = encoder_of(kind, model, start=start, vocabulary=True)
        assert distance(call(inside, {}, batch), want) <= 1e-12
        assert inside.head({})(want) is want


def test_t5_head_of_a_tied_checkpoint_that_lists_shared_alone():
    model, encoder = double("t5")
    state = model.state_dict()
    features = torch.randn(2, 8, dtype=DOUBLE)
    want = encoder.head(state)(features)
    assert torch.equal(encoder.head({"shared.weight": state["shared.weight"]})(features), want)
    assert torch.equal(want, (features * 8**-0.5) @ state["shared.weight"].T)
    with refused("'shared.weight'"):
        encoder.head({"encoder.block.0.layer.0.SelfAttention.q.weight": torch.zeros(1)})


def test_start_token_matters_and_is_checked():
    model, encoder = double("t5")
    batch = texts("t5", 3, 5, 2)
    assert distance(call(encoder_of("t5", model, start=1), {}, batch), call(encoder, {}, batch).detach()) > 1e-3
    with refused("start", str(VOCABULARY - 1), str(VOCABULARY)):
        encoder_of("t5", model, start=VOCABULARY)


def test_features_while_answers_are_judged_are_features():
    _, encoder = double("t5")
    batch = texts("t5", 3, 5, 2)
    evaluator = GeneratingEvaluator(
        data={}, heads={}, device=torch.device("cpu"), model=encoder, tokenizer=None, longest=6,  # type: ignore[arg-type]
    )
    want = call(encoder, {}, batch)
    with encoder.generating(6):
        with evaluator.featuring():
            assert torch.equal(call(encoder, {}, batch), want)
        assert not call(encoder, {}, batch).is_floating_point()


def test_gpt2_features_are_those_of_the_last_token():
    model, encoder = double("gpt2")
    batch = texts("gpt2", 6, 7, 3)
    hidden = model.transformer(**batch).last_hidden_state
    features = call(encoder, {}, batch)
    for row, mask in enumerate(batch["attention_mask"]):
        assert distance(features[row], hidden[row, int(mask.sum()) - 1].detach()) <= 1e-12
    # The pad token is GPT-2's end of text: what counts is the mask, not the id.
    ended = {"input_ids": batch["input_ids"][:1].clone(), "attention_mask": batch["attention_mask"][:1]}
    ended["input_ids"][0, -1] = PAD["gpt2"]
    want = model.transformer(**ended).last_hidden_state[0, -1]
    assert distance(call(encoder, {}, ended)[0], want.detach()) <= 1e-12


def test_roberta_features_are_those_of_the_first_token():
    model, encoder = double("roberta")
    batch = texts("roberta", 6, 7, 3)
    assert distance(call(encoder, {}, batch), model.roberta(**batch).last_hidden_state[:, 0].detach()) <= 1e-12


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("side", ["left", "right", "both"])
@pytest.mark.parametrize("dtype", [torch.long, torch.bool, torch.int32])
def test_padding_changes_nothing(kind, side, dtype):
    _, encoder = double(kind)
    batch = texts(kind, 5, 6, 4, side)
    mask = batch["attention_mask"] == 1
    whole = call(encoder, {}, {"input_ids": batch["input_ids"], "attention_mask": mask.to(dtype)})
    other = torch.where(mask, batch["input_ids"], torch.tensor(7))  # nothing reads what is masked
    assert distance(call(encoder, {}, {"input_ids": other, "attention_mask": mask.to(dtype)}), whole.detach()) <= EXACT[kind]
    for row in range(5):
        own = batch["input_ids"][row][mask[row]][None]
        alone = call(encoder, {}, {"input_ids": own, "attention_mask": torch.ones_like(own)})
        assert distance(whole[row], alone[0].detach()) <= EXACT[kind]


@pytest.mark.parametrize("kind", KINDS)
def test_build_from_a_config(kind):
    torch.manual_seed(1)
    built = language.build({"model_type": kind, **CONFIGS[kind]})
    assert type(built) is type(double(kind)[1])
    full, _ = double(kind)
    assert {n: t.shape for n, t in built.state_dict().items()} == {
        n: t.shape for n, t in full.state_dict().items() if not n.startswith(("score.", "classifier.", "lm_head."))
    }


@pytest.mark.parametrize("tied", [True, False])
def test_build_unties_what_the_config_unties(tied):
    built = language.build({"model_type": "t5", **CONFIGS["t5"], "tie_word_embeddings": tied}, vocabulary=True, start=1)
    assert (built.lm_head.weight is built.shared.weight) == tied
    assert built.encoder.embed_tokens.weight is built.shared.weight
    assert built.start == 1
    assert (built.scale == 1.0) != tied


def test_build_refuses(monkeypatch):
    with pytest.raises(InputError, match="'gpt3'.*gpt2"):
        language.build({"model_type": "gpt3"})
    monkeypatch.setitem(sys.modules, "transformers", None)
    with pytest.raises(InputError, match=r"fusionbench_lite\[language\]"):
        language.build({"model_type": "gpt2"})


def test_transformers_is_imported_late(monkeypatch):
    monkeypatch.setitem(sys.modules, "transformers", None)
    spec = importlib.util.find_spec("fusionbench_lite.models.language")
    spec.loader.exec_module(importlib.util.module_from_spec(spec))

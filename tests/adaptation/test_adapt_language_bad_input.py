"""What adaptations of language models refuse, and which of their matrices are decomposed."""

from __future__ import annotations

import pytest
import torch

from fusionbench_lite.models import language
from fusionbench_lite.weights.matrices import is_factorised
from tests.adaptation.test_adapt_language import KINDS, TIED, call, double, run
from tests.support.helpers import refused, same_bits, snapshot
from tests.support.language_models import (
    CONFIGS,
    VOCABULARY,
    language_setting,
    texts,
)

# ---------------------------------------------------------------- bad input

BAD = {
    "no mask": (lambda b: {"input_ids": b["input_ids"]}, ["attention_mask"]),
    "no ids": (lambda b: {"attention_mask": b["attention_mask"]}, ["input_ids"]),
    "tensor": (lambda b: b["input_ids"], ["attention_mask"]),
    "labels": (lambda b: {**b, "labels": torch.zeros(len(b["input_ids"]))}, ["labels"]),
    "other length": (lambda b: {**b, "attention_mask": b["attention_mask"][:, :-1]}, [r"\(\d, 4\)", r"\(\d, 3\)"]),
    "other count": (lambda b: {**b, "attention_mask": b["attention_mask"][:-1]}, ["task1", r"\(3, 4\)"]),
    "empty batch": (lambda b: {k: v[:0] for k, v in b.items()}, ["task1", r"\(0, 4\)"]),
    "empty mapping": (lambda b: {}, ["task1"]),
    "empty texts": (lambda b: {k: v[:, :0] for k, v in b.items()}, ["empty", r"0\)"]),
    "all padding": (lambda b: {**b, "attention_mask": b["attention_mask"] * 0}, ["attention_mask", "row"]),
    "one text": (lambda b: {k: v[0] for k, v in b.items()}, [r"\[B, L\]", r"\(4,\)"]),
    "floats": (lambda b: {**b, "input_ids": b["input_ids"].double()}, ["float64", "integers"]),
    "large id": (lambda b: {**b, "input_ids": b["input_ids"] + VOCABULARY}, [str(VOCABULARY - 1), "vocabulary"]),
    "negative id": (lambda b: {**b, "input_ids": b["input_ids"] - 100}, ["vocabulary"]),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_input(case):
    damage, parts = BAD[case]
    s = language_setting("gpt2", 1)
    s.setting.batches["task1"][0] = damage(s.setting.batches["task1"][0])
    before = snapshot(s.setting.model.state_dict())
    with refused(*parts):
        run(s, steps=1)
    assert same_bits(s.setting.model.state_dict(), before)


@pytest.mark.parametrize("kind", KINDS)
def test_bad_input_of_every_encoder(kind):
    _, encoder = double(kind)
    good = texts(kind, 2, 4, 1)
    for case in ("no mask", "no ids", "labels", "other length", "other count", "empty batch", "all padding", "large id"):
        with refused(type(encoder).__name__):
            call(encoder, {}, BAD[case][0](good))


@pytest.mark.parametrize(("kind", "longest"), [("gpt2", 12), ("roberta", 12)])
def test_longest_text(kind, longest):
    _, encoder = double(kind)
    assert call(encoder, {}, texts(kind, 2, longest, 1)).shape == (2, 8)
    with refused(str(longest), str(longest + 1)):
        call(encoder, {}, texts(kind, 2, longest + 1, 1))


# ---------------------------------------------------------------- which matrices are decomposed


def chosen(encoder, policy):
    return [name for name, tensor in encoder.state_dict().items() if is_factorised(name, tensor.shape, policy)]


def test_matrices_of_gpt2():
    encoder = language.build({"model_type": "gpt2", **CONFIGS["gpt2"], "n_layer": 12})
    names = chosen(encoder, "attn_mlp")
    assert len(names) == 48
    assert {name.split(".", 3)[3] for name in names} == {
        "attn.c_attn.weight", "attn.c_proj.weight", "mlp.c_fc.weight", "mlp.c_proj.weight"
    }
    assert set(chosen(encoder, "all_2d")) == {*names, "transformer.wte.weight", "transformer.wpe.weight"}
    assert len(encoder.merged(encoder.state_dict(), embeddings=False)) == 146


def test_matrices_of_roberta():
    encoder = language.build({"model_type": "roberta", **CONFIGS["roberta"], "num_hidden_layers": 12})
    names = chosen(encoder, "encoder_linear")
    assert len(names) == 72
    assert {name.split(".", 4)[4] for name in names} == {
        *(f"attention.self.{part}.weight" for part in ("query", "key", "value")),
        "attention.output.dense.weight", "intermediate.dense.weight", "output.dense.weight",
    }
    assert not chosen(encoder, "attn_mlp")  # its names have neither word
    assert len(encoder.merged(encoder.state_dict(), embeddings=False)) == 192


def test_matrices_of_t5():
    encoder = language.build({"model_type": "t5", **CONFIGS["t5"]})
    names = chosen(encoder, "encoder_linear")
    assert all(name.startswith("encoder.") for name in names)  # no policy has the decoder's alone
    assert not chosen(encoder, "attn_mlp")
    assert {"encoder.embed_tokens.weight", "encoder.block.0.layer.0.SelfAttention.relative_attention_bias.weight"} < set(names)
    blocks = set(encoder.merged(encoder.state_dict(), embeddings=False))
    assert set(chosen(encoder, "all_2d")) - blocks == set(TIED[:3])

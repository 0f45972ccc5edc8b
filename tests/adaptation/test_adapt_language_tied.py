"""Tied tensors of language models are adapted as one; copies that differ are refused."""

from __future__ import annotations

import copy
import functools

import pytest
import torch
from safetensors.torch import load_file, save_model

from tests.adaptation.test_adapt_language import EXACT, TIED, call, double, run
from tests.support.helpers import distance, expert_of, refused, snapshot
from tests.support.language_models import (
    encoder_of,
    full_model,
    language_setting,
    retied,
    texts,
)


def tied_setting(form, tmp_path, vocabulary=True):
    """T5 whose four names are one tensor, from weights that list it in several ways."""
    s = language_setting("t5", 4, tied=True, vocabulary=vocabulary)
    if form == "copies":
        return s
    setting = s.setting

    def listed(weights):
        if form == "storage":
            return {name: weights["shared.weight"] if name in TIED else tensor for name, tensor in weights.items()}
        if form == "one":
            return {name: tensor for name, tensor in weights.items() if name not in TIED[1:]}
        if form == "another":
            return {name: tensor for name, tensor in weights.items() if name not in TIED[:3]}
        model = copy.deepcopy(setting.model)
        model.load_state_dict(weights)
        save_model(model, tmp_path / "model.safetensors")
        return load_file(tmp_path / "model.safetensors")

    setting.pretrained = listed(setting.pretrained)
    setting.experts = {task: listed(expert) for task, expert in setting.experts.items()}
    return s


@functools.cache
def from_copies(method):
    return run(tied_setting("copies", None), method, 4, lr=0.03, **WHOLE[method])


WHOLE = {"adamerging_layerwise": {}, "adamerging_taskwise": {}, "adarank_ta": {"matrices": "all_2d"}}


@pytest.mark.parametrize("form", ["storage", "one", "another", "safetensors"])
@pytest.mark.parametrize("method", WHOLE)
def test_tied_tensors_are_adapted_as_one(form, method, tmp_path):
    want = from_copies(method)
    s = tied_setting(form, tmp_path)
    got = run(s, method, 4, lr=0.03, **WHOLE[method])
    listed = [name for name in TIED if name in s.setting.pretrained]
    assert listed
    assert distance(got.losses, want.losses) <= EXACT["t5"]
    assert list(got.state_dict()) == list(s.setting.pretrained)
    for name in TIED:
        for adapted, names in ((got, listed), (want, TIED)):
            if name in names:
                assert torch.equal(adapted.state_dict()[name], adapted.state_dict()[names[0]])
                assert torch.equal(adapted.coefficients[name], adapted.coefficients[names[0]])
                if adapted.masks:
                    assert torch.equal(adapted.masks[name], adapted.masks[names[0]])
    assert distance(got.coefficients[listed[0]], want.coefficients["shared.weight"]) <= 1e-7
    assert float((got.coefficients[listed[0]] - 0.3).abs().max()) > 1e-3
    assert distance(got.state_dict()[listed[0]], want.state_dict()["shared.weight"]) <= 1e-7


@pytest.mark.parametrize("learn", ["both", "coefficients"])
def test_the_first_of_tied_names_decides_whether_there_is_a_mask(learn):
    s = tied_setting("copies", None)
    got = run(s, "adarank_ta", 1, matrices="encoder_linear", learn=learn)  # a policy that only one of the names meets
    assert got.masks
    assert not set(TIED) & set(got.masks)
    assert not any("embed_tokens" in name for name in got.learned)


def test_a_name_that_the_model_lacks_follows_the_tensor_it_is_tied_to(tmp_path):
    s = tied_setting("storage", tmp_path)
    s.setting.model = encoder_of("t5", full_model("t5", tied=True).double())  # without lm_head
    s.setting.heads = {t: s.setting.model.head(s.setting.pretrained) for t in s.setting.experts}
    s.setting.pretrained = dict(sorted(s.setting.pretrained.items(), key=lambda item: item[0] != "lm_head.weight"))
    assert next(iter(s.setting.pretrained)) == "lm_head.weight"
    got = run(s, steps=4)
    for name in TIED:
        assert torch.equal(got.state_dict()[name], got.state_dict()["shared.weight"])
        assert torch.equal(got.coefficients[name], got.coefficients["shared.weight"])
    assert float((got.coefficients["lm_head.weight"] - 0.3).abs().max()) > 1e-3


@pytest.mark.parametrize("who", ["pretrained", "task1"])
@pytest.mark.parametrize("method", ["adamerging_layerwise", "adarank_ta"])
def test_copies_that_differ_are_refused(who, method, tmp_path):
    s = tied_setting("copies", tmp_path)
    weights = s.setting.pretrained if who == "pretrained" else s.setting.experts[who]
    weights["decoder.embed_tokens.weight"][3, 1] += 1e-6
    with refused(who, "'shared.weight'", "'decoder.embed_tokens.weight'"):
        run(s, method)


def test_an_untied_model_takes_copies_that_differ():
    s = language_setting("t5", 2, tied=False, vocabulary=True)
    assert not torch.equal(s.setting.pretrained["lm_head.weight"], s.setting.pretrained["shared.weight"])
    got = run(s, steps=2)
    assert not torch.equal(got.coefficients["lm_head.weight"], got.coefficients["shared.weight"])


def test_call_runs_the_first_of_tied_names():
    _, encoder = double("t5")
    batch = texts("t5", 2, 4, 9)
    weights = snapshot(encoder.state_dict())
    want = call(encoder, {"shared.weight": weights["shared.weight"] * 2}, batch)
    weights["shared.weight"] *= 2
    assert distance(call(encoder, weights, batch), want.detach()) <= EXACT["t5"]


def test_experts_of_the_tied_embedding_helper_agree():
    _, encoder = double("t5")
    expert = retied(encoder, expert_of(snapshot(encoder.state_dict()), 5))
    assert torch.equal(expert["encoder.embed_tokens.weight"], expert["shared.weight"])

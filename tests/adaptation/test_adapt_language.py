"""Language models under `fbl.adapt`: features, entropy and its gradients against transformers' own forward passes."""

from __future__ import annotations

import copy
import functools
import importlib.util
import sys

import pytest
import torch
from safetensors.torch import load_file, save_model

import fusionbench_lite as fbl
from fusionbench_lite.adaptation.engine import core
from fusionbench_lite.adaptation.engine.descent import descend
from fusionbench_lite.adaptation.engine.parametrisation import Parametrisation
from fusionbench_lite.adaptation.engine.parts import Vectors
from fusionbench_lite.adaptation.engine.procedure import Context, Examples
from fusionbench_lite.errors import InputError
from fusionbench_lite.models import language
from fusionbench_lite.weights.experts import Experts
from fusionbench_lite.weights.matrices import is_factorised
from tests.oracles import adaptive
from tests.support.helpers import distance, expert_of, refused, same_bits, snapshot
from tests.support.language_models import (
    CONFIGS,
    PAD,
    VOCABULARY,
    direct_logits,
    encoder_of,
    full_model,
    language_setting,
    names_of,
    one_of_each,
    reference,
    retied,
    texts,
)

KINDS = ["gpt2", "roberta", "t5"]
DOUBLE = torch.float64
EXACT = {"gpt2": 1e-12, "roberta": 1e-12, "t5": 1e-6}  # T5 takes softmax and root mean squares in float32
COEFFICIENTS = {torch.float32: 1e-5, DOUBLE: 1e-9}


def double(kind, **given):
    model = full_model(kind, 3, **given).double().eval()
    return model, encoder_of(kind, model)


def run(s, method="adamerging_layerwise", steps=3, **given):
    return fbl.adapt(method, *s.setting.arguments(), steps, **given)


def call(encoder, weights, batch):
    return core.call(encoder, weights, batch).detach()


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


# ---------------------------------------------------------------- entropy, coefficients and masks


def problem_of(s, method, **given):
    pretrained, experts = one_of_each(s)
    if method.startswith("adamerging"):
        return adaptive.adamerging(pretrained, experts, method.removeprefix("adamerging_").removesuffix("wise"), **given)
    return adaptive.adarank("ta", pretrained, experts, 0.3, 1.0, **given)


def compare(s, method, steps, dtype, *, mean=False, lr=1e-3, **given):
    tolerance = COEFFICIENTS[dtype]
    coefficients, masks, losses, state = reference(s, problem_of(s, method, **given), steps, lr, mean=mean)
    got = run(s, method, steps, lr=lr, **({"objective": "entropy_of_mean"} if mean else {}), **given)
    first = names_of(s.setting.model)
    for name, value in got.coefficients.items():
        if name.endswith("key.bias") and dtype == torch.float32:
            continue  # attention does not depend on it: its gradient is rounding, which Adam makes a step of
        want = coefficients.get(first[name], coefficients.get("*"))
        assert float((value.double() - want).abs().max()) <= tolerance, name
    assert set(got.masks) == set(masks)
    assert all(torch.equal(got.masks[name], masks[name]) for name in masks)
    assert distance(got.losses, losses) <= max(10 * tolerance, EXACT[s.kind])
    for name, value in got.state_dict().items():
        assert distance(value, state[first[name]]) <= 50 * max(tolerance, 1e-4 * name.endswith("key.bias")), name
    moved = [name for name, value in got.coefficients.items() if float((value - 0.3).abs().max()) > 1e-4]
    assert len(moved) > len(got.coefficients) / 2
    return got


@pytest.mark.parametrize("dtype", [DOUBLE, torch.float32])
@pytest.mark.parametrize("kind", KINDS)
def test_adamerging(kind, dtype):
    compare(language_setting(kind, 10, dtype), "adamerging_layerwise", 10, dtype)


@pytest.mark.parametrize("kind", KINDS)
def test_adamerging_taskwise_without_clamp(kind):
    compare(language_setting(kind, 10, seed=1), "adamerging_taskwise", 10, DOUBLE, clamp=False, lr=0.01)


@pytest.mark.parametrize(("kind", "matrices"), [("gpt2", "attn_mlp"), ("roberta", "encoder_linear"), ("t5", "encoder_linear")])
def test_adarank(kind, matrices):
    got = compare(language_setting(kind, 10), "adarank_ta", 10, DOUBLE, lr=0.03, matrices=matrices)
    assert got.masks
    assert not all(bool(mask.all()) for mask in got.masks.values())


@pytest.mark.parametrize("kind", ["gpt2", "t5"])
@pytest.mark.parametrize("dtype", [DOUBLE, torch.float32])
def test_entropy_of_the_mean(kind, dtype):
    s = language_setting(kind, 10, dtype, start=1)
    mean = compare(s, "adamerging_layerwise", 10, dtype, mean=True)
    assert distance(run(s, steps=10).losses, mean.losses) > 1e-3


@pytest.mark.parametrize("tied", [True, False])
def test_t5_with_its_vocabulary_inside(tied):
    s = language_setting("t5", 10, tied=tied, vocabulary=True)
    assert "lm_head.weight" in s.setting.pretrained
    problem = adaptive.adamerging(*one_of_each(s))
    coefficients, _, losses, _ = reference(s, problem, 10)
    got = run(s, steps=10)
    assert distance(got.losses, losses) <= EXACT["t5"]
    for name, want in coefficients.items():
        assert float((got.coefficients[name] - want).abs().max()) <= 1e-9, name
    merged = copy.deepcopy(s.full["task0"]).eval()
    merged.load_state_dict(got.state_dict())
    batch = s.setting.batches["task1"][0]
    assert distance(got.encode(batch, "task1"), direct_logits("t5", merged, batch).detach()) <= EXACT["t5"]
    assert (merged.lm_head.weight.equal(merged.shared.weight)) == tied


def descent(s, chunk, objective):
    view = Experts(s.setting.pretrained, s.setting.experts)
    parts = {name: Vectors(view.base(name), view.task_vectors(name)) for name in view.names}
    learner = descend(Parametrisation(view, parts, 0.3, lr=1e-3), objective)
    return learner(Context(s.setting.model, s.setting.heads, 1, chunk))


@pytest.mark.parametrize("objective", ["entropy", "entropy_of_mean"])
@pytest.mark.parametrize("kind", ["gpt2", "t5"])
def test_chunks_change_nothing(kind, objective):
    s = language_setting(kind, 1)
    batch = {task: Examples(batches[0]) for task, batches in s.setting.batches.items()}
    found = []
    for chunk in (None, 100, 3, 1):
        procedure = descent(s, chunk, objective)
        procedure.refresh(0)
        losses = procedure.encoder.accumulate(batch, procedure.objective)
        procedure.parametrisation.pull_back(procedure.encoder.gradients())
        found.append((torch.stack(list(losses.values())), procedure.parametrisation.coefficients.grad))
        without = procedure.losses(batch)
        assert all(distance(without[task], losses[task]) <= EXACT[kind] for task in losses)
    for losses, gradient in found[1:]:
        assert distance(losses, found[0][0]) <= EXACT[kind]
        assert distance(gradient, found[0][1]) <= 10 * EXACT[kind]


def test_entropy_of_one_example_is_that_of_its_mean():
    s = language_setting("gpt2", 3)
    s.setting.batches = {t: [{k: v[:1] for k, v in b.items()} for b in bs] for t, bs in s.setting.batches.items()}
    a, b = run(s), run(s, objective="entropy_of_mean")
    assert distance(a.losses, b.losses) <= 1e-12
    with refused("objective", "mean_entropy"):
        run(s, objective="mean_entropy")


# ---------------------------------------------------------------- the engine


@pytest.mark.parametrize("kind", KINDS)
def test_dropout_is_never_active_and_nothing_is_left_changed(kind):
    s = language_setting(kind, 3)
    s.setting.model.eval()
    want = run(s)
    s.setting.model.train()
    before = snapshot(s.setting.model.state_dict())
    assert any(isinstance(m, torch.nn.Dropout) and m.p > 0 for m in s.setting.model.modules())
    got = run(s)
    assert torch.equal(got.losses, want.losses)
    assert same_bits(got.state_dict(), want.state_dict())
    assert torch.equal(got.encode(s.setting.batches["task0"][0], "task0"), want.encode(s.setting.batches["task0"][0], "task0"))
    assert all(module.training for module in s.setting.model.modules())
    assert same_bits(s.setting.model.state_dict(), before)
    assert all(parameter.grad is None for parameter in s.setting.model.parameters())


def test_tasks_of_equal_length_share_a_forward_pass():
    s = language_setting("gpt2", 1)
    lengths = []
    s.setting.model.register_forward_pre_hook(
        lambda _, args, named: lengths.append(tuple(named["input_ids"].shape)), with_kwargs=True
    )
    run(s, steps=1)
    assert lengths == [(5, 4), (4, 6)]


def test_blocks_alone_are_merged_around_the_models_embeddings():
    s = language_setting("gpt2", 3)
    keep = s.setting.model.merged(s.setting.pretrained, embeddings=False)
    s.setting.experts = {t: {**s.setting.pretrained, **{n: e[n] for n in keep}} for t, e in s.setting.experts.items()}
    want = run(s)
    s.setting.pretrained = keep
    s.setting.experts = {t: {n: e[n] for n in keep} for t, e in s.setting.experts.items()}
    got = run(s)
    assert torch.equal(got.losses, want.losses)
    assert list(got.state_dict()) == list(keep)


# ---------------------------------------------------------------- tied tensors

TIED = ["shared.weight", "encoder.embed_tokens.weight", "decoder.embed_tokens.weight", "lm_head.weight"]


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


def test_experts_of_the_tied_embedding_helper_agree():
    _, encoder = double("t5")
    expert = retied(encoder, expert_of(snapshot(encoder.state_dict()), 5))
    assert torch.equal(expert["encoder.embed_tokens.weight"], expert["shared.weight"])

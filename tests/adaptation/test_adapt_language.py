"""Language models under `fbl.adapt`: features, entropy and its gradients against transformers' own forward passes."""

from __future__ import annotations

import copy

import pytest
import torch

import fusionbench_lite as fbl
from fusionbench_lite.adaptation.engine import core
from fusionbench_lite.adaptation.engine.descent import descend
from fusionbench_lite.adaptation.engine.parametrisation import Parametrisation
from fusionbench_lite.adaptation.engine.parts import Vectors
from fusionbench_lite.adaptation.engine.procedure import Context, Examples
from fusionbench_lite.weights.experts import Experts
from tests.oracles import adaptive
from tests.support.helpers import distance, refused, same_bits, snapshot
from tests.support.language_models import (
    direct_logits,
    encoder_of,
    full_model,
    language_setting,
    names_of,
    one_of_each,
    reference,
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
    assert lengths[-2:] == [(5, 4), (4, 6)]  # after the trials on two examples


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

"""Every kind of adaptive method on a tiny CLIP in both layouts, as on vision models of the published tables."""

from __future__ import annotations

import logging

import pytest
import torch

import fusionbench_lite as fbl
from fusionbench_lite.models import clip
from fusionbench_lite.models.heads import ZeroShotHead, random_embeddings
from fusionbench_lite.statistics import diagonal_fisher, gram_matrices
from tests.support.clip_models import TINY, fill, images, packed_weights, weights_in
from tests.support.helpers import distance, expert_of, snapshot

LAYOUTS = ["packed", "separate"]
TASKS = ("a", "b")
PRETRAINED = packed_weights()
EXPERTS = {task: expert_of(PRETRAINED, 50 + number, 0.1) for number, task in enumerate(TASKS)}
HEADS = {task: ZeroShotHead(random_embeddings(5, TINY.output, number), 10.0) for number, task in enumerate(TASKS)}

METHODS = {
    "adamerging_layerwise": {}, "adamerging_taskwise": {}, "adamerging_pp_layerwise": {}, "adamerging_tsvm": {},
    "adamerging_iso_cts": {}, "adarank_ta": {}, "adarank_cart": {}, "adarank_tsvm": {}, "adarank_iso_cts": {},
    "doge_am": {"delta_steps": 3}, "awd_am": {"awd_steps": 3}, "concrete_ta": {}, "concrete_am": {}, "pareto_merging": {},
    "surgery": {}, "prob_surgery": {}, "surgery_v2": {}, "metamerging": {"adapter_steps": 1}, "wemoe": {}, "twin_merging": {},
    "twin_merging/entropy": {"router": "entropy"},
}
PROJECTION = "visual_projection.weight"


def given(layout, *, frozen_projection=False):
    """Weights of a layout: where the projection is frozen it is the model's, and neither pretrained nor merged."""
    weights = [weights_in(layout, state) for state in (PRETRAINED, *EXPERTS.values())]
    model = clip.build(TINY, layout)
    model.load_state_dict(weights[0])
    if frozen_projection:
        for state in weights:
            del state[PROJECTION]
    return model, weights[0], dict(zip(TASKS, weights[1:], strict=True))


def batches(steps=2):
    return {task: [images(3, 100 * number + step) for step in range(2 * steps)] for number, task in enumerate(TASKS)}


def adapted(method, layout, *, frozen_projection=False):
    name = method.partition("/")[0]
    options = dict(METHODS[method])
    if name == "doge_am" and layout == "packed":
        options["matrices"] = "attn_mlp"  # its own policy selects by transformers' names
    model, pretrained, experts = given(layout, frozen_projection=frozen_projection)
    result = fbl.adapt(name, model, pretrained, experts, HEADS, batches(), 2, **options)
    return model, pretrained, result


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("method", METHODS)
def test_two_steps(method, layout, caplog):
    with caplog.at_level(logging.WARNING, logger="fusionbench_lite"):
        model, pretrained, result = adapted(method, layout)
        features = {task: result.encode(images(), task) for task in TASKS}
    assert not caplog.records, caplog.text  # nothing fell back to a slower way
    assert bool(torch.isfinite(result.losses).all())
    assert result.losses.shape == (2,)
    for task in TASKS:
        assert features[task].shape == (4, TINY.output)
        assert bool(torch.isfinite(features[task]).all())
        with torch.no_grad():
            assert distance(features[task], model(images())) > 1e-3  # merged, not pretrained
    assert list(result.state_dict()) == list(pretrained)
    own = weights_in(layout, PRETRAINED)
    assert all(torch.equal(tensor, own[name]) for name, tensor in model.state_dict().items())
    assert result.learned


@pytest.mark.parametrize("layout", LAYOUTS)
def test_masks_are_of_the_matrices_of_a_layout(layout):
    result = adapted("adarank_ta", layout)[-1]
    assert len(result.masks) == TINY.layers * (4 if layout == "packed" else 6)
    assert all("attn" in name or "mlp" in name for name in result.masks)
    assert len(result.coefficients) == (32 if layout == "packed" else 40)
    assert all(mask.shape == (2, TINY.width) for mask in result.masks.values())


@pytest.mark.parametrize("method", ["adamerging_taskwise", "surgery", "prob_surgery", "surgery_v2", "metamerging"])
def test_what_does_not_look_at_matrices_is_the_same_in_both_layouts(method):
    """Coefficients per task and adapters on states: packing q, k and v is only another way of storing the weights."""
    one, other = (adapted(method, layout)[-1] for layout in LAYOUTS)
    assert torch.allclose(one.losses, other.losses, rtol=1e-4)
    for task in TASKS:
        assert distance(one.encode(images(), task), other.encode(images(), task)) < 1e-3
    assert set(one.learned) == set(other.learned)


def test_layerwise_coefficients_move_alike_where_the_tensors_are_alike():
    one, other = (adapted("adamerging_layerwise", layout)[-1] for layout in LAYOUTS)
    assert torch.allclose(one.losses, other.losses, rtol=1e-2)
    names = {
        "class_embedding": "vision_model.embeddings.class_embedding", "proj": PROJECTION,
        "transformer.resblocks.1.mlp.c_fc.weight": "vision_model.encoder.layers.1.mlp.fc1.weight",
        "transformer.resblocks.0.attn.out_proj.bias": "vision_model.encoder.layers.0.self_attn.out_proj.bias",
    }
    for packed, separate in names.items():
        assert float((one.coefficients[packed] - 0.3).abs().max()) > 1e-4
        assert torch.allclose(one.coefficients[packed], other.coefficients[separate], atol=1e-4)


FROZEN = [
    "adamerging_layerwise", "adarank_cart", "doge_am", "concrete_am", "pareto_merging", "surgery", "surgery_v2", "metamerging",
    "wemoe", "twin_merging", "twin_merging/entropy",
]


@pytest.mark.parametrize("method", FROZEN)
def test_a_frozen_projection_is_the_models(method):
    """FusionBench's experts are the tower alone; the projection stays what the model has."""
    model, pretrained, result = adapted(method, "separate", frozen_projection=True)
    assert len(pretrained) == 39
    assert PROJECTION not in {*pretrained, *result.state_dict(), *result.coefficients}
    features = result.encode(images(), "a")
    _, weights, experts = given("separate", frozen_projection=True)
    with torch.no_grad():
        model.visual_projection.weight.mul_(2)
    other = fbl.adapt(method.partition("/")[0], model, weights, experts, HEADS, batches(), 2, **METHODS[method])
    assert bool(torch.isfinite(features).all())
    assert distance(other.encode(images(), "a"), features) > 1e-2


@pytest.mark.parametrize("layout", LAYOUTS)
def test_statistics_weigh_the_merge(layout):
    model, pretrained, experts = given(layout)
    grams, fishers = {}, {}
    for number, task in enumerate(TASKS):
        model.load_state_dict(experts[task])
        grams[task] = gram_matrices(model, [images(4, number)])
        fishers[task] = diagonal_fisher(model, HEADS[task], [images(4, number)])
    mean = fbl.merge("weight_averaging", pretrained, experts).state_dict()
    for method, extra in (("regmean", {"gram": grams}), ("fisher_merging", {"fisher": fishers})):
        merged = fbl.merge(method, pretrained, experts, **extra).state_dict()
        assert list(merged) == list(pretrained)
        moved = {name for name in merged if distance(merged[name], mean[name]) > 1e-3}
        assert moved == set(grams["a"]) if method == "regmean" else len(moved) > len(merged) / 2


def test_models_are_left_as_they_were():
    model, pretrained, experts = given("separate")
    fill(model, 9).train()
    before, modes = snapshot(model.state_dict()), [module.training for module in model.modules()]
    fbl.adapt("wemoe", model, pretrained, experts, HEADS, batches(), 1)
    assert all(torch.equal(before[name], tensor) for name, tensor in model.state_dict().items())
    assert [module.training for module in model.modules()] == modes

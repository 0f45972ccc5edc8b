"""What the engine and the statistics ask of a CLIP encoder, and the pixels it is given."""

from __future__ import annotations

import copy
import dataclasses
import math
import pickle

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from fusionbench_lite.adaptation.engine.core import call
from fusionbench_lite.errors import InputError
from fusionbench_lite.models import clip
from fusionbench_lite.models.blocks import blocks, perceptrons
from fusionbench_lite.models.heads import ZeroShotHead, random_embeddings
from fusionbench_lite.statistics import diagonal_fisher, gram_matrices
from tests.models.test_clip_models import LAYOUTS, PACKED
from tests.support.clip_models import TINY, images, loaded, separated, weights_in
from tests.support.helpers import distance, rng, snapshot

# ---------------------------------------------------------------- what the engine asks of an encoder


@pytest.mark.parametrize("layout", LAYOUTS)
def test_replaced_weights_are_used_and_the_models_own_stay(layout):
    model, other = clip.build(TINY, layout), weights_in(layout, PACKED)
    before = snapshot(model.state_dict())
    found = call(model, other, images())
    assert distance(found.detach(), loaded(layout, PACKED)(images()).detach()) < 1e-6
    assert all(torch.equal(before[name], tensor) for name, tensor in model.state_dict().items())


@pytest.mark.parametrize("layout", LAYOUTS)
def test_gradients_reach_every_tensor_and_are_right(layout):
    model = loaded(layout, PACKED).double()
    x, weights = images().double(), {name: tensor.double() for name, tensor in weights_in(layout, PACKED).items()}
    leaves = {name: tensor.clone().requires_grad_() for name, tensor in weights.items()}
    call(model, leaves, x).square().sum().backward()
    for name, leaf in leaves.items():
        direction = torch.randn(leaf.shape, generator=rng(4), dtype=torch.float64)
        if "k_proj.bias" in name:
            assert float(leaf.grad.abs().max()) < 1e-10  # softmax does not see a shift of all keys
            continue
        ends = []
        for step in (1e-5, -1e-5):
            with torch.no_grad():
                ends.append(float(call(model, {**weights, name: weights[name] + step * direction}, x).square().sum()))
        slope = (ends[0] - ends[1]) / 2e-5
        assert math.isclose(float((leaf.grad * direction).sum()), slope, rel_tol=1e-4, abs_tol=1e-6), name


@pytest.mark.parametrize("layout", LAYOUTS)
def test_second_derivatives_where_attention_is_not_fused(layout):
    model = loaded(layout, PACKED)
    leaves = {name: tensor.clone().requires_grad_() for name, tensor in weights_in(layout, PACKED).items()}
    with sdpa_kernel(SDPBackend.MATH):
        loss = call(model, leaves, images()).square().sum()
        gradients = torch.autograd.grad(loss, list(leaves.values()), create_graph=True)
        second = torch.autograd.grad(sum(g.square().sum() for g in gradients), list(leaves.values()))
    assert all(bool(torch.isfinite(g).all()) for g in second)
    assert sum(bool(g.any()) for g in second) >= len(second) - TINY.layers  # the bias of the keys has none


@pytest.mark.parametrize("layout", LAYOUTS)
def test_one_example_at_a_time_under_vmap(layout):
    model, x = loaded(layout, PACKED), images()
    with sdpa_kernel(SDPBackend.MATH):
        found = torch.vmap(lambda one: model(one[None])[0])(x)
    assert distance(found.detach(), model(x).detach()) < 1e-5


@pytest.mark.parametrize("layout", LAYOUTS)
def test_blocks_and_perceptrons_are_found(layout):
    model = clip.build(dataclasses.replace(TINY, layers=3), layout)
    found = blocks(model)
    assert found == list(model.transformer.resblocks if layout == "packed" else model.vision_model.encoder.layers)
    assert len(found) == len(perceptrons(model)) == 3


@pytest.mark.parametrize("layout", LAYOUTS)
def test_fused_attention_is_the_default(layout, monkeypatch):
    seen = []
    fused = nn.functional.scaled_dot_product_attention
    monkeypatch.setattr(nn.functional, "scaled_dot_product_attention", lambda *a, **b: seen.append(1) or fused(*a, **b))
    loaded(layout, PACKED)(images().requires_grad_())
    assert len(seen) == TINY.layers


@pytest.mark.parametrize("layout", LAYOUTS)
def test_copies_files_types_and_autocast(layout):
    model, x = loaded(layout, PACKED), images()
    want = model(x).detach()
    for other in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        assert torch.equal(other(x).detach(), want)
        assert list(other.state_dict()) == list(model.state_dict())
    assert distance(copy.deepcopy(model).double()(x.double()).detach(), want) < 1e-5
    with torch.autocast("cpu", torch.bfloat16):
        half = model(x)
    assert half.dtype == torch.bfloat16
    assert 1e-4 < distance(half.detach(), want) < 0.05
    assert copy.deepcopy(model).bfloat16()(x.bfloat16()).dtype == torch.bfloat16


# ---------------------------------------------------------------- statistics


def test_gram_matrices_of_both_layouts():
    x = images(5).split(2)
    packed, separate = (gram_matrices(loaded(layout, PACKED), x) for layout in LAYOUTS)
    assert set(packed) == {f"transformer.resblocks.{i}.mlp.{part}.weight" for i in range(2) for part in ("c_fc", "c_proj")}
    layers = ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj", "self_attn.out_proj", "mlp.fc1", "mlp.fc2")
    assert set(separate) == {
        *(f"vision_model.encoder.layers.{i}.{layer}.weight" for i in range(2) for layer in layers), "visual_projection.weight",
    }
    for number in range(2):
        for mine, theirs in (("c_fc", "fc1"), ("c_proj", "fc2")):
            one = packed[f"transformer.resblocks.{number}.mlp.{mine}.weight"]
            assert distance(one, separate[f"vision_model.encoder.layers.{number}.mlp.{theirs}.weight"]) < 1e-5
        own = [separate[f"vision_model.encoder.layers.{number}.self_attn.{part}_proj.weight"] for part in "qkv"]
        assert torch.equal(own[0], own[1])
        assert torch.equal(own[1], own[2])


@pytest.mark.parametrize("variant", ["batch", "true"])
def test_fisher_information_of_both_layouts(variant):
    x, head = images(3).split(2), ZeroShotHead(random_embeddings(5, TINY.output, 0), 100.0)
    packed, separate = (diagonal_fisher(loaded(layout, PACKED), head, x, variant=variant) for layout in LAYOUTS)
    assert set(packed) == set(clip.shapes(TINY, "packed"))
    for name, want in separated(packed).items():
        if "k_proj.bias" not in name:
            assert distance(separate[name], want) < 1e-4, name


# ---------------------------------------------------------------- pixels


def test_normalise_is_torchvisions():
    from torchvision.transforms.functional import normalize, to_tensor

    bytes_ = np.random.default_rng(0).integers(0, 256, (3, 9, 7, 3), dtype=np.uint8)
    bytes_[0, 0, 0], bytes_[0, 0, 1] = 0, 255
    want = torch.stack([
        normalize(to_tensor(one), (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)) for one in bytes_
    ])
    given = torch.from_numpy(bytes_)
    found = clip.normalise(given)
    assert found.dtype == torch.float32
    assert found.is_contiguous()
    assert torch.allclose(found, want, atol=1e-6)
    assert torch.equal(given, torch.from_numpy(bytes_))


@pytest.mark.parametrize("bad", [
    torch.zeros(2, 4, 4, 3), torch.zeros(4, 4, 3, dtype=torch.uint8), torch.zeros(2, 3, 4, 4, dtype=torch.uint8),
])
def test_normalise_refuses(bad):
    with pytest.raises(InputError, match=r"uint8 \[B, H, W, 3\]"):
        clip.normalise(bad)

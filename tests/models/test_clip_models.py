"""CLIP encoders at full size and at a tiny one, in both layouts: names, counts, values, and what the engine asks of them."""

from __future__ import annotations

import dataclasses
import math

import pytest
import torch
from torch import nn

from fusionbench_lite.errors import InputError
from fusionbench_lite.models import clip
from fusionbench_lite.models.blocks import perceptrons
from tests.support.clip_models import TINY, fill, images, loaded, packed_weights
from tests.support.helpers import distance, rng

LAYOUTS = ["packed", "separate"]
PACKED = packed_weights()


def numbers(shapes):
    return sum(math.prod(shape) for shape in shapes.values())


# ---------------------------------------------------------------- names and counts


@pytest.mark.parametrize(("name", "tensors", "split", "parameters"), [
    ("vit_b32", 152, 200, 87_849_216), ("vit_b16", 152, 200, 86_192_640), ("vit_l14", 296, 392, 303_966_208),
])
def test_counts_are_those_of_the_released_models(name, tensors, split, parameters):
    size = clip.SIZES[name]
    packed, separate = clip.shapes(size, "packed"), clip.shapes(size, "separate")
    assert (len(packed), len(separate)) == (tensors, split)
    assert numbers(packed) == numbers(separate) == parameters
    tower = {key: shape for key, shape in separate.items() if key.startswith("vision_model.")}
    assert len(tower) == split - 1
    assert numbers(tower) == parameters - size.width * size.output
    assert set(separate) - set(tower) == {"visual_projection.weight"}
    assert packed["transformer.resblocks.0.attn.in_proj_weight"] == (3 * size.width, size.width)
    assert separate["vision_model.encoder.layers.0.self_attn.q_proj.weight"] == (size.width, size.width)
    assert packed["positional_embedding"] == ((size.image // size.patch) ** 2 + 1, size.width)


@pytest.mark.parametrize(("name", "whole", "left"), [
    ("vit_b32", 151_277_313, 25_599_489), ("vit_b16", 149_620_737, 25_599_489), ("vit_l14", 427_616_513, 38_595_841),
])
def test_vision_and_text_make_the_whole_model(name, whole, left):
    text = clip.text_shapes(clip.SIZES[name])
    assert len(text) == 150
    assert numbers(clip.shapes(clip.SIZES[name], "packed")) + numbers(text) == whole
    others = {key: shape for key, shape in text.items() if not key.startswith("transformer.")}
    assert list(others) == [
        "positional_embedding", "text_projection", "logit_scale", "token_embedding.weight", "ln_final.weight", "ln_final.bias",
    ]
    assert numbers(others) == left


@pytest.mark.parametrize("name", list(clip.SIZES))
def test_names_and_shapes_are_open_clips_and_transformers(name):
    import open_clip
    import transformers

    size, model = clip.SIZES[name], {"vit_b32": "ViT-B-32", "vit_b16": "ViT-B-16", "vit_l14": "ViT-L-14"}[name]
    config = open_clip.get_model_config(f"{model}-quickgelu")
    assert config["quick_gelu"]
    vision, text = config["vision_cfg"], config["text_cfg"]
    assert size == clip.ClipSize(
        image=vision["image_size"], patch=vision["patch_size"], width=vision["width"], layers=vision["layers"],
        heads=vision["width"] // 64, output=config["embed_dim"], text_width=text["width"], text_layers=text["layers"],
        text_heads=text["heads"], context=text["context_length"], vocabulary=text["vocab_size"],
    )
    with torch.device("meta"):
        theirs = open_clip.CLIP(**config).state_dict()
    visual = {key.removeprefix("visual."): tuple(t.shape) for key, t in theirs.items() if key.startswith("visual.")}
    assert visual == clip.shapes(size, "packed")
    assert {key: tuple(t.shape) for key, t in theirs.items() if not key.startswith("visual.")} == clip.text_shapes(size)
    with torch.device("meta"):
        tower = transformers.CLIPVisionModelWithProjection(transformers.CLIPVisionConfig(
            hidden_size=size.width, intermediate_size=4 * size.width, projection_dim=size.output, num_hidden_layers=size.layers,
            num_attention_heads=size.heads, patch_size=size.patch,
        ))
    assert {key: tuple(t.shape) for key, t in tower.state_dict().items()} == clip.shapes(size, "separate")


def test_shapes_leave_the_random_numbers_alone_and_are_the_callers_own():
    state = torch.get_rng_state()
    fresh = dataclasses.replace(TINY, layers=3)
    found = clip.shapes(fresh, "separate")
    assert torch.equal(torch.get_rng_state(), state)
    assert len(found) == 8 + 16 * 3
    found.clear()
    assert clip.shapes(fresh, "separate")


@pytest.mark.parametrize("layout", LAYOUTS)
def test_weights_come_from_torchs_generator_and_are_finite(layout):
    torch.manual_seed(3)
    first = clip.build(TINY, layout).state_dict()
    again = clip.build(TINY, layout).state_dict()
    torch.manual_seed(3)
    repeated = clip.build(TINY, layout).state_dict()
    assert all(torch.equal(first[name], repeated[name]) for name in first)
    matrices = [name for name in first if first[name].ndim > 1]
    assert all(not torch.equal(first[name], again[name]) and float(first[name].std()) > 0 for name in matrices)
    assert all(bool(torch.isfinite(tensor).all()) for tensor in first.values())
    assert {name: tuple(tensor.shape) for name, tensor in first.items()} == clip.shapes(TINY, layout)


def test_unknown_layout():
    with pytest.raises(InputError, match=r"layout 'seperate'.*'separate'"):
        clip.build(TINY, "seperate")


# ---------------------------------------------------------------- values


def test_both_layouts_give_the_same_features():
    x = images()
    one, other = (loaded(layout, PACKED)(x).detach() for layout in LAYOUTS)
    assert one.shape == (4, TINY.output)
    assert distance(one, other) < 1e-5
    assert float(one.std(0).min()) > 1e-3  # the control: the images matter


@pytest.mark.parametrize("layout", LAYOUTS)
def test_exact_gelu_gives_other_features(layout):
    """What happens with open_clip's plain model names; the tolerance above would let nothing like it pass."""
    model, x = loaded(layout, PACKED), images()
    want = model(x).detach()
    for module in model.modules():
        for name, child in module.named_children():
            if "QuickGELU" in type(child).__name__:
                setattr(module, name, nn.GELU())
    assert distance(model(x).detach(), want) > 1e-4


def test_quick_gelu_everywhere():
    for layout in LAYOUTS:
        for module in perceptrons(clip.build(TINY, layout)).values():
            x = torch.linspace(-3, 3, 7)
            act = next(child for child in module.children() if not isinstance(child, nn.Linear))
            torch.testing.assert_close(act(x), x * torch.sigmoid(1.702 * x))


def test_features_by_hand():
    """One block of attention and perceptron written out in float64, from the packed weights."""
    size = dataclasses.replace(TINY, layers=1)
    weights = packed_weights(5, size)
    x = images(2, 1)
    w = {name: tensor.double() for name, tensor in weights.items()}

    def norm(states, name):
        return nn.functional.layer_norm(states, (size.width,), w[f"{name}.weight"], w[f"{name}.bias"], 1e-5)

    patches = x.double().unfold(2, 8, 8).unfold(3, 8, 8)  # [B, 3, rows, columns, 8, 8]
    tokens = torch.einsum("bcijhw,dchw->bijd", patches, w["conv1.weight"]).flatten(1, 2)
    states = torch.cat([w["class_embedding"].expand(2, 1, -1), tokens], 1) + w["positional_embedding"]
    states, block = norm(states, "ln_pre"), "transformer.resblocks.0."
    packed = norm(states, f"{block}ln_1") @ w[f"{block}attn.in_proj_weight"].T + w[f"{block}attn.in_proj_bias"]
    q, k, v = (part.unflatten(-1, (size.heads, -1)).transpose(1, 2) for part in packed.chunk(3, -1))
    mixed = torch.softmax(q @ k.mT / (size.width / size.heads) ** 0.5, -1) @ v
    states = states + mixed.transpose(1, 2).flatten(2) @ w[f"{block}attn.out_proj.weight"].T + w[f"{block}attn.out_proj.bias"]
    inner = norm(states, f"{block}ln_2") @ w[f"{block}mlp.c_fc.weight"].T + w[f"{block}mlp.c_fc.bias"]
    inner = inner * torch.sigmoid(1.702 * inner)
    states = states + inner @ w[f"{block}mlp.c_proj.weight"].T + w[f"{block}mlp.c_proj.bias"]
    want = norm(states[:, 0], "ln_post") @ w["proj"]
    for layout in LAYOUTS:
        assert distance(loaded(layout, weights, size)(x).detach(), want) < 1e-5


@pytest.mark.parametrize("layout", LAYOUTS)
def test_features_do_not_depend_on_the_batch(layout):
    model, x = loaded(layout, PACKED), images(7)
    whole = model(x).detach()
    for size in (1, 3):
        assert distance(torch.cat([model(part).detach() for part in x.split(size)]), whole) < 1e-6


def test_the_text_sides_own_tokens():
    """Text after the end of the text changes nothing; the features are those of the first highest token."""
    tower = fill(clip.build_text(dataclasses.replace(TINY, vocabulary=50)), 2).eval()
    assert math.isclose(math.exp(clip.build_text(TINY).logit_scale.item()), 100, rel_tol=1e-6)
    tokens = torch.randint(1, 40, (3, 77), generator=rng(0))
    tokens[:, 10] = 49
    features = tower(tokens)
    assert features.shape == (3, TINY.output)
    other = tokens.clone()
    other[:, 11:] = 0
    assert distance(tower(other).detach(), features.detach()) < 1e-5
    other[:, 9] = 45
    assert distance(tower(other).detach(), features.detach()) > 1e-3

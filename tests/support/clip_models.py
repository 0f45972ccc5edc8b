"""A tiny CLIP, its random weights in both layouts, and a map between the layouts that is the tests' own."""

from __future__ import annotations

import contextlib
import re
from collections.abc import Iterator

import pytest
import torch
from torch import Tensor, nn

from fusionbench_lite.errors import InputError
from fusionbench_lite.models import clip
from tests.support.helpers import State, rng

TINY = clip.ClipSize(image=16, patch=8, width=16, layers=2, heads=2, output=8, text_width=16, text_layers=2, text_heads=2)


def images(count: int = 4, seed: int = 0, size: clip.ClipSize = TINY) -> Tensor:
    return torch.randn(count, 3, size.image, size.image, generator=rng(seed))


def fill(model: nn.Module, seed: int) -> nn.Module:
    """Give every parameter random values of a size that no part of the model drowns in."""
    generator = rng(seed)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            noise = torch.randn(parameter.shape, generator=generator) * (0.3 if parameter.ndim > 1 else 0.1)
            is_norm = "ln_" in name or "norm" in name
            parameter.copy_(1 + noise if is_norm and name.endswith("weight") else noise)
    return model


def packed_weights(seed: int = 1, size: clip.ClipSize = TINY) -> State:
    return {name: tensor.clone() for name, tensor in fill(clip.build(size, "packed"), seed).state_dict().items()}


def separated(packed: State) -> State:
    """The same weights by transformers' names: tensor by tensor (docs/decisions.md, D14)."""
    found: State = {}
    top = {
        "class_embedding": "embeddings.class_embedding", "conv1.weight": "embeddings.patch_embedding.weight",
        "positional_embedding": "embeddings.position_embedding.weight", "ln_pre.weight": "pre_layrnorm.weight",
        "ln_pre.bias": "pre_layrnorm.bias", "ln_post.weight": "post_layernorm.weight", "ln_post.bias": "post_layernorm.bias",
    }
    for name, tensor in packed.items():
        if name == "proj":
            found["visual_projection.weight"] = tensor.T.clone()
        elif name in top:
            found[f"vision_model.{top[name]}"] = tensor.clone()
        else:
            found |= {f"vision_model.{key}": value for key, value in separated_block(name, tensor).items()}
    return found


def separated_block(name: str, tensor: Tensor) -> State:
    """A tensor `transformer.resblocks.i.*` as transformers' `encoder.layers.i.*`, of the vision or the text side."""
    number, rest = name.removeprefix("transformer.resblocks.").split(".", 1)
    layer = f"encoder.layers.{number}."
    if rest.startswith("attn.in_proj_"):
        kind = rest.removeprefix("attn.in_proj_")
        return {f"{layer}self_attn.{p}_proj.{kind}": part.clone() for p, part in zip("qkv", tensor.chunk(3), strict=True)}
    names = {
        "attn.out_proj": "self_attn.out_proj", "ln_1": "layer_norm1", "ln_2": "layer_norm2", "mlp.c_fc": "mlp.fc1",
        "mlp.c_proj": "mlp.fc2",
    }
    part, kind = rest.rsplit(".", 1)
    return {f"{layer}{names[part]}.{kind}": tensor.clone()}


def weights_in(layout: str, packed: State) -> State:
    return packed if layout == "packed" else separated(packed)


def loaded(layout: str, packed: State, size: clip.ClipSize = TINY) -> nn.Module:
    model = clip.build(size, layout)
    model.load_state_dict(weights_in(layout, packed))
    return model.eval()


@contextlib.contextmanager
def input_refused(*parts: str) -> Iterator[None]:
    """The block is refused in one line that every pattern of `parts` matches."""
    with pytest.raises(InputError) as caught:
        yield
    message = str(caught.value)
    assert "\n" not in message
    for part in parts:
        assert re.search(part, message), f"{part!r} is not in {message!r}"

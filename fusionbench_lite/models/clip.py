"""CLIP's vision and text transformers at full size, in open_clip's and in transformers' layout of weights.

The modules are the libraries' own. Both layouts run with QuickGELU, x σ(1.702 x), which OpenAI's weights need and which
neither a state dict nor open_clip's plain model names carry.
"""

from __future__ import annotations

import functools

import torch
from torch import Tensor, nn

import fusionbench_lite.base.torchvision_ops  # noqa: F401  (before open_clip and transformers, which import torchvision)
from fusionbench_lite.errors import InputError, did_you_mean
from fusionbench_lite.models.clip_sizes import LAYOUTS, SIZES, ClipSize

__all__ = ["LAYOUTS", "MEAN", "SIZES", "STD", "ClipSize", "build", "build_text", "normalise", "shapes", "text_shapes"]

MEAN = (0.48145466, 0.4578275, 0.40821073)
STD = (0.26862954, 0.26130258, 0.27577711)
"""Mean and standard deviation of the channels, of values in [0, 1], with which CLIP was trained."""


def build(size: ClipSize, layout: str) -> nn.Module:
    """Return the encoder, normalised images [B, 3, s, s] to projected features [B, output]; weights are random.

    "packed" is open_clip's VisionTransformer (q, k and v in one matrix), "separate" transformers' vision tower with its
    projection (a matrix each); `state_dict` has their names. Raises InputError for another layout.
    """
    makers = {"packed": _packed, "separate": _separate}
    if layout not in makers:
        raise InputError(f"unknown layout {layout!r} of a CLIP model: {did_you_mean(str(layout), makers)}")
    return makers[layout](size)


def build_text(size: ClipSize) -> nn.Module:
    """Return open_clip's text side, tokens [N, context] to projected features [N, output]; weights are random.

    `state_dict` has the names that open_clip's CLIP has without `visual.`, also `logit_scale`, which forward does not read.
    """
    from open_clip.transformer import QuickGELU, TextTransformer

    tower: nn.Module = TextTransformer(
        context_length=size.context, vocab_size=size.vocabulary, width=size.text_width, heads=size.text_heads,
        layers=size.text_layers, output_dim=size.output, act_layer=QuickGELU,
    )
    tower.register_parameter("logit_scale", nn.Parameter(torch.tensor(100.0).log()))
    return tower


@functools.cache
def _shapes(size: ClipSize, layout: str) -> dict[str, tuple[int, ...]]:
    with torch.device("meta"):
        model = build(size, layout)
    return {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}


def shapes(size: ClipSize, layout: str) -> dict[str, tuple[int, ...]]:
    """Return the names of an encoder's tensors, in order, and their shapes; no memory is taken for weights."""
    return dict(_shapes(size, layout))


@functools.cache
def _text_shapes(size: ClipSize) -> dict[str, tuple[int, ...]]:
    with torch.device("meta"):
        tower = build_text(size)
    return {name: tuple(tensor.shape) for name, tensor in tower.state_dict().items()}


def text_shapes(size: ClipSize) -> dict[str, tuple[int, ...]]:
    """Return the names of the text side's tensors, in order, and their shapes; no memory is taken for weights."""
    return dict(_text_shapes(size))


def normalise(images: Tensor) -> Tensor:
    """Return pixels uint8 [B, H, W, 3] as the model's input, float32 [B, 3, H, W], with CLIP's mean and deviation.

    Raises InputError for another type or shape.
    """
    if images.dtype != torch.uint8 or images.dim() != 4 or images.shape[-1] != 3:
        raise InputError(f"images must be uint8 [B, H, W, 3], got {images.dtype} {tuple(images.shape)}: convert them to RGB bytes")
    mean, std = (torch.tensor(values, device=images.device).view(3, 1, 1) for values in (MEAN, STD))
    pixels = images.permute(0, 3, 1, 2).to(torch.float32, memory_format=torch.contiguous_format)
    return pixels.div_(255).sub_(mean).div_(std)


class SeparateEncoder(nn.Module):
    """transformers' CLIP vision tower and its projection, called on a tensor; names are CLIPVisionModelWithProjection's."""

    def __init__(self, vision_model: nn.Module, visual_projection: nn.Module) -> None:
        super().__init__()
        self.vision_model, self.visual_projection = vision_model, visual_projection

    def forward(self, images: Tensor) -> Tensor:
        """Return projected features [B, output] of normalised images [B, 3, s, s]."""
        features: Tensor = self.visual_projection(self.vision_model(pixel_values=images).pooler_output)
        return features


def _packed(size: ClipSize) -> nn.Module:
    from open_clip.transformer import QuickGELU, VisionTransformer

    model: nn.Module = VisionTransformer(
        image_size=size.image, patch_size=size.patch, width=size.width, layers=size.layers, heads=size.heads, mlp_ratio=4.0,
        output_dim=size.output, act_layer=QuickGELU,
    )
    return model


def _separate(size: ClipSize) -> nn.Module:
    try:
        from transformers import CLIPVisionConfig, CLIPVisionModelWithProjection
    except ModuleNotFoundError as error:
        raise InputError("the separate layout needs transformers: pip install 'fusionbench_lite[hub]'") from error
    config = CLIPVisionConfig(
        hidden_size=size.width, intermediate_size=4 * size.width, projection_dim=size.output, num_hidden_layers=size.layers,
        num_attention_heads=size.heads, image_size=size.image, patch_size=size.patch, hidden_act="quick_gelu",
    )
    model = CLIPVisionModelWithProjection._from_config(config, attn_implementation="sdpa")  # type: ignore[no-untyped-call]
    return SeparateEncoder(model.vision_model, model.visual_projection)

"""vit_mini: CLIP's vision transformer, open_clip's own class, at a size that trains in minutes on a processor."""

from __future__ import annotations

import dataclasses

import fusionbench_lite.base.torchvision_ops  # noqa: F401  (before open_clip, which imports torchvision)

# isort: split

from open_clip.transformer import VisionTransformer
from torch import nn


@dataclasses.dataclass(frozen=True)
class Size:
    """The numbers of the architecture; `output` is the width of the features."""

    image: int = 32
    patch: int = 8
    width: int = 128
    layers: int = 4
    heads: int = 4
    mlp_ratio: float = 4.0
    output: int = 64


SIZE = Size()


def build(size: Size = SIZE) -> nn.Module:
    """Return the encoder, images [B, 3, 32, 32] to features [B, 64], with open_clip's names for its tensors."""
    model: nn.Module = VisionTransformer(
        image_size=size.image, patch_size=size.patch, width=size.width, layers=size.layers, heads=size.heads,
        mlp_ratio=size.mlp_ratio, output_dim=size.output,
    )
    return model

"""vit_mini and vit_mini_small: open_clip's vision transformer of CLIP, at sizes that train in minutes on a processor."""

from __future__ import annotations

import fusionbench_lite.base.torchvision_ops  # noqa: F401  (before open_clip, which imports torchvision)

# isort: split

from open_clip.transformer import VisionTransformer
from torch import nn

from fusionbench_lite.models.clip_sizes import MINI, ClipSize


def build(size: ClipSize = MINI) -> nn.Module:
    """Return the encoder, images [B, 3, 32, 32] to features [B, 64], with open_clip's names for its tensors."""
    model: nn.Module = VisionTransformer(
        image_size=size.image, patch_size=size.patch, width=size.width, layers=size.layers, heads=size.heads, mlp_ratio=4.0,
        output_dim=size.output,
    )
    return model

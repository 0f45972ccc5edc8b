"""The numbers of CLIP's architectures. Never imports torch."""

from __future__ import annotations

import dataclasses

LAYOUTS = ("packed", "separate")
"""q, k and v in one matrix as in open_clip, or in a matrix each as in transformers."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class ClipSize:
    """The numbers of an architecture: those of the vision transformer, the width of the features, those of the text side."""

    image: int
    patch: int
    width: int
    layers: int
    heads: int
    output: int
    text_width: int
    text_layers: int
    text_heads: int
    context: int = 77
    vocabulary: int = 49408


SIZES = {
    "vit_b32": ClipSize(
        image=224, patch=32, width=768, layers=12, heads=12, output=512, text_width=512, text_layers=12, text_heads=8
    ),
    "vit_b16": ClipSize(
        image=224, patch=16, width=768, layers=12, heads=12, output=512, text_width=512, text_layers=12, text_heads=8
    ),
    "vit_l14": ClipSize(
        image=224, patch=14, width=1024, layers=24, heads=16, output=768, text_width=768, text_layers=12, text_heads=12
    ),
}

MINI = ClipSize(image=32, patch=8, width=128, layers=4, heads=4, output=64, text_width=0, text_layers=0, text_heads=0)
"""The embedded suite's encoder, which has no text tower."""
EMBEDDED = {
    "vit_mini": MINI,
    "vit_mini_small": ClipSize(
        image=32, patch=8, width=96, layers=3, heads=3, output=64, text_width=0, text_layers=0, text_heads=0
    ),
}
"""Its two sizes, so that tables of two models have twins with two."""

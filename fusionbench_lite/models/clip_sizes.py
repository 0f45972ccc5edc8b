"""The numbers of CLIP's architectures. Never imports torch."""

from __future__ import annotations

import dataclasses

LAYOUTS = ("packed", "separate")
"""q, k and v in one matrix as in open_clip, or in a matrix each as in transformers."""


@dataclasses.dataclass(frozen=True)
class Size:
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
    "vit_b32": Size(224, 32, 768, 12, 12, 512, 512, 12, 8),
    "vit_b16": Size(224, 16, 768, 12, 12, 512, 512, 12, 8),
    "vit_l14": Size(224, 14, 1024, 24, 16, 768, 768, 12, 12),
}

MINI = Size(32, 8, 128, 4, 4, 64, text_width=0, text_layers=0, text_heads=0)
"""The embedded suite's encoder, which has no text tower."""

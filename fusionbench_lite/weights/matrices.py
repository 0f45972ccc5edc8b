"""Which tensors of a model the methods treat as matrices."""

from __future__ import annotations

import re
from collections.abc import Sequence

MATRIX_POLICIES = ("attn_mlp", "all_2d", "encoder_linear", "block_linear", "query_value")
"""Which tensors an SVD method factorises: AdaRank and CART, TSV and Iso, doGe, and the last two for language models."""
_NUMBERED = re.compile(r"\.\d+\.")


def is_factorised(name: str, shape: Sequence[int], policy: str) -> bool:
    """Say whether an SVD method with this `matrices` policy factorises the tensor of this name and shape.

    `attn_mlp`: 2-D, key contains attn or mlp and neither ln nor bias (AdaRank, CART). `all_2d`: 2-D and not
    text_projection (TSV-M, Iso-C). `encoder_linear`: 2-D, key contains encoder and weight but not layer_norm (doGe).
    `block_linear`: 2-D, inside a numbered module, key contains weight and not bias (AdaRank's language models, whose names
    differ from CLIP's). `query_value`: 2-D, key ends with q.weight or v.weight (doGe for Flan-T5, where LoRA acts).

    Every other tensor is treated elementwise. Source: the released code of each; docs/decisions.md, D14.
    """
    if len(shape) != 2:
        return False
    if policy == "attn_mlp":
        return ("attn" in name or "mlp" in name) and "ln" not in name and "bias" not in name
    if policy == "all_2d":
        return "text_projection" not in name
    if policy == "block_linear":
        return _NUMBERED.search(name) is not None and "weight" in name and "bias" not in name
    if policy == "query_value":
        return name.endswith(("q.weight", "v.weight"))
    return "encoder" in name and "weight" in name and "layer_norm" not in name

"""Encoders in files: what builds one again, and its whole state dict."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from torch import Tensor, nn

from fusionbench_lite.errors import InputError
from fusionbench_lite.models.clip_sizes import EMBEDDED, LAYOUTS, SIZES, ClipSize

if TYPE_CHECKING:
    from fusionbench_lite.evaluation.suite import Suite
    from fusionbench_lite.planning.plan import Plan

VIT, TEXT = "vit", "text"


def of_images(plan: Plan, suite: Suite) -> dict[str, Any]:
    """Return what builds an encoder of images."""
    sizes, clip = {**EMBEDDED, **SIZES}, plan.model in SIZES
    layout = suite.details.get("layout") or LAYOUTS[0]
    return {"kind": VIT, "size": dataclasses.asdict(sizes[plan.model]), "layout": layout, "quick_gelu": clip}


def built(said: Mapping[str, Any]) -> nn.Module:
    """Return the encoder, with weights drawn. Raises InputError for a description that this version does not read."""
    try:
        if said["kind"] == TEXT:
            return _text(said)
        size, layout = ClipSize(**said["size"]), said["layout"]
        quick = bool(said["quick_gelu"])
    except (KeyError, TypeError) as error:
        raise InputError(f"export.json describes no encoder that this version builds ({error})") from None
    if quick:
        from fusionbench_lite.models import clip

        return clip.build(size, layout)
    from fusionbench_lite.models import mini

    return mini.build(size)


def _text(said: Mapping[str, Any]) -> nn.Module:
    from fusionbench_lite.models import language

    model = language.new_model(said["config"], tied=said.get("tied"))
    return language.encoder_of(model, **dict(said.get("options") or {}))


def whole_state(suite: Suite, weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return the state dict of the encoder with these weights: with the tensors that are not merged, each under all its names."""
    state = suite.model.state_dict()
    return {name: (weights[name] if name in weights else state[name]).detach().cpu() for name in state}

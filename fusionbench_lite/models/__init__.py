"""Encoders and heads, built by name."""

from __future__ import annotations

from typing import TYPE_CHECKING

from fusionbench_lite.errors import InputError, did_you_mean
from fusionbench_lite.models.clip_sizes import EMBEDDED, SIZES

if TYPE_CHECKING:
    from torch import nn


def build(name: str, layout: str | None = None) -> nn.Module:
    """Return the encoder of this name with weights drawn from torch's generator.

    `layout` is that of a CLIP model's tensors, "packed" by default. Raises InputError for an unknown name or layout.
    """
    if name in SIZES:
        from fusionbench_lite.models import clip

        return clip.build(SIZES[name], layout or "packed")
    _check(name)
    from fusionbench_lite.models import mini

    return mini.build(EMBEDDED[name])


def feature_width(name: str) -> int:
    """Return the width d of the features that the encoder of this name gives; raises InputError for an unknown one."""
    if name in SIZES:
        return SIZES[name].output
    _check(name)
    return EMBEDDED[name].output


def _check(name: str) -> None:
    if name not in EMBEDDED:
        raise InputError(f"unknown model {name!r}: {did_you_mean(name, [*EMBEDDED, *SIZES])}")

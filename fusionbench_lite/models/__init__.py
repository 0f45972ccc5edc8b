"""Encoders and heads, built by name."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from fusionbench_lite.errors import InputError, did_you_mean

if TYPE_CHECKING:
    from torch import nn


def build(name: str) -> nn.Module:
    """Return the encoder of this name with weights drawn from torch's generator; raises InputError for an unknown one."""
    builders: dict[str, Callable[[], nn.Module]] = {"vit_mini": _vit_mini}
    if name not in builders:
        raise InputError(f"unknown model {name!r}: {did_you_mean(name, builders)}")
    return builders[name]()


def feature_width(name: str) -> int:
    """Return the width d of the features that the encoder of this name gives."""
    from fusionbench_lite.models import mini

    return {"vit_mini": mini.SIZE.output}[name]


def _vit_mini() -> nn.Module:
    from fusionbench_lite.models import mini

    return mini.build()

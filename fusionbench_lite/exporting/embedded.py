"""Layouts of the embedded suite's models: the own one, whose tensors have the names of open_clip's image tower."""

from __future__ import annotations

from typing import TYPE_CHECKING

from fusionbench_lite.exporting import encoders
from fusionbench_lite.exporting.layouts import Layout, own_layout

if TYPE_CHECKING:
    from fusionbench_lite.base.progress import Progress
    from fusionbench_lite.exporting.remaking import Remade


def layouts(made: Remade, progress: Progress) -> tuple[Layout, ...]:
    """Return the own layout: no other library has a class for an encoder without a text side."""
    return (own_layout(encoders.of_images(made.plan, made.suite)),)

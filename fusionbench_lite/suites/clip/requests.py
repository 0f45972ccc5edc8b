"""What a run on CLIP asks of checkpoints and images. Never imports torch by itself."""

from __future__ import annotations

from typing import TYPE_CHECKING

from fusionbench_lite.models.clip_sizes import SIZES
from fusionbench_lite.paths import expanded
from fusionbench_lite.suites import Wanted

if TYPE_CHECKING:
    from fusionbench_lite.checkpoints import Request
    from fusionbench_lite.data import vision


def variant_of(wanted: Wanted) -> str:
    """Return the variant of the data sets and prompts that the experts were trained with."""
    return "fusionbench" if wanted.release == "fusionbench" else "tall"


def usual_layout(wanted: Wanted) -> str:
    """Return the layout that the experts were published in."""
    return "separate" if wanted.release == "fusionbench" else "packed"


def layout_of(wanted: Wanted) -> str:
    """Return the layout of a checked request."""
    return wanted.layout or usual_layout(wanted)


def request_of(wanted: Wanted) -> Request:
    """Return what a run asks of the checkpoints."""
    from fusionbench_lite.checkpoints import Request

    return Request(
        model=wanted.model, size=SIZES[wanted.model], layout=layout_of(wanted), family=wanted.family, tasks=wanted.tasks,
        cache=wanted.cache, dir=wanted.checkpoints, manifest=wanted.manifest,
    )


def sources_of(wanted: Wanted) -> vision.Sources:
    """Return where the images of a run come from."""
    from fusionbench_lite.data.vision import Sources

    given = dict(wanted.data)
    if "tasks_file" in given:
        given["tasks_file"] = expanded(given["tasks_file"])
    return Sources(
        variant=variant_of(wanted), cache=wanted.cache, data_dir=wanted.data_dir, seed=wanted.seed, limit=wanted.limit, **given
    )

"""What a planned run takes, and where its experts stay so that it fits: `resources` applied to a `Plan`."""

from __future__ import annotations

import logging
import os
import shutil
from pathlib import Path
from typing import TYPE_CHECKING

from fusionbench_lite import registry, resources
from fusionbench_lite.base.processes import is_first
from fusionbench_lite.data import vision
from fusionbench_lite.paths import cache_dir, nearest_existing
from fusionbench_lite.resources import Inputs, Suggestion

if TYPE_CHECKING:
    import torch

    from fusionbench_lite.planning.plan import Plan

log = logging.getLogger(__name__)

USABLE = 0.9
"""Of a GPU's memory, and of the machine's, the part that a run may plan with."""
EMBEDDED_TEST = 1000
"""Test images of a drawn task."""


def inputs_of(plan: Plan, device: torch.device) -> Inputs:
    """Return what decides the memory and the work of a plan."""
    backbone, tasks = plan.backbone, plan.tasks.names
    encoder = resources.encoder(plan.model, backbone.layout, tower_alone=backbone.release == "fusionbench")
    published = backbone.is_clip and set(tasks) <= set(vision.names())
    known = [vision.task(name, backbone.variant) for name in tasks] if published else []
    sizes = [min(task.test, plan.limit or task.test) for task in known] or [plan.limit or EMBEDDED_TEST] * len(tasks)
    adapts = registry.get(plan.method).adaptive
    processes = int(os.environ.get("WORLD_SIZE", plan.trainer["devices"]))
    steps = plan.setting("steps") if adapts else 0
    return Inputs(
        encoder, plan.method, len(tasks), plan.values, plan.setting("batch_size") if adapts else 1,
        plan.setting("batches") if adapts else 1, processes, plan.trainer["chunk"], plan.precision, device.type,
        experts="disk" if backbone.is_clip else "memory", classes=tuple(task.classes for task in known) or (10,) * len(tasks),
        steps=steps, test_images=sum(sizes), evaluations=2 + steps // plan.setting("eval_every") if adapts else 1,
        eval_batch=plan.trainer["eval_batch"], held_out=plan.setting("held_out") if adapts else 0,
        threads=int(os.environ.get("OMP_NUM_THREADS", os.cpu_count() or 1)),
    )


def fitted(plan: Plan, device: torch.device, scratch: Path) -> Suggestion:
    """Return where constants stay and how many images run at once: as asked for, else so that the run fits.

    `scratch` is the folder of files that hold constants. Raises InputError in one line where nothing fits.
    """
    from fusionbench_lite.adaptation.engine import memory

    inputs, asked = inputs_of(plan, device), plan.checkpoints["place"]
    machine = int(USABLE * memory.total(memory.CPU))
    places = ("device", "cpu", "disk") if asked == "auto" else (asked,)
    return resources.suggest(
        inputs, int(USABLE * memory.total(device)), machine, shutil.disk_usage(nearest_existing(scratch)).free, places=places
    )


def decided(plan: Plan, device: torch.device) -> tuple[str, int | None]:
    """Return where constants of a run stay and how many images of an adaptation run at once, and print the plan of a CLIP
    model's adaptation.

    Embedded models fit everywhere, and merges without data read files tensor by tensor. Raises InputError where nothing fits.
    """
    if not plan.backbone.is_clip or not registry.get(plan.method).adaptive:
        return "device", plan.trainer["chunk"]
    found = fitted(plan, device, cache_dir(plan.cache_dir) / "scratch")
    if is_first():
        log.info("%s", "\n".join(resources.lines(found.estimate)))
    return found.place, found.chunk


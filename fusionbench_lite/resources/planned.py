"""What a planned run takes, and where its experts stay so that it fits: `resources` applied to a `Plan`."""

from __future__ import annotations

import logging
import os
import shutil
from typing import TYPE_CHECKING

from fusionbench_lite import registry, resources
from fusionbench_lite.base.processes import is_first
from fusionbench_lite.paths import nearest_existing
from fusionbench_lite.resources import Inputs, Suggestion

if TYPE_CHECKING:
    import torch

    from fusionbench_lite.planning.plan import Plan
    from fusionbench_lite.suites import Extent
    from fusionbench_lite.weights.architecture import Architecture

log = logging.getLogger(__name__)

USABLE = 0.9
"""Of a GPU's memory, and of the machine's, the part that a run may plan with."""


def inputs_of(plan: Plan, encoder: Architecture, extent: Extent, device: torch.device) -> Inputs:
    """Return what decides the memory and the work of a plan on a suite of this encoder and extent."""
    return inputs_on(plan, encoder, extent, device.type)


def inputs_on(plan: Plan, encoder: Architecture, extent: Extent, device: str) -> Inputs:
    """Return the same for a device of this type, cpu or cuda."""
    wanted, adapts = plan.wanted, registry.get(plan.method).adaptive
    steps = plan.setting("steps") if adapts else 0
    return Inputs(
        encoder=encoder, method=plan.method,
        tasks=len(plan.seen), values=plan.values, batch_size=plan.setting("batch_size") if adapts else 1,
        batches=plan.setting("batches") if adapts else 1, processes=int(os.environ.get("WORLD_SIZE", plan.trainer["devices"])),
        chunk=plan.trainer["chunk"], precision=wanted.precision, device=device, experts=extent.experts,
        classes=extent.classes, steps=steps, test_images=sum(extent.test_examples),
        evaluations=2 + steps // plan.setting("eval_every") if adapts else 1, eval_batch=wanted.eval_batch,
        held_out=plan.setting("held_out") if adapts else 0, threads=int(os.environ.get("OMP_NUM_THREADS", os.cpu_count() or 1)),
    )


def fitted(plan: Plan, device: torch.device) -> Suggestion | None:
    """Return where constants stay and how many examples run at once: as asked for, else so that the run fits; None where the
    suite says nothing of its extent.

    Raises InputError in one line where nothing fits.
    """
    from fusionbench_lite.adaptation.engine import memory

    extent, encoder, asked = plan.kind.extent(plan.wanted), plan.kind.architecture(plan.wanted), plan.place
    if extent is None or encoder is None:
        return None
    inputs, scratch = inputs_of(plan, encoder, extent, device), plan.wanted.cache / "scratch"
    machine = int(USABLE * memory.total(memory.CPU))
    places = ("device", "cpu", "disk") if asked == "auto" else (asked,)
    return resources.suggest(
        inputs, int(USABLE * memory.total(device)), machine, shutil.disk_usage(nearest_existing(scratch)).free, places=places
    )


def decided(plan: Plan, device: torch.device) -> tuple[str, int | None]:
    """Return where constants of a run stay and how many examples of an adaptation run at once, and print the plan.

    What is small fits everywhere, and merges without data read files tensor by tensor. Raises InputError where nothing fits.
    """
    extent = plan.kind.extent(plan.wanted)
    is_planned = extent is not None and not extent.small and registry.get(plan.method).adaptive
    suggestion = fitted(plan, device) if is_planned else None
    if suggestion is None:
        return "device", plan.trainer["chunk"]
    if is_first():
        log.info("%s", "\n".join(resources.lines(suggestion.estimate)))
    return suggestion.place, suggestion.chunk

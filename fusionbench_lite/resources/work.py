"""What many runs take together: distinct runs, files that are not here, operations, bytes, hours on this device."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping, Sequence

from fusionbench_lite.base.needs import Need, size_text
from fusionbench_lite.errors import InputError
from fusionbench_lite.planning.plan import Plan
from fusionbench_lite.resources.rates import DAY, Rates

HOUR = 3600.0


@dataclasses.dataclass(frozen=True, kw_only=True)
class Work:
    """Operations of some runs, images that have to be decoded for them, what they need that is not here, and how many of them
    nothing is known of."""

    operations: int
    images: int
    missing: tuple[Need, ...]
    unknown: int

    def seconds(self, rates: Rates) -> float:
        """Return the seconds of computing at the measured rate and of decoding, one after the other."""
        return self.operations / rates.flops + self.images / rates.decoding


def operations(plan: Plan, device: str) -> int | None:
    """Return the operations of a run on a device of this type, evaluations included; None where nothing is planned of its suite.

    A method's base that adapts is a run of its own, and counted where it is one.
    """
    from fusionbench_lite import resources
    from fusionbench_lite.resources import planned

    encoder, extent = plan.kind.architecture(plan.wanted), plan.kind.extent(plan.wanted)
    if encoder is None or extent is None:
        return None
    flops = resources.estimate(planned.inputs_on(plan, encoder, extent, device)).flops
    return flops.total if flops.total else flops.evaluation


def work(plans: Sequence[Plan], device: str) -> Work:
    """Return what runs take together: what several of them need counts once."""
    done = [operations(plan, device) for plan in plans]
    needs: dict[tuple[str, str, str], Need] = {}
    images: dict[tuple[object, ...], int] = {}
    for plan in plans:
        wanted = plan.wanted
        try:
            found = plan.kind.needs(wanted, plan.training_examples).items
        except InputError:  # said where the run is refused
            continue
        needs |= {(item.what, item.where, item.path): item for item in found}
        absent = {item.task for item in found if item.what == "test images" and not item.present}
        if (extent := plan.kind.extent(wanted)) is not None:
            for task, count in zip(wanted.tasks, extent.test_examples, strict=True):
                images[wanted.model, task, wanted.data] = count if task in absent else 0
    missing = tuple(item for item in needs.values() if not item.present)
    return Work(
        operations=sum(count or 0 for count in done), images=sum(images.values()), missing=missing,
        unknown=sum(count is None for count in done),
    )


def lines(named: Mapping[str, Sequence[Plan]], cells: int, found: int, rates: Rates) -> Iterator[str]:
    """Yield a plan in words: of runs by name, of which `found` have a record already and are left out of them."""
    plans = [plan for some in named.values() for plan in some]
    total = work(plans, rates.device.partition(":")[0])
    downloads = [item for item in total.missing if item.downloadable and not item.made]
    by_hand = [item for item in total.missing if not item.downloadable and not item.made]
    unknown = sum(item.nbytes is None for item in downloads)
    size = size_text(sum((item.nbytes or 0) - item.arrived for item in downloads))
    yield f"cells       {cells:,}"
    yield f"runs        {len(plans) + found:,} distinct, {found:,} with a record here, {len(plans):,} to be made"
    yield f"downloads   {len(downloads):,} files or data sets, {size}{f' and {unknown} of unknown size' if unknown else ''}"
    if by_hand:
        yield f"by hand     {len(by_hand):,}: {', '.join(sorted({item.where for item in by_hand})[:3])} ..."
    yield f"operations  {total.operations / 1e15:,.3f} PFLOP{_unknown(total)}, {total.images:,} images to decode"
    yield f"device      {rates}"
    yield f"time        {duration(total.seconds(rates))} at these rates, without downloads: networks reach a part of a product's rate"


def _unknown(total: Work) -> str:
    return f" and {total.unknown} runs of which nothing is known" if total.unknown else ""


def duration(seconds: float) -> str:
    """Return seconds as people say them."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 1.5 * HOUR else f"{seconds / HOUR:,.1f} h"


def warning(plan: Plan, rates: Rates) -> str | None:
    """Return a line for a run that takes longer than a day at the measured rates, None for others."""
    count = operations(plan, rates.device.partition(":")[0])
    seconds = (count or 0) / rates.flops
    if seconds < DAY:
        return None
    return (
        f"{plan.method} on {plan.model} with tasks={plan.task_set} takes at least {duration(seconds)} on {rates.device} "
        f"({rates.name}): {(count or 0) / 1e15:,.1f} PFLOP; steps=N shortens it, and a stopped run goes on where it was"
    )

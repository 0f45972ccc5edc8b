"""What many runs take together: distinct runs, files that are not here, operations, bytes, hours on this device."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path

from fusionbench_lite.base.needs import Need, size_text
from fusionbench_lite.errors import InputError
from fusionbench_lite.planning.plan import Plan, base_of
from fusionbench_lite.registry import get
from fusionbench_lite.resources.hours import Operations, Time, asked, duration, operations, time_of
from fusionbench_lite.resources.known_rates import DAY, rates
from fusionbench_lite.resources.rates import Asked, Rates
from fusionbench_lite.resources.recorded import setting_of
from fusionbench_lite.suites import Wanted

LOWER_BOUND = "at these rates, a lower bound: CLIP took 1.2 to 1.4 times as long on a processor, embedded models 1.4 to 3"
"""What estimates were compared with: docs/plans.md."""
SURELY_SHORT = 10**15
"""Operations that no device takes a day for; nothing is measured for them."""
SQUARE = 224 * 224 * 3
"""Bytes of a decoded image."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Work:
    """Distinct `runs`, of which `bases` are those that adapters of others sit on; their operations and time; images that have to be
    decoded for them; and what they need that is not here."""

    runs: int
    bases: int
    operations: Operations
    time: Time
    images: int
    missing: tuple[Need, ...]
    trains: bool

    @property
    def downloads(self) -> list[Need]:
        """What runs fetch."""
        return [item for item in self.missing if item.downloadable and not item.made]

    @property
    def by_hand(self) -> list[Need]:
        """What somebody has to bring."""
        return [item for item in self.missing if not item.downloadable and not item.made]

    def seconds(self, known: Rates) -> float:
        """Return the seconds of computing, and of decoding, one after the other; downloads take what the network takes."""
        return self.time.total + self.images / known.decoding


def distinct(plans: Iterable[Plan], there: frozenset[str] = frozenset()) -> list[Plan]:
    """Return plans that differ in what decides their numbers and whose setting no record has."""
    return list({name: plan for plan in plans if (name := setting_of(plan)) not in there}.values())


def measured(plans: Iterable[Plan], cache: Path) -> dict[Asked, Rates]:
    """Return the rates that plans go by; see `rates`."""
    return rates(dict.fromkeys(question for plan in plans if (question := asked(plan)) is not None), cache)


def work(
    plans: Sequence[Plan], known: Mapping[Asked, Rates], there: frozenset[str] = frozenset(),
    needed: Callable[[Plan], Iterable[Need]] | None = None,
) -> Work:
    """Return what runs take together: a run, and a file, that several ask for counts once, and a run with a record not at all.

    `needed` says what a run needs, where that is known already.
    """
    own = distinct(plans, there)
    every = distinct([*own, *(base for plan in own if (base := base_of(plan)) is not None and get(base.method).adaptive)], there)
    needs: dict[tuple[str, str | None, str, str], Need] = {}
    images: dict[tuple[object, ...], int] = {}
    for plan in {(_files(plan), plan.training_examples): plan for plan in every}.values():
        for item in (needed or _needs)(plan):
            needs[item.what, item.task, item.where, item.path] = item
            if item.made and not item.present and item.what.startswith("decoded") and item.task is not None:
                place = (item.what, item.task, plan.wanted.data)
                images[place] = max(images.get(place, 0), (item.nbytes or 0) // SQUARE)
    total, seconds = time_of(every, known)
    return Work(
        runs=len(every), bases=len(every) - len(own), operations=total, time=seconds, images=sum(images.values()),
        missing=tuple(item for item in needs.values() if not item.present),
        trains=any(plan.wanted.family == "embedded" for plan in every),
    )


def _files(plan: Plan) -> Wanted:
    """Return the suite without what decides no file, so that the files of many runs are looked for once."""
    return dataclasses.replace(
        plan.wanted, seed=0, precision="fp32", device="auto", eval_batch=None, options=(), tensors="auto"
    )


def _needs(plan: Plan) -> tuple[Need, ...]:
    try:
        return plan.kind.needs(plan.wanted, plan.training_examples).items
    except InputError:  # said where the run is refused
        return ()


def lines(total: Work, known: Mapping[Asked, Rates]) -> Iterator[str]:
    """Yield what runs take in words."""
    yield f"files       {_kinds(total.downloads) or 'all are here'}"
    if made := [item for item in total.missing if item.made]:
        yield f"made here   {_kinds(made)}"
    if total.by_hand:
        yield f"by hand     {_kinds(total.by_hand)}: python -m fusionbench_lite.doctor says what and where"
    yield from time_lines(total, known)


def time_lines(total: Work, known: Mapping[Asked, Rates]) -> Iterator[str]:
    """Yield how long runs take, and what that is made from."""
    first, time, counts = next(iter(known.values())), total.time, total.operations
    parts = {
        "passes": time.products, "decompositions": time.decompositions, "sums": time.elements,
        "decoding": total.images / first.decoding,
    }
    said = ", ".join(f"{what} {duration(seconds)}" for what, seconds in parts.items() if seconds >= 1)
    unknown = f", and {time.unknown} runs of which nothing is known" if time.unknown else ""
    yield f"time        {duration(total.seconds(first))}{f' ({said})' if said else ''}{unknown}"
    yield f"            {LOWER_BOUND}; downloads take what the network takes"
    if total.trains:
        yield "            embedded experts are trained on first use, which is not counted"
    work = {
        f"{number(counts.products)} of products": counts.products,
        f"{number(counts.decompositions)} of decompositions": counts.decompositions,
        f"{counts.elements / 1e9:,.2f} G numbers summed": counts.elements, f"{total.images:,} images to decode": total.images,
    }
    yield f"operations  {', '.join(text for text, count in work.items() if count) or 'none'}"
    yield f"device      {first.device}, {first.name}, measured {first.measured}: {first.others}"
    for rate in known.values():
        yield f"            {rate.product}"


def number(count: float) -> str:
    """Return a number of operations as people say it."""
    for size, unit in ((1e15, "PFLOP"), (1e12, "TFLOP")):
        if count >= size:
            return f"{count / size:,.1f} {unit}"
    return f"{count / 1e9:,.1f} GFLOP"


def _kinds(items: Sequence[Need]) -> str:
    """Return how many files there are of which kind, with their bytes."""
    kinds: dict[str, list[Need]] = {}
    for item in items:
        kinds.setdefault(item.what, []).append(item)
    return ", ".join(f"{len(some)} {what} {sizes(some)}" for what, some in kinds.items())


def sizes(items: Sequence[Need]) -> str:
    """Return the bytes of what is missing, and how many sizes are not known."""
    unknown = sum(item.nbytes is None for item in items)
    known = size_text(sum((item.nbytes or 0) - item.arrived for item in items)) if unknown < len(items) else ""
    return "(" + " and ".join(filter(None, (known, f"{unknown} of unknown size" if unknown else ""))) + ")"


def warning(plans: Sequence[Plan], cache: Path, name: str) -> str | None:
    """Return a line for runs that take longer than a day on their device, None for others and where it cannot be measured."""
    counted = (operations(plan, "cpu") for plan in plans)
    if sum(count.total for count in counted if count is not None) < SURELY_SHORT:
        return None
    try:
        known = measured(plans, cache)
    except InputError:
        return None
    total, time = time_of(plans, known)
    if time.total < DAY:
        return None
    rate = next(iter(known.values()))
    return (
        f"{name} takes {duration(time.total)} or more on {rate.device} ({rate.name}), {number(total.products)}, unless its "
        "records are here: plan=true says why, and what is stopped goes on where it was"
    )

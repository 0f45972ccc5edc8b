"""How long runs take on this device: their operations by kind, at the measured rate of each kind."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping

from fusionbench_lite import registry, resources
from fusionbench_lite.planning.plan import Plan
from fusionbench_lite.planning.settings import reads_statistics
from fusionbench_lite.resources import planned
from fusionbench_lite.resources.plan import Inputs
from fusionbench_lite.resources.rates import Asked, Rates
from fusionbench_lite.weights.costs import decomposition_flops

HOUR = 3600.0
TOGETHER = 16
"""Images whose states a measured product multiplies: a usual batch of one task."""
MOST_ROWS = {"cpu": 2048, "cuda": 1 << 15}
"""Rows of a measured product: more take longer and are no faster."""
PASSES = 6
"""Sums of all task vectors in a step of a merge that optimises by itself: its loss, and the gradient's way back."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Operations:
    """Operations of `products` in passes of networks and merges, of `decompositions` of matrices, and of `elements` summed."""

    products: int = 0
    decompositions: int = 0
    elements: int = 0

    def __add__(self, other: Operations) -> Operations:
        """Return those of both."""
        mine = dataclasses.asdict(self)
        return Operations(**{name: count + mine[name] for name, count in dataclasses.asdict(other).items()})

    @property
    def total(self) -> int:
        """All of them."""
        return self.products + self.decompositions + self.elements


def operations(plan: Plan, device: str) -> Operations | None:
    """Return the operations of a run on a device of this type, evaluations included; None where nothing is planned of its suite.

    Left out: the base of adapters, which is a run of its own; experts that are trained here; sorting; heads.
    """
    encoder, extent = plan.kind.architecture(plan.wanted), plan.kind.extent(plan.wanted)
    if encoder is None or extent is None:
        return None
    inputs = planned.inputs_on(plan, encoder, extent, device)
    flops = resources.estimate(inputs).flops
    if not inputs.entry.adaptive:
        return Operations(products=flops.evaluation) + _merge(plan, inputs)
    made = sum(tensor.setup for tensor in inputs.cost.tensors)
    return Operations(products=flops.total - made, decompositions=made)


def _merge(plan: Plan, inputs: Inputs) -> Operations:
    """Return the operations of a merge that adapts nothing: statistics, decompositions of all matrices of all experts, steps."""
    method, encoder, passes = registry.get(plan.method), inputs.encoder, inputs.transformer
    statistics = 0
    if reads_statistics(method):
        an_example = passes.forward_flops + (0 if "gram" in method.inputs else passes.backward_flops)
        statistics = inputs.tasks * plan.setting("examples") * an_example
    decomposed = encoder.matrices(plan.values.get("matrices")).values() if method.family == registry.SVD else ()
    steps = plan.values.get("steps") or 0
    return Operations(
        products=statistics, decompositions=inputs.tasks * sum(map(decomposition_flops, decomposed)),
        elements=(2 + PASSES * steps) * inputs.tasks * encoder.parameters,
    )


def asked(plan: Plan) -> Asked | None:
    """Return the product whose rate a run goes by, None where nothing is planned of its suite."""
    encoder, wanted = plan.kind.architecture(plan.wanted), plan.wanted
    if encoder is None:
        return None
    most = MOST_ROWS["cpu" if wanted.device == "cpu" else "cuda"]
    rows = min(most, TOGETHER * encoder.tokens)
    return Asked(device=wanted.device, precision=wanted.precision, rows=rows, width=encoder.width)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Time:
    """Seconds of the parts of some runs, one after another, and how many runs nothing is known of."""

    products: float = 0.0
    decompositions: float = 0.0
    elements: float = 0.0
    unknown: int = 0

    @property
    def total(self) -> float:
        """Seconds of all parts."""
        return self.products + self.decompositions + self.elements


def time_of(plans: Iterable[Plan], known: Mapping[Asked, Rates]) -> tuple[Operations, Time]:
    """Return the operations of runs and what they take at the rates of their products."""
    every, products, decompositions, elements, unknown = Operations(), 0.0, 0.0, 0.0, 0
    for plan in plans:
        question = asked(plan)
        rate = known[question] if question is not None else None
        count = operations(plan, rate.kind) if rate is not None else None
        if rate is None or count is None:
            unknown += 1
            continue
        every += count
        products += count.products / rate.flops
        decompositions += count.decompositions / rate.decompositions
        elements += count.elements / rate.elements
    return every, Time(products=products, decompositions=decompositions, elements=elements, unknown=unknown)


def duration(seconds: float) -> str:
    """Return seconds as people say them."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 1.5 * HOUR else f"{seconds / HOUR:,.1f} h"

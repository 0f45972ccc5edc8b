"""Goals of the measurements, and their tables for a terminal and for the documentation."""

from __future__ import annotations

import dataclasses
import math
import statistics
from collections.abc import Iterable, Mapping

from rich.console import Console
from rich.table import Table

from benchmarks.measure import Job, Timing

Results = Mapping[Job, Timing]
MIB = 1 << 20
COLUMNS = ("method", "variant", "step [s]", "plain [s]", "x plain", "beyond plain [s]", "peak [MiB]", "held [MiB]")
EXPLANATION = (
    "plain: forward and backward of the same examples, timed in turn with each variant. autograd: the merge inside the "
    "graph. peak: the most beyond `held` during a step; held: weights, task vectors, factors and the interpreter."
)


@dataclasses.dataclass(frozen=True)
class Goal:
    """A measured ratio and the most it may be."""

    model: str
    text: str
    value: float
    limit: float

    @property
    def verdict(self) -> str:
        """PASS or MISSED; UNDECIDED where noise made a variant faster than plain steps."""
        if not self.value > 0:
            return "UNDECIDED"
        return "PASS" if self.value <= self.limit else "MISSED"


def ratio(timing: Timing) -> float:
    """Return the median over rounds of a step's time in units of the plain step's."""
    return statistics.median(step / plain for step, plain in zip(timing.steps, timing.plain, strict=True))


def goals(results: Results) -> list[Goal]:
    """Return every goal that these results decide."""
    found = []
    for job, timing in results.items():
        if job.variant != "engine":
            continue
        label = _label(job)
        if job.method == "adamerging":
            found.append(Goal(job.model, f"{label}: time, of plain", ratio(timing), 1.3))
            continue
        yardstick = reference(results, job)
        if yardstick is not None:
            theirs = ratio(yardstick) - 1
            beyond = (ratio(timing) - 1) / theirs if theirs > 0 else math.nan
            found.append(Goal(job.model, f"{label}: time beyond plain, of autograd's", beyond, 0.5))
            found.append(Goal(job.model, f"{label}: peak memory, of autograd's", timing.peak / yardstick.peak, 0.5))
    return found


def reference(results: Results, job: Job) -> Timing | None:
    """Return the autograd version's timing: one serves all AdaRank starts, it multiplies every component in each."""
    family = job.method.split("_")[0]
    return next(
        (
            timing for other, timing in results.items()
            if (other.model, other.variant, other.method.split("_")[0]) == (job.model, "autograd", family)
        ),
        None,
    )


def steadiness(results: Results) -> str:
    """Return a sentence about how far equal steps differed."""
    spread = max(max(timing.plain) / min(timing.plain) for timing in results.values())
    busy = ": the machine was busy, and times are indications only" if spread > 1.5 else ""
    return f"Plain steps of one measurement differed by up to {spread:.1f} times{busy}."


def rows(results: Results, model: str) -> list[tuple[str, ...]]:
    """Return one row of text per job of a model, in the columns of COLUMNS."""
    table: list[tuple[str, ...]] = []
    for job, timing in results.items():
        if job.model == model:
            times = ratio(timing)
            plain = statistics.median(timing.plain)
            memory = (f"{timing.peak / MIB:.0f}", f"{timing.held / MIB:.0f}")
            spent = (seconds(statistics.median(timing.steps)), seconds(plain), f"{times:.2f}")
            variant = job.variant + (f", {job.chunk} a pass" if job.chunk else "")
            table.append((job.method, variant, *spent, seconds((times - 1) * plain), *memory))
    return table


def show(results: Results, machine: str, console: Console) -> None:
    """Print the tables of all models and the goals."""
    console.print(machine)
    for model in dict.fromkeys(job.model for job in results):
        table = Table(*COLUMNS, title=model)
        for row in rows(results, model):
            table.add_row(*row)
        console.print(table)
    table = Table("model", "goal", "measured", "at most", "", title="goals")
    for row in goals_table(goals(results)):
        table.add_row(*row)
    console.print(table)
    console.print(EXPLANATION)
    console.print(steadiness(results))


def markdown(results: Results, machine: str) -> str:
    """Return the tables of all models and the goals as Markdown."""
    lines = [machine, "", EXPLANATION, "", steadiness(results), ""]
    for model in dict.fromkeys(job.model for job in results):
        lines += [f"**{model}**", "", *markdown_table(COLUMNS, rows(results, model)), ""]
    lines += ["**Goals**", "", *markdown_table(("model", "goal", "measured", "at most", "verdict"), goals_table(goals(results)))]
    return "\n".join(lines) + "\n"


def goals_table(found: Iterable[Goal]) -> list[tuple[str, ...]]:
    """Return one row of text per goal."""
    return [(goal.model, goal.text, _figure(goal.value), _figure(goal.limit), goal.verdict) for goal in found]


def _figure(value: float) -> str:
    return f"{value:.1e}" if 0 < value < 0.001 else f"{value:.3g}" if value < 0.1 else f"{value:.2f}"


def goals_as_json(found: Iterable[Goal]) -> list[dict[str, object]]:
    """Return the goals for a JSON file."""
    return [dataclasses.asdict(goal) | {"verdict": goal.verdict} for goal in found]


def markdown_table(header: tuple[str, ...], body: Iterable[tuple[str, ...]]) -> list[str]:
    """Return the lines of a table in Markdown."""
    return [f"| {' | '.join(cells)} |" for cells in (header, ("---",) * len(header), *body)]


def _label(job: Job) -> str:
    return job.method + (f", {job.chunk} examples a pass" if job.chunk else "")


def seconds(value: float) -> str:
    """Return a time with a sensible number of digits."""
    return f"{value:.2f}" if value >= 1 else f"{value:.3f}"

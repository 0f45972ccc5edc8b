"""The orderings that a paper draws from its table, tested on the records of ours: holds, does not, or undecided."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping, Sequence

from fusionbench_lite.planning.experiments import CellSpec, Experiment, Run
from fusionbench_lite.planning.experiments.files import Claim
from fusionbench_lite.tables.compare import compare
from fusionbench_lite.tables.records import Record
from fusionbench_lite.tables.rows import Row, Rows

HOLDS, FAILS, UNDECIDED, NOT_RUN = "holds", "does not hold", "undecided", "not run"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Verdict:
    """A claim on our records: better minus worse in points, with its paired interval over all seeds; None where not run."""

    claim: Claim
    verdict: str
    difference: float | None = None
    low: float | None = None
    high: float | None = None
    seeds: int = 0

    def __str__(self) -> str:
        text = f"{self.claim.better} better than {self.claim.than}, {self.claim.column}: {self.verdict}"
        if self.difference is None:
            return f"{text}."
        over = "one seed" if self.seeds == 1 else f"{self.seeds} seeds"
        return f"{text}, {self.difference:+.2f} points [{self.low:+.2f}, {self.high:+.2f}] over {over}."


def verdicts(experiment: Experiment, specs: Sequence[CellSpec], there: Mapping[Run, Record]) -> tuple[Verdict, ...]:
    """Return what becomes of every claim of an experiment."""
    at = {(spec.row, spec.column): spec for spec in specs}
    return tuple(
        _verdict(claim, at[claim.better, claim.column], at[claim.than, claim.column], there) for claim in experiment.claims
    )


def sentences(experiment: Experiment, specs: Sequence[CellSpec], there: Mapping[Run, Record]) -> Iterator[str]:
    """Yield a line for every claim whose runs are there."""
    yield from (str(one) for one in verdicts(experiment, specs, there) if one.verdict != NOT_RUN)


def _verdict(claim: Claim, better: CellSpec, than: CellSpec, there: Mapping[Run, Record]) -> Verdict:
    ours = [there[run] for run in better.runs[0] if run in there]
    theirs = [there[run] for run in than.runs[0] if run in there]
    if not ours or not theirs or better.reduce is not None:
        return Verdict(claim=claim, verdict=NOT_RUN)
    rows = Rows(experiment="", title="", rows=(
        Row("better", "", tuple(record.key for record in ours)), Row("than", "", tuple(record.key for record in theirs))
    ))
    found = compare(rows, [*ours, *theirs], "better", "than", better.select)
    difference, low, high = found.points
    verdict = HOLDS if low > 0 else FAILS if high < 0 else UNDECIDED
    return Verdict(claim=claim, verdict=verdict, difference=difference, low=low, high=high, seeds=found.seeds)

"""What the checks of the audit find, table by table."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable, Iterator

from fusionbench_lite.tables import published
from fusionbench_lite.tables.audit import averages, elsewhere, examples, rows
from fusionbench_lite.tables.audit.found import Finding
from fusionbench_lite.tables.published import Flag, Number

Check = Callable[[tuple[Number, ...]], Iterable[Finding]]

CHECKS: dict[str, Check] = {
    "averages": averages.of_rows,
    "averages in detail tables": averages.of_details,
    "gains": averages.of_gains,
    "elsewhere": elsewhere.disagreements,
    "copies": rows.copies,
    "permutations": rows.permutations,
    "above the experts": rows.above_experts,
    "fractions": examples.fractions,
    "sizes": examples.sizes,
}


def audit(name: str | None = None) -> tuple[Finding, ...]:
    """Return what does not add up, in the order of the tables; with `name`, of that table alone.

    Raises InputError for an unknown table.
    """
    if name is not None:
        published.numbers(*name.partition("/")[::2])
    tables = [table.name for table in published.tables()]
    every = tuple(number for table in published.tables() for number in published.numbers(table.paper, table.table))
    found = [dataclasses.replace(one, check=check) for check, run in CHECKS.items() for one in run(every)]
    kept = [one for one in found if name in (None, one.number.where)]
    places = {number: place for place, number in enumerate(every)}
    return tuple(sorted(kept, key=lambda one: (tables.index(one.number.where), places[one.number])))


def covered(finding: Finding) -> tuple[Flag, ...]:
    """Return the flags of results/published on the number of a finding."""
    return published.flags_of(finding.number)


def by_table(findings: Iterable[Finding]) -> Iterator[tuple[str, list[Finding]]]:
    """Yield every table that has findings, with them."""
    grouped: dict[str, list[Finding]] = {}
    for one in findings:
        grouped.setdefault(one.number.where, []).append(one)
    yield from grouped.items()


__all__ = ["CHECKS", "Finding", "audit", "by_table", "covered"]

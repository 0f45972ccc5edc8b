"""The page of the audit, from the published numbers alone."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator

import pages

from fusionbench_lite.tables import published
from fusionbench_lite.tables.audit import audit, report


def page() -> str:
    """Return the page."""
    return re.sub(r"\n{3,}", "\n\n", "\n".join(_lines()))


def _lines() -> Iterator[str]:
    flags = published.flags()
    count = sum(table.numbers for table in published.tables())
    flagged = sum(bool(published.flags_of(n)) for t in published.tables() for n in published.numbers(t.paper, t.table))
    found = [flag for flag in flags if flag.origin == "found"]
    yield "# What does not add up in the published tables"
    yield ""
    yield from pages.wrapped(
        f"`python -m fusionbench_lite.tables audit` recomputes every average and cross-check of the {count:,} numbers in "
        "`results/published` and lists what does not add up. No value is corrected: a table shows the printed one with the flag, "
        f"and the likely one beside it. {flagged} numbers carry one of {len(flags)} flags, {len(flags) - len(found)} that came "
        f"with the numbers and {len(found)} that these checks found. This page is written by the same program."
    )
    yield ""
    yield "## The checks"
    yield ""
    totals = Counter(finding.check for finding in audit())
    origin = Counter(flag.found_by for flag in found)
    rows: list[list[object]] = [["Check", "What it compares", "Numbers", "Flags it added"]]
    rows += [[check, what, totals.get(check, ""), origin.get(check, "")] for check, what in report.METHODS.items()]
    yield from pages.table(iter(rows))
    yield ""
    yield from pages.wrapped(
        "What they cannot see: an error that keeps an average, a number that only one place prints, an impossible accuracy on a "
        "test set of thousands (with one decimal, below about 1,000 examples one example moves the print; of the vision tasks none "
        "is that small, of GLUE RTE and MRPC are, and SST-2 where four digits are printed)."
    )
    yield ""
    yield "## Table by table"
    yield ""
    yield report.to_markdown(None)

"""One finding of the audit."""

from __future__ import annotations

import dataclasses

from fusionbench_lite.tables.published import Number


@dataclasses.dataclass(frozen=True, kw_only=True)
class Finding:
    """A number that does not add up: the value that is likely right where one is, the reason, and the check that found it."""

    number: Number
    reason: str
    likely: float | None = None
    check: str = ""


def row_of(number: Number) -> tuple[str, ...]:
    """What the numbers of one row of a table have in common."""
    return (number.paper, number.table, number.setting, number.model, number.num_tasks, number.method, number.variant)


def grouped(numbers: tuple[Number, ...]) -> dict[tuple[str, ...], list[Number]]:
    """Return the rows of all tables."""
    rows: dict[tuple[str, ...], list[Number]] = {}
    for number in numbers:
        rows.setdefault(row_of(number), []).append(number)
    return rows


def is_task(number: Number) -> bool:
    """Whether it is the score of one task."""
    return number.metric in ("accuracy", "spearman", "matthews", "normalized_score") and not number.column.startswith("average")


def label(number: Number) -> str:
    """A row and column for sentences."""
    variant = f" ({number.variant})" if number.variant else ""
    return f"{number.method_as_printed}{variant}, {number.column}"

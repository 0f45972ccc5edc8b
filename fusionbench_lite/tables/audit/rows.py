"""What rows show beside each other: copied cells, permuted rows, merged models above their experts."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping

from fusionbench_lite.tables import published
from fusionbench_lite.tables.audit.found import Finding, grouped, is_task
from fusionbench_lite.tables.published import Number

RUN = 4
"""Adjacent cells that two rows share by more than chance."""
MARGIN = 0.15
"""Points by which a merged model may stand above the expert before it is strange: twice the rounding and a little."""


def copies(numbers: tuple[Number, ...]) -> Iterator[Finding]:
    """Yield cells of a row that repeat a run of another row of the same table, at the same or at other columns.

    Two methods may share a number by chance, four in a row hardly.
    """
    tables: dict[tuple[str, ...], list[list[Number]]] = {}
    for row in grouped(numbers).values():
        tasks = [number for number in row if is_task(number)]
        if len(tasks) >= RUN:
            tables.setdefault((tasks[0].paper, tasks[0].table, tasks[0].setting), []).append(tasks)
    for rows in tables.values():
        for one, other in itertools.permutations(rows, 2):
            yield from _repeated(one, other)


def _repeated(row: list[Number], other: list[Number]) -> Iterator[Finding]:
    """Yield the cells of `row` in the longest run that `other`, the earlier row, has too."""
    best: tuple[int, int, int] = (0, 0, 0)
    values, theirs = [n.value for n in row], [n.value for n in other]
    for start, begin in itertools.product(range(len(values)), range(len(theirs))):
        length = 0
        while start + length < len(values) and begin + length < len(theirs) and values[start + length] == theirs[begin + length]:
            length += 1
        best = max(best, (length, -start, -begin))
    length, start, begin = best[0], -best[1], -best[2]
    if length < RUN or len(set(values[start : start + length])) < RUN or start < begin:
        return  # of a run at two places the earlier one is where it belongs
    if start == begin and any(_is_copy(number) for number in other[begin : begin + length]):
        return  # of two rows that share cells of the same columns the flagged one is the copy
    for offset in range(length):
        source = other[begin + offset]
        reason = f"one of {length} adjacent cells that repeat {_row(source)}, {source.column}"
        yield Finding(number=row[start + offset], reason=reason)


def _is_copy(number: Number) -> bool:
    return any(flag.kind == "duplicate_row" for flag in published.flags_of(number))


def permutations(numbers: tuple[Number, ...]) -> Iterator[Finding]:
    """Yield the cells of rows whose numbers fit the columns of their table in alphabetical order, and not in the printed one.

    A row fits an order as well as its numbers follow the other rows' means there, by the sum of squared differences.
    """
    for rows in _tables(numbers).values():
        for name, row in rows.items():
            others = [one for other, one in rows.items() if other != name]
            usual = {column: _mean([one[column].value for one in others]) for column in row}
            if len(others) < 3:
                continue
            columns = list(row)
            printed = sum((row[column].value - usual[column]) ** 2 for column in columns)
            moved = dict(zip(sorted(columns, key=_printed), (row[column] for column in columns), strict=True))
            sorted_ = sum((moved[column].value - usual[column]) ** 2 for column in columns)
            if sorted_ < printed / 10 and printed > 400:
                for column in columns:
                    if moved[column].value != row[column].value:
                        yield Finding(
                            number=row[column], likely=moved[column].value,
                            reason="the row fits the columns in alphabetical order, not in the printed one",
                        )


def _tables(numbers: tuple[Number, ...]) -> Mapping[tuple[str, ...], Mapping[str, Mapping[str, Number]]]:
    tables: dict[tuple[str, ...], dict[str, dict[str, Number]]] = {}
    for key, row in grouped(numbers).items():
        tasks = {number.column: number for number in row if is_task(number)}
        if len(tasks) >= RUN:
            tables.setdefault(key[:4], {})[" ".join(key[5:])] = tasks
    return {
        key: {name: row for name, row in rows.items() if set(row) == set(next(iter(rows.values())))} for key, rows in tables.items()
    }


def _printed(column: str) -> str:
    return {"stanford_cars": "cars"}.get(column, column)


def _mean(values: list[float]) -> float:
    return sum(values) / len(values)


def above_experts(numbers: tuple[Number, ...]) -> Iterator[Finding]:
    """Yield averages of merged models above those of the experts in the same table."""
    experts = {
        (n.paper, n.table, n.model, n.num_tasks, n.unit): n for n in numbers if n.method == "individual" and n.column == "average"
    }
    for number in numbers:
        expert = experts.get((number.paper, number.table, number.model, number.num_tasks, number.unit))
        if number.column == "average" and expert is not None and number.value > expert.value + MARGIN:
            yield Finding(number=number, reason=f"above the experts' own {expert.value:g}, of which it keeps one model")


def _row(number: Number) -> str:
    return f"{number.method_as_printed}{f' ({number.variant})' if number.variant else ''}"

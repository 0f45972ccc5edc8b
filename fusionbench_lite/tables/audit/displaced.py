"""Numbers in the wrong column or row: a row in another order of tasks, two cells exchanged, labels of rows exchanged.

A row is held against the median of the five rows of its table whose means are nearest. Where another arrangement of its numbers
fits that profile several times better, they are displaced: first two exchanged cells are tried, then the orders in which codes
and alphabets have the tasks. Rows of an ablation whose ends another table prints are recognised by those.
"""

from __future__ import annotations

import statistics
from collections.abc import Iterable, Iterator, Sequence

from fusionbench_lite.tables.audit.findings import Finding
from fusionbench_lite.tables.audit.quantities import by_quantity, points, quantity, rows
from fusionbench_lite.tables.published import Number, numbers
from fusionbench_lite.tables.published.schema import TASKS

CHECK = "displaced"
ORDERS = {
    "alphabetical order (Cars, DTD, EuroSAT, GTSRB, MNIST, RESISC45, SUN397, SVHN)": (
        "stanford_cars", "dtd", "eurosat", "gtsrb", "mnist", "resisc45", "sun397", "svhn",
    ),
    "the order of checkpoints in code (Cars, DTD, EuroSAT, GTSRB, MNIST, RESISC45, SUN397, then the others, SVHN last)": (
        "stanford_cars", "dtd", "eurosat", "gtsrb", "mnist", "resisc45", "sun397", "cifar100", "stl10", "flowers102",
        "oxford_iiit_pet", "pcam", "fer2013", "emnist", "cifar10", "food101", "fashion_mnist", "rendered_sst2", "kmnist", "svhn",
    ),
}  # fmt: skip
NEAREST, FEWEST = 5, 6
WORTH, SHARE = 50.0, 0.35
"""An arrangement counts where it takes so many points from the distance and leaves no more than this share of it."""
EXCHANGED, PART = 10.0, 0.45
"""An exchange of two cells counts where it takes so many points and this part of the distance. Nothing else comes near: the next
row that an exchange would help loses 0.40 of its distance, and is in another order of tasks."""
BASES = {"cart": ("cart", "adamerging_cart", "adarank_cart"), "ta": ("task_arithmetic", "adamerging_layerwise", "adarank_ta")}


def check(those: Iterable[Number]) -> Iterator[Finding]:
    """Yield the numbers that belong in another column or row, with what belongs in their place."""
    every = list(those)
    yield from _labels(every)
    for row, profile in _profiled(every):
        yield from _arrangement(row, profile)


def power(those: Iterable[Number]) -> tuple[int, int, int]:
    """Return how many rows are held against a profile, how many exchanges of two of their cells there could be, and how many of
    those the check would tell."""
    count = pairs = seen = 0
    for row, profile in _profiled(those):
        values = [points(number) for number in row]
        before, count = _distance(values, profile), count + 1
        for a in range(len(values)):
            for b in range(a):
                now = abs(values[a] - profile[a]) + abs(values[b] - profile[b])
                then = abs(values[b] - profile[a]) + abs(values[a] - profile[b])
                pairs += 1
                seen += then - now >= max(EXCHANGED, PART * (before - now + then))
    return count, pairs, seen


def _profiled(those: Iterable[Number]) -> Iterator[tuple[list[Number], list[float]]]:
    """Yield the rows of tables that have enough rows and columns, each with its profile."""
    tables: dict[tuple[str, ...], list[list[Number]]] = {}
    for key, row in rows(number for number in those if number.column in TASKS and number.unit in ("percent", "fraction")).items():
        tables.setdefault(key[:5], []).append(sorted(row, key=lambda number: number.column))
    for found in tables.values():
        alike = [row for row in found if [one.column for one in row] == [one.column for one in found[0]]]
        if len(alike) > NEAREST and len(alike[0]) >= FEWEST:
            for row in alike:
                yield row, _profile(row, alike)


def _profile(row: Sequence[Number], others: Sequence[Sequence[Number]]) -> list[float]:
    """Return the median of the rows that are nearest in their mean."""
    mean = statistics.fmean(map(points, row))
    others = [other for other in others if other is not row]
    near = sorted(others, key=lambda other: abs(statistics.fmean(map(points, other)) - mean))
    return [statistics.median(points(other[place]) for other in near[:NEAREST]) for place in range(len(row))]


def _distance(values: Iterable[float], profile: Iterable[float]) -> float:
    return sum(abs(value - expected) for value, expected in zip(values, profile, strict=True))


def _arrangement(row: Sequence[Number], profile: Sequence[float]) -> Iterator[Finding]:
    values = [points(number) for number in row]
    before = _distance(values, profile)
    pair, saved = _best_exchange(values, profile)
    if saved >= EXCHANGED and saved >= PART * before:
        for one, other in (pair, pair[::-1]):
            both = f"{row[pair[0]].column} and {row[pair[1]].column}"
            yield _finding(row[one], row[other], f"The numbers of {both} are exchanged: so they fit the rows beside them.")
        return
    places = {number.column: place for place, number in enumerate(row)}
    for name, order in ORDERS.items():
        if set(order) != set(places):
            continue
        belongs = dict(zip(order, _printed(row), strict=True))
        after = _distance([points(belongs[number.column]) for number in row], profile)
        if before - after >= WORTH and after <= SHARE * before:
            fit = f"so it fits the rows beside it ({before:.0f} to {after:.0f} points)"
            reason = f"The row is in {name} under the usual headings: {fit}."
            for number in row:
                yield _finding(number, belongs[number.column], reason)


def _printed(row: Sequence[Number]) -> list[Number]:
    """Return a row in the order of the paper's columns, which is that of the file."""
    order = {number.key: place for place, number in enumerate(numbers(row[0].paper, row[0].table))}
    return sorted(row, key=lambda number: order[number.key])


def _best_exchange(values: Sequence[float], profile: Sequence[float]) -> tuple[tuple[int, int], float]:
    """Return the two places whose exchange saves most distance, and how much."""
    best, most = (0, 0), 0.0
    for a in range(len(values)):
        for b in range(a):
            now = abs(values[a] - profile[a]) + abs(values[b] - profile[b])
            then = abs(values[b] - profile[a]) + abs(values[a] - profile[b])
            if now - then > most:
                best, most = (b, a), now - then
    return best, most


def _finding(number: Number, belongs: Number, reason: str, kind: str = "shifted_columns", other: str = "") -> Finding:
    return Finding(
        check=CHECK, kind=kind, severity="high", number=number, other=other or belongs.written, likely=belongs.written,
        reason=reason,
    )  # fmt: skip


def _labels(every: Sequence[Number]) -> Iterator[Finding]:
    """Yield the numbers of ablations over amounts of data whose ends are another row's in the tables without the ablation."""
    tables: dict[tuple[str, str], list[Number]] = {}
    for number in every:
        if number.setting == "data_amount":
            tables.setdefault((number.paper, number.table), []).append(number)
    for (paper, table), own in tables.items():
        elsewhere = by_quantity(one for one in every if one.paper == paper and one.table != table)
        labelled: dict[tuple[str, int | None, str], list[Number]] = {}
        for number in own:
            labelled.setdefault((number.model, number.num_tasks, _base(number)), []).append(number)
        ends = {label: _ends([elsewhere.get(quantity(one)) for one in row], row) for label, row in labelled.items()}
        holds = {label: _recognised([points(one) for one in row if _is_end(one)], label, ends) for label, row in labelled.items()}
        where = {true: label for label, true in holds.items()}
        if len(where) == len(holds):
            for label, true in holds.items():
                if label != true:
                    yield from _mislabelled(labelled[label], labelled[where[label]], true)


def _base(number: Number) -> str:
    return next(base for base, methods in BASES.items() if number.method in methods)


def _is_end(number: Number) -> bool:
    return number.variant in ("data=0%", "data=100%")


def _ends(found: Sequence[list[Number] | None], row: Sequence[Number]) -> list[float]:
    """Return what other tables print for the ends of a row, in the row's order; NaN where they print nothing."""
    return [points(there[0]) if there else float("nan") for there, one in zip(found, row, strict=True) if _is_end(one)]


def _recognised(
    values: Sequence[float], label: tuple[str, int | None, str], ends: dict[tuple[str, int | None, str], list[float]]
) -> tuple[str, int | None, str]:
    """Return the label of the same model whose ends are nearest to these values; the row's own where that is as near."""
    same = {one: sum(abs(a - b) for a, b in zip(values, those, strict=True)) for one, those in ends.items() if one[0] == label[0]}
    return min(same, key=lambda one: (same[one], one != label))


def _mislabelled(row: Sequence[Number], right: Sequence[Number], true: tuple[str, int | None, str]) -> Iterator[Finding]:
    """Yield a row's numbers; `true` is what they are, `right` the row that has what belongs in their place."""
    name = f"{true[1]} tasks {true[2].upper()}"
    for number, belongs in zip(row, right, strict=True):
        reason = f"The row's ends are those of {name} in the other tables: the label is another row's."
        yield _finding(number, belongs, reason, "mislabelled", name)

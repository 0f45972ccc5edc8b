"""The same quantity printed in several places: method, backbone, tasks, column and metric agree, the values do not."""

from __future__ import annotations

from collections.abc import Iterator

from fusionbench_lite.tables import published
from fusionbench_lite.tables.audit.found import Finding, is_task
from fusionbench_lite.tables.published import Number

_PLAIN = ("", "w/o adapters", "data=0%", "lambda=fixed; mask=fixed", "lambda=learned; mask=fixed")
"""Variants that are the method itself; MetaMerging without its adapters is not."""
_OTHERS = ("corruption", "unseen", "parameters", "dataset", "llm")
"""Settings whose numbers are of other inputs."""
_BASES = ("surgery",)
"""Methods that sit on another merge in every paper: their numbers are not of one quantity."""
_ALIASES = {"consensus_merging": "consensus_ta"}


def disagreements(numbers: tuple[Number, ...]) -> Iterator[Finding]:
    """Yield values that another place prints differently: those that fewer papers print, or all where as many print each."""
    places: dict[tuple[str, ...], list[Number]] = {}
    for number in numbers:
        if (key := _quantity(number)) is not None:
            places.setdefault(key, []).append(number)
    for same in places.values():
        yield from _minority(same)


def _quantity(number: Number) -> tuple[str, ...] | None:
    """Return what a number is of, None where no other place prints the same."""
    if number.unit not in ("percent", "fraction") or number.metric in ("accuracy_gain", "parameters") or not number.model:
        return None
    if number.method == "pretrained" and is_task(number) and not number.setting.startswith("corruption"):
        return ("pretrained", number.model, number.column, number.metric)  # whatever was merged beside it
    if any(flag.kind == "mislabelled" and flag.severity == "high" for flag in published.flags_of(number)):
        return None  # what stands under a wrong label is of something else
    without = number.method == "metamerging" and number.variant
    if without or number.method in _BASES or number.variant not in _PLAIN or number.setting.startswith(_OTHERS):
        return None
    method = _ALIASES.get(number.method, number.method)
    return (method, number.model, number.num_tasks, number.column, number.metric, number.unit)


def _minority(same: list[Number]) -> Iterator[Finding]:
    papers = {value: len({number.paper for number in same if number.value == value}) for value in {n.value for n in same}}
    if len(papers) < 2:
        return
    ranked = sorted(papers, key=lambda value: (-papers[value], value))
    majority = papers[ranked[0]] > papers[ranked[1]]
    for number in same:
        other = ranked[0] if majority or number.value != ranked[0] else ranked[1]
        if number.value == other or abs(number.value - other) <= number.half_unit:
            continue
        where = sorted({one.where for one in same if one.value == other})
        yield Finding(number=number, reason=f"{', '.join(where)} print{'s' if len(where) == 1 else ''} {other:g}")

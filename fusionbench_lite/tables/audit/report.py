"""The audit as text, CSV and Markdown: what does not add up, table by table, found by a check or read in a paper."""

from __future__ import annotations

import csv
import dataclasses
import io
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence

from fusionbench_lite.tables.audit.findings import Finding
from fusionbench_lite.tables.audit.running import by_table, findings
from fusionbench_lite.tables.published import Number, PublishedTable, flags, numbers, tables
from fusionbench_lite.tables.published.lines import SEVERITIES

READING = "reading"
"""What flags have as `how` that no check finds: the paper's own words do."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Item:
    """One line of the audit. `check` found it; `origin` says whether a given flag has it, or one that was found."""

    table: str
    row: str
    model: str
    tasks: str
    setting: str
    column: str
    metric: str
    printed: str
    likely: str
    other: str
    source: str
    severity: str
    kind: str
    check: str
    origin: str
    reason: str


def items(table: str | None = None) -> dict[str, list[Item]]:
    """Return the items of each table in the order of the papers; raises InputError for a name that no table has."""
    found = by_table(findings())
    wanted = tables() if table is None else [one for one in tables() if one.name == _known(table)]
    return {one.name: [*map(_of_finding, found.get(one.name, [])), *_read(one)] for one in wanted}


def _known(table: str) -> str:
    paper, _, name = table.partition("/")
    numbers(paper, name)
    return table


def _of_finding(one: Finding) -> Item:
    number = one.number
    return Item(
        **_place(number.key), row=_row(number), column="*" if one.row else number.column, metric=number.metric,
        printed="" if one.row else number.written, likely=one.likely or "", other=one.other, source=one.source,
        severity=one.severity, kind=one.kind, check=one.check, origin=one.origin, reason=one.reason,
    )  # fmt: skip


def _read(table: PublishedTable) -> Iterator[Item]:
    """Yield the flags of a table that only its paper's words show."""
    for flag in flags(table.paper, table.table):
        if flag.how == READING:
            yield Item(
                **_place(flag.fields), row=", ".join(part for part in (flag.method, flag.variant) if part), column=flag.column,
                metric=flag.metric, printed=flag.printed, likely="" if flag.likely is None else str(flag.likely),
                other=flag.recomputed, source=flag.other_source, severity=flag.severity, kind=flag.kind, check=READING,
                origin=flag.origin, reason=flag.note,
            )  # fmt: skip


def _place(key: Sequence[str]) -> dict[str, str]:
    paper, table, setting, model, tasks = key[:5]
    return {"table": f"{paper}/{table}", "setting": setting, "model": model, "tasks": tasks}


def _row(number: Number) -> str:
    return ", ".join(part for part in (number.method, number.variant) if part)


def to_csv(found: Mapping[str, Iterable[Item]]) -> str:
    """Return the items as comma-separated values with a head."""
    text = io.StringIO()
    writer = csv.DictWriter(text, [field.name for field in dataclasses.fields(Item)], lineterminator="\n")
    writer.writeheader()
    writer.writerows(dataclasses.asdict(item) for those in found.values() for item in those)
    return text.getvalue()


def to_text(found: Mapping[str, Sequence[Item]]) -> str:
    """Return the items for the terminal: a head per table, a line per item, and what was counted."""
    titles = {table.name: table.title for table in tables()}
    lines = []
    for name, those in found.items():
        if those:
            lines += ["", f"{name}: {titles[name]}"]
            for item in those:
                likely = f", likely {item.likely}" if item.likely else ""
                printed = f" {item.printed}" if item.printed else ""
                lines.append(f"  {item.severity:6} {_where(item)}{printed}{likely} [{item.check}, {item.origin}] {item.reason}")
    return "\n".join([*lines[1:], "", *summary(found)]) + "\n"


def _where(item: Item) -> str:
    parts = (item.row, item.model, f"{item.tasks} tasks" if item.tasks.isdigit() else "")
    return f"{', '.join(part for part in parts if part)}: {item.column}"


def summary(found: Mapping[str, Sequence[Item]]) -> list[str]:
    """Return how many items each check has, and how many of them the given flags have."""
    every = [item for those in found.values() for item in those]
    lines = [f"{len(every)} remarks on {sum(map(bool, found.values()))} of {len(found)} tables:"]
    for check in dict.fromkeys(item.check for item in every):
        own = [item for item in every if item.check == check]
        known = sum(item.origin == "given" for item in own)
        lines.append(f"  {check}: {known} given, {len(own) - known} found")
    grave = {severity: sum(item.severity == severity for item in every) for severity in SEVERITIES}
    return [*lines, "  " + ", ".join(f"{count} {severity}" for severity, count in grave.items())]


def to_markdown(found: Mapping[str, Sequence[Item]], level: int = 2) -> str:
    """Return the items as a page: a section per table."""
    titles = {table.name: table.title for table in tables()}
    parts = []
    for name, those in found.items():
        if those:
            parts += ["", f"{'#' * level} {name}", "", f"{titles[name]}.", "", *_table(those)]
    return "\n".join(parts[1:]) + "\n"


def _table(those: Iterable[Item]) -> Iterator[str]:
    yield "| row | column | printed | likely | severity | found by | reason |"
    yield "| --- | --- | --- | --- | --- | --- | --- |"
    for item in those:
        row = _where(item).rpartition(": ")[0].replace("*", "every")
        found_by = f"{item.check}, {item.origin}"
        cells = (row, item.column.replace("*", "all"), item.printed, item.likely, item.severity, found_by, item.reason)
        yield f"| {' | '.join(cell.replace('|', '/') for cell in cells)} |"


FORMATS: Mapping[str, Callable[[Mapping[str, Sequence[Item]]], str]] = {"text": to_text, "csv": to_csv, "markdown": to_markdown}


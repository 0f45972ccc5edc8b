"""The audit as text, CSV and Markdown."""

from __future__ import annotations

import csv
import io
from collections import Counter
from collections.abc import Callable, Iterator

from fusionbench_lite.tables import published
from fusionbench_lite.tables.audit.findings import audit, by_table, covered
from fusionbench_lite.tables.audit.found import Finding, label
from fusionbench_lite.tables.published import Flag
from fusionbench_lite.tables.render import escaped

COLUMNS = ("table", "row", "column", "printed", "likely", "reason", "check", "severity", "origin")
METHODS = {
    "averages": "the mean of a row's tasks beside its printed average; differences that rounding explains do not count",
    "averages in detail tables": "AdaRank's Tables 1 and 2 beside the tables that have their tasks",
    "gains": "a printed gain beside the differences to every row of its column",
    "elsewhere": "the same method, backbone, tasks and metric in all tables; the value that fewer papers print is named",
    "copies": "four or more adjacent cells that two rows of a table share",
    "permutations": "rows that fit the columns in alphabetical order and not in the printed one",
    "above the experts": "averages of one merged model above those of the experts it merges",
    "fractions": "accuracies that no number of correct examples of the test set gives; seen on small test sets only",
    "sizes": "sizes of data sets beside those of the files that the experts were tested on",
    "given": "read in the papers: labels, texts and tables beside each other, which no recomputation shows",
}


def _lines(name: str | None) -> Iterator[tuple[str, ...]]:
    """Yield what stands against numbers, table by table: what is recomputed, then the flags that no recomputation shows."""
    findings = dict(by_table(audit(name)))
    for table in published.tables():
        if name not in (None, table.name):
            continue
        found = findings.get(table.name, [])
        yield from (_of_finding(one) for one in found)
        known = {flag for one in found for flag in covered(one)}
        own = (flag for flag in published.flags() if (flag.paper, flag.table) == (table.paper, table.table))
        yield from (_of_flag(flag) for flag in own if flag not in known)


def _of_finding(finding: Finding) -> tuple[str, ...]:
    number, flags = finding.number, covered(finding)
    likely = "" if finding.likely is None else f"{finding.likely:g}"
    severity = flags[0].severity if flags else ""
    origin = "given" if any(flag.origin == "given" for flag in flags) else "found"
    row, column = label(number).rsplit(", ", 1)
    return (number.where, row, column, f"{number.value:g}", likely, finding.reason, finding.check, severity, origin)


def _of_flag(flag: Flag) -> tuple[str, ...]:
    likely = "" if flag.likely is None else f"{flag.likely:g}"
    variant = f" ({flag.variant})" if flag.variant else ""
    place = (f"{flag.paper}/{flag.table}", f"{flag.method}{variant}", flag.column)
    return (*place, flag.printed, likely, flag.note, "given", flag.severity, flag.origin)


def to_csv(name: str | None) -> str:
    """One line per finding or flag."""
    buffer = io.StringIO()
    writer = csv.writer(buffer, lineterminator="\n")
    writer.writerows([COLUMNS, *_lines(name)])
    return buffer.getvalue()


def to_text(name: str | None) -> str:
    """Table by table, a line for each; totals at the end."""
    out, last = [], None
    lines = list(_lines(name))
    for table, row, column, printed, likely, reason, check, severity, _ in lines:
        if table != last:
            out.append(f"\n{table}" if last else table)
            last = table
        value = f"{printed}, likely {likely}" if likely else printed
        out.append(f"  {row}, {column}: {value}. {reason.rstrip('.')}. [{check}{', ' + severity if severity else ''}]")
    totals = ", ".join(f"{count} {check}" for check, count in Counter(line[6] for line in lines).items())
    return "\n".join([*out, "", f"{len(lines)} in all: {totals}." if lines else "Nothing stands against its numbers.", ""])


def to_markdown(name: str | None) -> str:
    """A heading and a table for every published table."""
    out: list[str] = []
    last = None
    for table, row, column, printed, likely, reason, check, severity, _ in _lines(name):
        if table != last:
            out += ["", f"### {table}", "", "| Row | Column | Printed | Likely | Why | Found by | |"]
            out.append("|---|---|---:|---:|---|---|---|")
            last = table
        out.append(f"| {' | '.join(map(escaped, (row, column, printed, likely, reason.rstrip('.'), check, severity)))} |")
    return "\n".join([*out, ""]).lstrip("\n")


FORMATS: dict[str, Callable[[str | None], str]] = {"text": to_text, "csv": to_csv, "markdown": to_markdown}

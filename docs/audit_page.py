"""The page of the audit: its prose is here, everything else is what `python -m fusionbench_lite.tables audit` computes."""

from __future__ import annotations

from collections.abc import Iterator

import pages

from fusionbench_lite.tables.audit import averages, displaced, fractions, report
from fusionbench_lite.tables.audit.quantities import every_number

START = """# What does not add up in the published tables

Written by `make docs` from `results/published/` (3,568 numbers of 50 tables), by the program

    python -m fusionbench_lite.tables audit                           # all of it
    python -m fusionbench_lite.tables audit adarank/table_1           # one table
    python -m fusionbench_lite.tables audit --format csv              # also markdown

Every remark below is computed from the numbers alone; those marked `reading` need the papers' words and are repeated as they were
noted. `given` remarks came with the numbers, `found` ones are those of these checks that had been missed. A number that is
remarked on is no target before its remark is read. A *likely* value is shown beside the printed one, never in its place.

## What each check does, sees, and cannot see
"""

CHECKS = {
    "averages": """
        The mean of every row against its printed average, also where the two stand in different tables of a paper. It sees
        what moves the mean by more than rounding explains: one number of eight by about 0.8 points, of 14 by 1.4, of 20 by 2.
        It cannot see two errors that cancel, numbers exchanged within a row, or rows without an average. Which of the two is
        wrong it only says where another check doubts a number of the row; else it takes the mean.
    """,
    "elsewhere": """
        The same quantity in other tables and papers; the value that most papers, then most tables print stands, and all sides
        are remarked on where none leads. It sees that they differ, not why: other checkpoints, another run and a misprint
        look alike. What was copied from paper to paper agrees, right or wrong.
    """,
    "displaced": """
        Rows against the rows beside them: two exchanged cells, rows in another order of tasks, labels of an ablation
        exchanged.
    """,
    "copies": """
        Four or more equal numbers side by side in rows of different methods, at any place; a number that repeats its
        neighbour where the average fails. Shorter copies are as likely chance. Which of two rows is the copy is only known
        where an average tells.
    """,
    "digits": """
        One other digit that makes a number what other tables print and its row what its average says. Slips that no other
        table contradicts, or in rows without an average, stay unseen.
    """,
    "fractions": """
        Accuracies that no count of test examples gives, by the sizes of the test sets that this package reads. Of vision,
        only MetaMerging's tables 7 and 8 have the decimals it takes; averages and correlations are no counts.
    """,
    "sizes": """
        Sizes of splits against those that are read here and GLUE's own, counts of parameters against those of the encoders. A
        paper may have drawn splits of its own: MetaMerging's eight accuracies with two decimals are all counts of the usual
        test sets of RESISC45 and EuroSAT, which numbers of other test sets would be with probability 0.025 and 0.00003.
    """,
    "gains": """
        Gains against the differences they are, and the range of gains under corruptions against the table of them.
    """,
    "plausible": """
        A merged model a point above the specialist of a task, an average above the specialists', 20 points below the
        pretrained model, adapters that lower an accuracy, five tasks worse than eight. Such numbers can be right.
    """,
    "reading": "Labels and sentences of the papers. No check here reads them.",
}


def page() -> str:
    """Return the page."""
    found = report.items()
    lines = [START]
    for name, text in CHECKS.items():
        lines += [*pages.wrapped(f"**{name}.** {' '.join(text.split())} {_power(name)}".strip()), ""]
    lines += ["## In numbers", "", *_summary(report.summary(found)), "", "## Fractions: how much the check can see", ""]
    lines += pages.wrapped(
        "Of the values that could be printed, so many are a count's. A number that is possible where few are has its last digit "
        "confirmed."
    )
    lines += ["", *pages.table(_powers()), "", "## Table by table", "", report.to_markdown(found, level=3)]
    return "\n".join(lines)


def _power(name: str) -> str:
    """Return what a check can see as figures, where it has some."""
    if name == "averages":
        compared = averages.comparisons(every_number())
        own = [one for one in compared if one.average.setting == one.row[0].setting]
        failed = sum(one.gap > one.explained for one in own)
        close = sum(one.own < one.gap <= one.explained for one in own)
        return (
            f"{len(own)} averages stand beside their rows or in the summary of them, {len(compared) - len(own)} more in ablations; "
            f"of the former {failed} fail, and {close} are off in the last digit by no more than rounding the numbers explains."
        )
    if name == "displaced":
        rows, pairs, seen = displaced.power(every_number())
        return (
            f"{rows} rows have enough beside them; of the {pairs:,} exchanges of two cells in them {100 * seen / pairs:.0f} % "
            "would be seen; the others are of numbers that are nearly alike, or in rows that are like none beside them."
        )
    return ""


def _summary(lines: list[str]) -> Iterator[str]:
    yield lines[0]
    yield ""
    yield from (f"- {line.strip()}" for line in lines[1:])


def _powers() -> Iterator[list[object]]:
    yield ["task", "counts of", "digits", "numbers", "impossible", "possible values"]
    for one in fractions.power(every_number()):
        digits = f"{one.decimals} decimals of percent"
        yield [one.column, f"{one.examples:,}", digits, one.checked, one.impossible, f"{100 * one.possible:.1f} %"]

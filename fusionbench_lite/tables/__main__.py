"""Tables from finished records alone: python -m fusionbench_lite.tables mini/demo --format latex.

    python -m fusionbench_lite.tables --list      # the published tables
    python -m fusionbench_lite.tables audit       # what does not add up in them
"""

from __future__ import annotations

import argparse
import re
import sys
from collections.abc import Sequence

from fusionbench_lite.errors import InputError
from fusionbench_lite.evaluation.selection import RULES
from fusionbench_lite.paths import atomic_file, expanded
from fusionbench_lite.planning.refusals import Parser, exit_status

FORMATS = ("text", "csv", "latex", "markdown", "html", "png")
AUDIT = "audit"


def parser() -> argparse.ArgumentParser:
    """The command's arguments."""
    arguments = Parser(
        prog="python -m fusionbench_lite.tables",
        description="Build the table of an experiment from its finished records. Runs nothing and never imports torch.",
        epilog="Without an experiment: the experiments that have finished rows. audit PAPER/TABLE: of one table.",
    )
    arguments.add_argument(
        "experiment", nargs="?", help="such as adarank/table_1 or mini/demo; or audit: what does not add up in the papers"
    )
    arguments.add_argument(
        "overrides", nargs="*", metavar="KEY=VALUE",
        help="of a published table: those its runs were started with, such as steps=50; of audit: one table alone",
    )
    arguments.add_argument("--list", action="store_true", help="the published tables, and what records here answer of them")
    arguments.add_argument("--scale", choices=("published", "mini"), default="published", help="mini: the embedded twin of a table")
    arguments.add_argument("--format", choices=FORMATS, default="text", help="default: text, for the terminal")
    arguments.add_argument("--results-dir", default="results", metavar="DIR", help="default: results")
    arguments.add_argument(
        "--select",
        choices=RULES,
        help="which step of adaptive methods: the last, or the best on test labels (such rows carry a dagger)",
    )
    arguments.add_argument("--output", metavar="FILE", help="write there instead of printing (png: default table.png)")
    arguments.add_argument("--baseline", metavar="ROW", help="add the paired difference to this row (label or method)")
    arguments.add_argument("--compare", nargs=2, metavar=("A", "B"), help="print the paired comparison of two rows")
    return arguments


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; returns the exit status: 0 done, 2 bad input."""
    return exit_status(lambda: _main(argv))


def _main(argv: Sequence[str] | None) -> int:
    given = parser().parse_intermixed_args(argv)
    if given.experiment is not None and given.experiment != AUDIT and re.match(r"[a-z_]+=", given.experiment):
        raise _option(given.experiment)
    given.results_dir = expanded(given.results_dir)
    given.output = expanded(given.output) if given.output is not None else None
    if given.list or given.experiment == AUDIT:
        _published(given)
    else:
        _answer(given)
    return 0


def _published(given: argparse.Namespace) -> None:
    """Print the list of published tables, or their audit."""
    if given.list:
        from fusionbench_lite.tables.cells import listing

        text = listing.text(given.results_dir, given.scale)
    else:
        from fusionbench_lite.tables.audit import report

        if given.format not in report.FORMATS:
            raise InputError(f"--format={given.format}: the audit is written as {', '.join(report.FORMATS)}")
        if len(given.overrides) > 1:
            raise InputError(f"audit {' '.join(given.overrides)}: give one published table, or none for all")
        text = report.FORMATS[given.format](report.items(*given.overrides))
    if given.output is None:
        sys.stdout.write(text)
        return
    with atomic_file(given.output) as temporary:
        temporary.write_text(text, encoding="utf-8")
    print(given.output)


def _option(argument: str) -> InputError:
    """Return what a KEY=VALUE of the other commands is here."""
    from fusionbench_lite.planning.mistakes import for_shells

    key, _, value = argument.partition("=")
    option = f"--{key.replace('_', '-')}"
    one_value = [name for action in parser()._actions if action.nargs is None for name in action.option_strings]
    if option not in one_value:
        return InputError(f"{argument}: tables has no key {key!r}: give an experiment, or one of {', '.join(one_value)}")
    return InputError(f"{argument}: options of tables are written as {for_shells(f'{option}={value}')}")


def _grid(given: argparse.Namespace) -> None:
    """Print or write the table of a published experiment."""
    from fusionbench_lite.planning import experiments
    from fusionbench_lite.tables.cells import output
    from fusionbench_lite.tables.cells.build import grid
    from fusionbench_lite.tables.rows import table_dir

    if given.compare or given.baseline:
        raise InputError("--compare and --baseline are for tables of rows by tasks; columns of gains and claims compare here")
    select = [f"select={given.select}"] if given.select is not None else []
    experiment = experiments.scaled(experiments.read(given.experiment), given.scale)
    table = grid(experiment, given.results_dir, [*given.overrides, *select])
    if given.format == "text" and given.output is None:
        from fusionbench_lite.tables.cells.formats.text import print_grid

        print_grid(table)
        return
    if given.format in output.TEXT_FORMATS and given.output is None:
        sys.stdout.write(output.TEXT_FORMATS[given.format](table))
        return
    kind = given.format
    path = given.output or table_dir(given.results_dir, experiment.full_name) / f"table{output.SUFFIXES[kind]}"
    print(output.save(table, kind, path))


def _answer(given: argparse.Namespace) -> None:
    # pandas and matplotlib take a second to import: --help and a mistyped name should not wait for them.
    from fusionbench_lite.planning.experiments import names as published_experiments
    from fusionbench_lite.tables.rows import experiments, load_records, read_rows, table_dir

    if given.experiment is None:
        ready = experiments(given.results_dir)
        if not ready:
            raise InputError(f"no experiment has rows in {given.results_dir}; run python -m fusionbench_lite first")
        print("\n".join(ready))
        return
    if given.experiment in published_experiments():
        _grid(given)
        return
    if given.overrides or given.scale != "published":
        raise InputError(f"experiment {given.experiment} is no published table: leave out {' '.join(given.overrides) or '--scale'}")
    rows = read_rows(given.results_dir, given.experiment)
    records = load_records(given.results_dir, rows)
    if given.compare:
        from fusionbench_lite.tables.compare import compare
        from fusionbench_lite.tables.terminal import print_comparison

        print_comparison(compare(rows, records, given.compare[0], given.compare[1], given.select or "last"))
        return
    from fusionbench_lite.tables.frame import build

    table = build(rows, records, given.select or "last", baseline=given.baseline)
    if given.format == "text" and given.output is None:
        from fusionbench_lite.tables.terminal import print_table

        print_table(table)
        return
    from fusionbench_lite.tables.output import SUFFIXES, TEXT_FORMATS, save

    if given.format in TEXT_FORMATS and given.output is None:
        sys.stdout.write(TEXT_FORMATS[given.format](table))
        return
    name = given.output or table_dir(given.results_dir, given.experiment) / f"table{SUFFIXES[given.format]}"
    print(save(table, given.format, name))


if __name__ == "__main__":
    sys.exit(main())

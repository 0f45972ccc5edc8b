"""`python -m fusionbench_lite.sizes [model=vit_b32] [tasks=8] [format=text]`: what every adaptive method learns and keeps.

Computed from the tensors of the encoder, beside the figures that the papers print and why they differ. Formats: text,
csv, markdown. METHOD.NAME=VALUE sets a hyperparameter, as in surgery.rank=32; others have their defaults. Nothing is
loaded, and torch is not imported.
"""

from __future__ import annotations

import dataclasses
import io
import sys
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from fusionbench_lite.errors import InputError, did_you_mean
from fusionbench_lite.fields import REQUIRED, choice, integer, one, word
from fusionbench_lite.planning.command_line import options_of
from fusionbench_lite.planning.refusals import exit_status

if TYPE_CHECKING:
    import pandas as pd

    from fusionbench_lite.weights.architecture import Architecture

USAGE = f"usage: python -m fusionbench_lite.sizes [KEY=VALUE ...]\n\n{__doc__}"
FORMATS = ("text", "csv", "markdown")


@dataclasses.dataclass(frozen=True)
class Options:
    """What is computed, and how the answer is printed; see the module's text."""

    model: str = word("vit_b32")
    tasks: str = word("8")
    format: str = choice("text", FORMATS)


def main(arguments: Sequence[str] | None = None) -> int:
    """Print the tables; returns the exit status: 0 done, 2 bad input."""
    given = sys.argv[1:] if arguments is None else list(arguments)
    return exit_status(lambda: _main(given))


def _main(given: Sequence[str]) -> int:
    if {"-h", "--help"} & set(given):
        print(USAGE)
        return 0
    from fusionbench_lite.planning.counts import architecture_of

    values = _values([argument for argument in given if "." in argument.partition("=")[0]])
    chosen = options_of([argument for argument in given if "." not in argument.partition("=")[0]], "", Options)
    sys.stdout.write(_answer(architecture_of(chosen.model), _tasks(chosen.tasks), chosen.format, values))
    return 0


def _values(given: Sequence[str]) -> dict[str, dict[str, Any]]:
    """Return hyperparameters by method; raises InputError for what sets none, and for a method without a size."""
    if not given:
        return {}
    import yaml

    from fusionbench_lite.resources.sizes import methods

    values: dict[str, dict[str, Any]] = {}
    for argument in given:
        key, equals, value = argument.partition("=")
        method, _, name = key.partition(".")
        if not equals:
            raise InputError(f"{argument!r} sets nothing: give a value, as in surgery.rank=32")
        if method not in (sized := methods()):
            raise InputError(f"{argument!r}: {method!r} is no method with a size: {did_you_mean(method, sized)}")
        values.setdefault(method, {})[name] = yaml.safe_load(value)
    return values


def _tasks(value: str) -> int:
    if not value.isdigit():
        from fusionbench_lite.planning import task_sets

        names = [name.strip(" '\"") for name in value[1:-1].split(",")] if value.startswith("[") and value.endswith("]") else value
        return len(task_sets.resolve(names, None).names)
    return int(one("tasks", int(value), integer(REQUIRED, low=1)))


def _answer(of: Architecture, tasks: int, kind: str, values: Mapping[str, Mapping[str, Any]]) -> str:
    from fusionbench_lite.resources.sizes import compare, table

    sizes, beside = table(of, tasks, values), compare(of, tasks)
    if kind == "csv":
        return str(sizes.to_csv(index=False, float_format="%.6g", lineterminator="\n"))
    title = f"{of.name} ({of.layout}), {tasks} tasks: {of.count} tensors, {of.parameters:,} parameters"
    if of.leftovers:
        title += f", of which the forward pass reads {of.used:,}"
    rows = [_row(line) for _, line in sizes.iterrows()]
    heads = ["Method", "Learnable", "of which", "Extra at inference", "Models kept"]
    papers = [_published(line) for _, line in beside.iterrows()]
    paper_heads = ["Paper", "Method", "Quantity", "Printed", "Computed", "Why they differ"]
    notes = ["* the task of an input has to be known at inference.", "Models kept: the encoder and the extra, in encoders."]
    if kind == "markdown":
        return _markdown(title, [(heads, rows), (paper_heads, papers)], notes)
    return _text(title, [(heads, rows), (paper_heads, papers)], notes)


def _row(line: pd.Series) -> list[str]:
    name = f"{line['name']}{' *' if line['needs_task'] else ''}"
    if line.isna()["learnable"]:
        return [name, "-", str(line["note"]), "-", "-"]
    detail = str(line["detail"]) if ";" in str(line["detail"]) else str(line["detail"]).rpartition(" ")[0]
    detail = f"{detail} ({line['note']})" if line["note"] else detail
    return [name, f"{line['learnable']:,}", detail, f"{line['extra']:,}", f"{line['models_kept']:.2f}"]


def _published(line: pd.Series) -> list[str]:
    computed = line["computed"]
    shown = "-" if computed is None or computed != computed else f"{computed:,.0f}"
    if line["quantity"] == "models kept" and shown != "-":
        shown = f"{computed:.2f}×"
    source = f"{line['paper']}, {'text' if line['table'] == 'text' else 'Table ' + line['table']}"
    return [source, line["name"], line["quantity"], line["printed"], shown, line["why"]]


def _text(title: str, tables: list[tuple[list[str], list[list[str]]]], notes: list[str]) -> str:
    from rich import box
    from rich.console import Console
    from rich.table import Table

    buffer = io.StringIO()
    width = Console().width if sys.stdout.isatty() else 160
    console = Console(file=buffer, width=width, color_system=None)
    console.print(title, highlight=False)
    for heads, rows in tables:
        if not rows:
            continue
        grid = Table(box=box.SIMPLE_HEAD, pad_edge=False)
        for head in heads:
            number = head in ("Learnable", "Extra at inference", "Models kept", "Printed", "Computed")
            grid.add_column(head, justify="right" if number else "left", no_wrap=number)
        for row in rows:
            grid.add_row(*row)
        console.print(grid)
    for note in notes:
        console.print(note, highlight=False)
    return "\n".join(line.rstrip() for line in buffer.getvalue().splitlines()) + "\n"


def _markdown(title: str, tables: list[tuple[list[str], list[list[str]]]], notes: list[str]) -> str:
    lines = [f"**{title}**"]
    for heads, rows in tables:
        if rows:
            lines += ["", f"| {' | '.join(heads)} |", f"|{' --- |' * len(heads)}"]
            lines += [f"| {' | '.join(row)} |" for row in rows]
    return "\n".join([*lines, "", *(note.replace("*", r"\*") for note in notes)]) + "\n"


if __name__ == "__main__":
    sys.exit(main())

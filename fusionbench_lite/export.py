"""`python -m fusionbench_lite.export RECORD out=DIR`: the model of a record as files, proved by loading them again.

    RECORD            a record's directory, or its key or the beginning of it in results_dir

    out=DIR           a new or empty folder
    results_dir=DIR   default: results
    cache_dir=DIR     where experts and data are, if not where the run had them
    select=RULE       the selection rule whose model is wanted (default: the record's own)
    layout=NAME       open_clip, transformers, peft or own (default: the first that can hold the model)
    compact=false     a whole model per task where a method stores small tensors per task
    limit=N           compare the predictions of the first N examples per task alone
    verify=false      write without comparing

The run's inputs are loaded again and have to be the ones it had; weights are merged again, what was learned is read from the
record, and no step is taken. What is written is loaded with the library that it is for, and its predictions are compared with the
record's, example by example: exit status 0 where all are equal, 1 where some are not (nothing is left then), 2 for bad input.
"""

from __future__ import annotations

import dataclasses
import sys
from collections.abc import Sequence

from fusionbench_lite.errors import InputError
from fusionbench_lite.fields import choice, flag, integer, location
from fusionbench_lite.planning.command_line import options_of
from fusionbench_lite.planning.refusals import exit_status

USAGE = f"usage: python -m fusionbench_lite.export RECORD out=DIR [KEY=VALUE ...]\n\n{__doc__}"
LAYOUTS = ("open_clip", "transformers", "peft", "own")
SELECTIONS = ("last", "best_test", "best_unsupervised")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Options:
    """The command line; see the module's text."""

    out: str | None = location(None, optional=True)
    results_dir: str = location("results")
    cache_dir: str | None = location(None, optional=True)
    select: str | None = choice(None, SELECTIONS, optional=True)
    layout: str | None = choice(None, LAYOUTS, optional=True)
    compact: bool = flag(True)
    limit: int | None = integer(None, low=1, optional=True)
    verify: bool = flag(True)


def main(arguments: Sequence[str] | None = None) -> int:
    """Return the exit status: 0 written, 1 where predictions differ, 2 bad input."""
    return exit_status(lambda: _main(list(sys.argv[1:] if arguments is None else arguments)))


def _main(given: list[str]) -> int:
    if {"-h", "--help"} & set(given):
        print(USAGE)
        return 0
    names = {field.name for field in dataclasses.fields(Options)}
    keys = [one for one in given if one.partition("=")[0] in names and "=" in one]
    records = [one for one in given if one not in keys]
    strange = [one for one in records if "=" in one and "/" not in one.partition("=")[0]]
    options = options_of([*keys, *strange], "", Options)
    if len(records) != 1:
        raise InputError(f"export takes 1 record, got {len(records)}: give its directory or key, then out=DIR")
    if options.out is None:
        raise InputError("export needs out=DIR, a new folder: the files go there")
    from fusionbench_lite.exporting.asked import Asked
    from fusionbench_lite.exporting.course import export

    return export(Asked(
        record=records[0], out=options.out, results_dir=options.results_dir, cache_dir=options.cache_dir, select=options.select,
        layout=options.layout, compact=options.compact, limit=options.limit, verify=options.verify,
    ))


if __name__ == "__main__":
    sys.exit(main())

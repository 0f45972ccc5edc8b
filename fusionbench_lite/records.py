"""`python -m fusionbench_lite.records [list|show|compare|delete|move] [KEY ...] [KEY=VALUE ...]`: the records of a results folder.

    list              key, method, model, tasks, seed, average, age and size (the default)
    show KEY          one record: settings with their sources, scores, caveats, and the line that makes it again
    compare A B       what differs between two records, setting by setting, and their scores, paired
    delete            remove records and the notes that lead to them; without yes=true it is only said which
    move to=DIR       move records to another results folder; without yes=true it is only said which

    results_dir=DIR   default: results
    key=3f2a          records whose key begins so; KEY, A and B are such beginnings too, or directories of records
    method=adarank_*  patterns, as of a shell; likewise model, tasks (a label, or names with + between them) and seed
    older=30d         written so long ago (m, h, d, w)

delete and move need one of the filters: key=* takes all. A record is removed and moved whole, never one that a run is writing.
"""

from __future__ import annotations

import dataclasses
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from fusionbench_lite.base.needs import size_text
from fusionbench_lite.errors import InputError
from fusionbench_lite.fields import flag, location, word
from fusionbench_lite.housekeeping.line import command, parsed, span
from fusionbench_lite.paths import expanded

if TYPE_CHECKING:
    from fusionbench_lite.housekeeping.chosen import Filter, Found
    from fusionbench_lite.tables.records import Record

USAGE = f"usage: python -m fusionbench_lite.records [list|show|compare|delete|move] [KEY ...] [KEY=VALUE ...]\n\n{__doc__}"
FILTERS = {"key", "method", "model", "tasks", "seed", "older"}
ACTIONS = {
    "list": FILTERS | {"results_dir"}, "show": {"results_dir"}, "compare": {"results_dir"},
    "delete": FILTERS | {"results_dir", "yes"}, "move": FILTERS | {"results_dir", "to", "yes"},
}
POSITIONAL = {"show": 1, "compare": 2}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Options:
    """The command line; see the module's text."""

    results_dir: str = location("results")
    to: str | None = location(None, optional=True)
    key: str | None = word(None, optional=True)
    method: str | None = word(None, optional=True)
    model: str | None = word(None, optional=True)
    tasks: str | None = word(None, optional=True)
    seed: str | None = word(None, optional=True)
    older: float | None = span()
    yes: bool = flag(False)


def main(arguments: Sequence[str] | None = None) -> int:
    """Return the exit status: 0 done, 1 where a record stayed that was to go, 2 bad input."""
    return command(USAGE, arguments, _main)


def _main(given: list[str]) -> int:
    action, names, options = parsed(given, ACTIONS, Options, POSITIONAL)
    results_dir = expanded(options.results_dir)
    from fusionbench_lite.housekeeping import chosen

    if action in POSITIONAL:
        those = [chosen.by_name(results_dir, name) for name in names]
        return _show(_whole(those[0]), results_dir) if action == "show" else _compare(*map(_whole, those))
    wanted = chosen.Filter(**{name: getattr(options, name) for name in FILTERS})
    if action == "list":
        return _list(chosen.taken(results_dir, wanted), results_dir)
    if wanted.is_empty:
        raise InputError(f"{action} takes no record without a filter: give {', '.join(sorted(FILTERS))}, or key=* for all")
    if action == "move" and options.to is None:
        raise InputError("move needs to=DIR, the results folder that records go to")
    return _change(action, wanted, options, results_dir)


def _whole(one: Found) -> Record:
    from fusionbench_lite.tables import records

    if one.record is None:
        raise InputError(f"{one.path} is no whole record: {one.flaw}")
    return records.read(one.path)


def _list(those: Sequence[Found], results_dir: Path) -> int:
    from fusionbench_lite.housekeeping.entries import ago

    print(f"{results_dir}: {len(those):,} records, {size_text(sum(one.nbytes for one in those))}")
    for one in those:
        print(f"{one.key[:8]:<8}  {_words(one)}  {ago(one.written)}, {size_text(one.nbytes)}")
    return 0


def _words(one: Found) -> str:
    if one.record is None:
        return f"{one.path.name}: no whole record: {one.flaw}"
    record, average = one.record, one.record.data["selections"]["last"]["average"]
    trial = "" if record.limit is None else f", TRIAL of {record.limit} examples"
    value = "no average" if average is None else f"{average:.4f}"
    return f"{record.method}, {record.model}, {record.data['task_set']}, seed {record.seeds.get('seed')}: {value}{trial}"


def _show(record: Record, results_dir: Path) -> int:
    from fusionbench_lite.housekeeping import records

    print("\n".join(records.show(record, results_dir)))
    return 0


def _compare(first: Record, second: Record) -> int:
    from fusionbench_lite.housekeeping import records

    print(f"{first.path}\n{second.path}")
    found = list(records.differences(first, second))
    print(f"{len(found)} settings, files and versions differ")
    for name, one, other in found:
        print(f"  {name}: {one} | {other}")
    print("\n".join(records.scores(first, second)))
    return 0


def _change(action: str, wanted: Filter, options: Options, results_dir: Path) -> int:
    from fusionbench_lite.housekeeping import chosen, records

    those = chosen.taken(results_dir, wanted)
    if not options.yes:
        going = [one for one in those if records.stranger(one) is None]
        for one in those:
            reason = records.stranger(one)
            print(f"would {action}: {one.path.name}, {_words(one)}" if reason is None else f"kept: {one.path.name}: {reason}")
        print(f"{len(going):,} records, {size_text(sum(one.nbytes for one in going))}: add yes=true")
        return 0
    done: Iterable[tuple[Found, str | None]]
    if action == "delete":
        done, past = records.delete(those, results_dir), "deleted"
    else:
        assert options.to is not None
        done, past = records.move(those, results_dir, expanded(options.to)), "moved"
    stayed = 0
    for one, reason in done:
        stayed += reason is not None
        print(f"{past}: {one.path.name}" if reason is None else f"kept: {one.path.name}: {reason}")
    print(f"{len(those) - stayed:,} of {len(those):,} records {past}")
    return 1 if stayed else 0


if __name__ == "__main__":
    sys.exit(main())

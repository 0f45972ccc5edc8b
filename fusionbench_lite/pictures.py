"""`python -m fusionbench_lite.pictures WHAT`: pictures of what adaptive runs learned, from their records alone.

WHAT is the directory of a record, its key, or an experiment. A record gives its coefficients, their course, masks,
ranks and losses; an experiment its adaptive rows over each other, with --seed also the pictures of every such row's record.
Each picture NAME.png has its numbers beside it in NAME.csv.
"""

from __future__ import annotations

import argparse
import re
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from fusionbench_lite.errors import InputError
from fusionbench_lite.paths import expanded
from fusionbench_lite.planning.refusals import Parser, exit_status

if TYPE_CHECKING:
    from fusionbench_lite.tables.records import Record


def parser() -> argparse.ArgumentParser:
    """The command's arguments."""
    arguments = Parser(
        prog="python -m fusionbench_lite.pictures", description=__doc__.partition(": ")[2],
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    arguments.add_argument("what", help="a record's directory or key, or an experiment such as mini/demo")
    arguments.add_argument("--out", metavar="DIR", help="default: pictures/ in the results directory")
    arguments.add_argument("--results-dir", default="results", metavar="DIR", help="default: results")
    arguments.add_argument("--seed", type=int, metavar="N", help="of an experiment: this seed alone, and each row's own pictures")
    return arguments


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; returns the exit status: 0 done, 2 bad input."""
    return exit_status(lambda: _main(argv))


def _main(argv: Sequence[str] | None) -> int:
    given = parser().parse_args(argv)
    results, out = expanded(given.results_dir), expanded(given.out) if given.out is not None else None
    for path in draw(given.what, results, out, given.seed):
        print(path)
    return 0


def draw(what: str, results_dir: str | Path, out: str | Path | None = None, seed: int | None = None) -> list[Path]:
    """Draw every picture that `what` allows; returns the files. Raises InputError where there is nothing to draw."""
    from fusionbench_lite.tables import learned

    folder = Path(out) if out is not None else None
    record = _record(what, results_dir)
    if record is None:
        return _experiment(what, results_dir, folder or Path(results_dir) / "pictures" / what, seed)
    if seed is not None and record.seeds.get("seed") != seed:
        raise InputError(f"{what} has seed {record.seeds.get('seed')}, not {seed}: leave --seed out, or name its experiment")
    if not record.adapted and not (record.path / learned.HISTORY).is_file():
        raise InputError(f"{what} is a run of {record.method}, which learns nothing: its record has no course to draw")
    return draw_record(record, folder or learned.folder_of(record, results_dir))


def draw_record(record: Record, folder: Path) -> list[Path]:
    """Draw the pictures of one adaptive run into a folder; says on stderr what the record does not hold."""
    from fusionbench_lite.tables import coefficient_pictures, course_pictures, learned, mask_pictures

    parameters = learned.read_learned(record)
    history, trajectory = learned.read_history(record), learned.read_trajectory(record)
    written: list[Path] = []
    if parameters is not None and parameters.coefficients:
        order = trajectory.names if trajectory is not None else ()
        written += coefficient_pictures.draw_map(record, parameters, folder / "coefficients.png", order)
    else:
        _absent(record, "no coefficients", "coefficients.png")
    if trajectory is not None:
        tasks = parameters.tasks if parameters is not None else record.tasks
        written += coefficient_pictures.draw_trajectory(record, trajectory, tasks, folder / "trajectory.png")
    else:
        _absent(record, f"no {learned.TRAJECTORY} (runs before it was kept, methods without coefficients)", "trajectory.png")
    if parameters is not None and parameters.masks:
        written += mask_pictures.draw_masks(record, parameters, folder / "masks.png")
        if not parameters.spectrum:
            _absent(record, "no spectra of the task vectors", "the intrinsic rank in ranks.png")
        written += mask_pictures.draw_ranks(record, parameters, folder / "ranks.png")
    if history is not None:
        written += course_pictures.draw_course(record, history, folder / "losses.png")
    else:
        _absent(record, "no history.csv", "losses.png")
    return written


def _experiment(name: str, results_dir: str | Path, folder: Path, seed: int | None) -> list[Path]:
    from fusionbench_lite.tables import course_pictures, learned
    from fusionbench_lite.tables.rows import load_records, read_rows

    rows = read_rows(results_dir, name)
    records = {record.key: record for record in load_records(results_dir, rows)}
    curves = course_pictures.curves(rows, records, seed)
    if not curves:
        of = "" if seed is None else f" with seed {seed}"
        raise InputError(f"experiment '{name}' has no finished adaptive rows{of} in {Path(results_dir)}")
    note = "; TRIAL" if any(record.limit is not None for record in records.values()) else ""
    written = course_pictures.draw_experiment(rows, curves, folder / "adaptive_rows.png", note)
    for row in rows.rows if seed is not None else ():
        for record in (records[key] for key in row.keys if key in records):
            if record.seeds.get("seed") == seed and (record.path / learned.HISTORY).is_file():
                written += draw_record(record, folder / re.sub(r"[^A-Za-z0-9_+.]+", "_", row.name))
    return written


def _record(what: str, results_dir: str | Path) -> Record | None:
    """The record of this directory or key; None where `what` looks like neither, so that it names an experiment."""
    from fusionbench_lite.tables import records

    path = expanded(what)
    if (path / records.RESULT).is_file():
        return records.read(path.absolute())
    if re.fullmatch(r"[0-9a-f]{16}", what):
        record = records.find(results_dir, what)
        if record is None:
            raise InputError(f"no complete record with key {what} in {Path(results_dir)}: give --results-dir")
        return record
    return None


def _absent(record: Record, lacks: str, skipped: str) -> None:
    print(f"{record.path.name} holds {lacks}: {skipped} is left out", file=sys.stderr)


if __name__ == "__main__":
    sys.exit(main())

"""A process that writes records, a manifest and a table beside another one: python -m tests.support.two_writers DIR NAME ROUNDS."""

from __future__ import annotations

import sys
from pathlib import Path

from fusionbench_lite.tables import frame, output, rows
from tests.support.record_factory import TASKS, store

EXPERIMENT = "mini/both"


def manifest(keys: dict[str, tuple[str, ...]]) -> rows.Rows:
    """Return the rows of the experiment that both write."""
    return rows.Rows(EXPERIMENT, "Two writers", tuple(rows.Row(name, "tsv_m", found) for name, found in keys.items()))


def write(results_dir: Path, name: str, rounds: int, keys: dict[str, tuple[str, ...]]) -> None:
    """Write the record that both share and one of its own in every round, then the manifest and the table."""
    for number in range(rounds):
        store(results_dir, "shared", dict.fromkeys(TASKS, 0.5))
        store(results_dir, "tsv_m", dict.fromkeys(TASKS, 0.6), seed=number, writer=name)
        with rows.held(results_dir, EXPERIMENT):
            rows.write_rows(results_dir, manifest(keys))
            table = frame.build(manifest(keys), rows.load_records(results_dir, manifest(keys)))
            for kind in ("csv", "markdown"):
                output.save(table, kind, rows.table_dir(results_dir, EXPERIMENT) / f"table{output.SUFFIXES[kind]}")


def keys_of(scratch: Path, rounds: int) -> dict[str, tuple[str, ...]]:
    """Return the keys that the writers' records will have, by writer."""
    return {
        name: tuple(store(scratch, "tsv_m", dict.fromkeys(TASKS, 0.6), seed=number, writer=name) for number in range(rounds))
        for name in ("a", "b")
    }


if __name__ == "__main__":
    write(Path(sys.argv[1]), sys.argv[2], int(sys.argv[3]), keys_of(Path(sys.argv[1]) / "scratch" / sys.argv[2], int(sys.argv[3])))

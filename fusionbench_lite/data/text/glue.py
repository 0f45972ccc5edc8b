"""GLUE on the hub: parquet files, one folder a task."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fusionbench_lite import hub
from fusionbench_lite.data.text.descriptions import Description
from fusionbench_lite.data.text.examples import Examples, examples
from fusionbench_lite.errors import InputError

if TYPE_CHECKING:
    from fusionbench_lite.hub import Entry
    from fusionbench_lite.hub.download import Report

REPO = "nyu-mll/glue"
TRAIN, TEST = "train", "validation"
"""The labels of GLUE's own test splits are hidden, so that all results are of validation splits."""
_SHARD = re.compile(r"(?P<split>.+)-(?P<number>\d+)-of-(?P<count>\d+)\.parquet")


def split(entry: Description, name: str, cache: Path, report: Report | None = None) -> Examples:
    """Fetch the files of a split and return its examples; raises InputError naming repository and file."""
    fetched = [
        hub.fetch(REPO, file.path, kind="dataset", cache=cache, sha256=file.sha256, size=file.size, report=report)
        for file in entries(entry.name, name, cache)
    ]
    files = {f"{one.repo}@{one.commit or 'unknown'}:{one.file}": one.sha256 for one in fetched}
    return examples(entry, _rows(entry, [one.path for one in fetched]), f"dataset {REPO}, {entry.name}, split {name}", files)


def entries(task: str, split_name: str, cache: Path) -> list[Entry]:
    """Return the files of a split in order; raises InputError where there are none or not all."""
    listing = hub.tree(REPO, kind="dataset", under=task, cache=cache)
    found: dict[int, Entry] = {}
    count = 0
    for entry in listing:
        match = _SHARD.fullmatch(entry.path.removeprefix(f"{task}/"))
        if match and match["split"] == split_name:
            found[int(match["number"])], count = entry, int(match["count"])
    if not found or set(found) != set(range(count)):
        there = ", ".join(entry.path for entry in listing[:5]) or "nothing"
        raise InputError(
            f"dataset {REPO} has {len(found)} of {count or 'the'} files of split {split_name!r} of {task} (it holds {there}): list "
            f"it again with a network, or put {task}.test.jsonl into data_dir"
        )
    return [found[number] for number in range(count)]


def _rows(entry: Description, paths: list[Path]) -> Iterator[tuple[str, Mapping[str, Any]]]:
    try:
        import pyarrow
        from pyarrow import parquet
    except ImportError as error:
        raise InputError("GLUE from the hub needs pyarrow: pip install 'fusionbench_lite[hub]'") from error
    number = 0
    for path in paths:
        try:
            present = parquet.read_schema(path).names
            wanted = [name for name in (*entry.columns, entry.label) if name in present]  # `examples` names the missing ones
            table = parquet.read_table(path, columns=wanted)
        except (OSError, pyarrow.ArrowException) as error:
            reason = str(error).splitlines()[0]
            raise InputError(f"{path} is not readable parquet ({reason}): delete it, to fetch it again") from error
        for batch in table.to_batches(max_chunksize=10_000):
            for row in batch.to_pylist():
                number += 1
                yield f"row {number}", row

"""What tracked runs left: rows of CSV files, records of wandb's offline files."""

from __future__ import annotations

import csv
import json
import struct
from pathlib import Path
from typing import Any

import yaml

_BLOCK, _HEADER, _FILE_HEADER = 32768, 7, 7


def csv_runs(folder: Path) -> dict[str, tuple[dict[str, Any], list[dict[str, str]]]]:
    """Return (configuration, rows) of every run under a folder, by the run's own folder; empty entries of rows are left out."""
    found = {}
    for path in sorted(folder.rglob("metrics.csv")):
        with path.open(newline="") as file:
            rows = [{name: value for name, value in row.items() if value} for row in csv.DictReader(file)]
        configuration = yaml.safe_load((path.parent / "hparams.yaml").read_text())
        found[path.parent.relative_to(folder).as_posix()] = (configuration, rows)
    return found


def wandb_run(path: Path) -> dict[str, Any]:
    """Return id, name, group, config, history and exit code of a file run-ID.wandb."""
    from wandb.proto import wandb_internal_pb2

    run: dict[str, Any] = {"config": {}, "history": []}
    for content in _logged(path.read_bytes()):
        record = wandb_internal_pb2.Record()
        record.ParseFromString(content)
        kind = record.WhichOneof("record_type")
        if kind == "run":
            run |= {"id": record.run.run_id, "name": record.run.display_name, "group": record.run.run_group}
            run["project"] = record.run.project
        elif kind == "config":
            run["config"] |= {update.key: json.loads(update.value_json) for update in record.config.update}
        elif kind == "history":
            items = record.history.item
            run["history"].append({item.key or ".".join(item.nested_key): json.loads(item.value_json) for item in items})
        elif kind == "exit":
            run["exit"] = record.exit.exit_code
    return run


def _logged(data: bytes):
    """Yield the contents of a log in LevelDB's format: blocks of chunks, each with its checksum, length and kind."""
    at, content = _FILE_HEADER, b""
    while at + _HEADER <= len(data):
        if _BLOCK - at % _BLOCK < _HEADER:  # too little is left for a chunk
            at += _BLOCK - at % _BLOCK
            continue
        _, size, kind = struct.unpack("<IHB", data[at : at + _HEADER])
        content += data[at + _HEADER : at + _HEADER + size]
        at += _HEADER + size
        if kind in (1, 4):  # a whole one, or the last part
            yield content
            content = b""

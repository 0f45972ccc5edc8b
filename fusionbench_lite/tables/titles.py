"""The title of a run's own table: what tells it from other runs of the same method."""

from __future__ import annotations

from typing import Any

from fusionbench_lite.tables.records import Record

GIVEN = "given"
"""The source of a setting that the user chose, as records name it."""


def title(record: Record) -> str:
    """Return model, tasks, checkpoints, every setting of a record that is not the default's or a preset's, and its seeds."""
    parts = [setting(record)]
    if any(record.seeds.values()):
        parts.append("seed " + " and ".join(str(seed) for seed in dict.fromkeys(record.seeds.values())))
    return ", ".join(parts)


def setting(record: Record) -> str:
    """Return the title without seeds: records that share it, and the method, are runs of one thing."""
    data, config = record.data, record.data["config"]
    checkpoints = data["checkpoints"]
    parts = [record.model, f"tasks={data['task_set']}"]
    if checkpoints.get("layout"):
        parts += [f"checkpoints={checkpoints['family']}", checkpoints["layout"]]
    experts = config["checkpoints"].get("experts")
    if experts is not None:
        parts.append(f"experts={_text(experts)}")
    images = config.get("data") or {}
    if images.get("corruption"):
        made = images["corruption_from"] == "generated" or not checkpoints.get("layout")  # drawn tasks have no published splits
        generated = f" (generated, severity {images['severity']})" if made else ""
        parts.append(images["corruption"] + generated)
    chosen = {name: entry["value"] for name, entry in data["hyperparameters"].items() if entry["source"] == GIVEN}
    parts += [f"{name}={_text(value)}" for name, value in chosen.items()]
    if data["precision"] != "fp32":
        parts.append(data["precision"])
    return ", ".join(parts)


def _text(value: Any) -> str:
    return f"[{','.join(map(str, value))}]" if isinstance(value, list) else str(value)

"""How much every method learns and keeps, as it declares it, beside what the papers print (docs/decisions.md, D13)."""

from __future__ import annotations

import functools
from collections.abc import Mapping
from importlib import resources
from typing import Any

import pandas as pd
import yaml

from fusionbench_lite import registry
from fusionbench_lite.models.architectures import TENSORS_PER_BLOCK, TEXT_BLOCKS
from fusionbench_lite.planning.counts import learned, models_kept
from fusionbench_lite.tables.families import label
from fusionbench_lite.weights.architecture import Architecture

PUBLISHED = "published_sizes.yaml"

def methods() -> list[str]:
    """Return the methods that have a size, adaptive ones and those that declare it, family after family."""
    entries = [registry.get(id, learning=True) for id in registry.names()]
    sized = [entry for entry in entries if entry.adaptive or entry.learned is not None]
    return [entry.id for entry in sorted(sized, key=lambda entry: registry.FAMILIES.index(entry.family))]


def table(of: Architecture, tasks: int, values: Mapping[str, Mapping[str, Any]] | None = None) -> pd.DataFrame:
    """Return a line per method: what it learns, what it keeps at inference, and how many encoders that is.

    `values` are hyperparameters by method.
    """
    lines = []
    for method in methods():
        size = learned(of, tasks, method, (values or {}).get(method))
        applies = size.counts is not None
        detail = "; ".join(f"{what} {number:,}" for what, number in (size.counts or {}).items()) if applies else ""
        lines.append(
            {
                "method": method, "name": label(method), "learnable": size.total, "detail": detail,
                "extra": size.extra if applies else None, "needs_task": size.task_id,
                "models_kept": models_kept(of, size) if applies else None, "note": size.note,
            }
        )
    return pd.DataFrame(lines).astype({"learnable": "Int64", "extra": "Int64"})


def quantity(of: Architecture, tasks: int, method: str, what: str) -> float | None:
    """Return a number that a paper prints: of a method, or with method "" of the encoder alone."""
    text_tower = TEXT_BLOCKS * TENSORS_PER_BLOCK
    encoder: dict[str, float] = {
        "parameters": of.parameters, "parameters read": of.used, "task vectors": tasks * of.parameters,
        "tensors of complete CLIP": of.count + text_tower,
    }
    if not method:
        return encoder.get(what)
    size = learned(of, tasks, method)
    if size.counts is None:
        return None
    return {
        "learnable": size.total, "models kept": models_kept(of, size), "extra": size.extra,
        **size.counts, **size.parts,
    }.get(what)


@functools.cache
def published() -> list[dict[str, Any]]:
    """Return the papers' figures: paper, table, model, tasks, method, quantity, printed, value and why it differs."""
    text = resources.files("fusionbench_lite.resources").joinpath(PUBLISHED).read_text(encoding="utf-8")
    return list(yaml.safe_load(text))


def compare(of: Architecture, tasks: int) -> pd.DataFrame:
    """Return the papers' figures for this model and number of tasks beside the computed ones."""
    lines = [
        {
            "paper": entry["paper"], "table": entry["table"], "method": entry["method"],
            "name": label(entry["method"]) if entry["method"] else "encoder", "quantity": entry["quantity"],
            "printed": str(entry["printed"]), "value": entry["value"],
            "computed": quantity(of, tasks, entry["method"], entry["quantity"]), "why": entry.get("why", ""),
        }
        for entry in published()
        if of.name in entry["models"] and tasks in entry.get("tasks", [tasks])
    ]
    columns = ("paper", "table", "method", "name", "quantity", "printed", "value", "computed", "why")
    return pd.DataFrame(lines, columns=list(columns))

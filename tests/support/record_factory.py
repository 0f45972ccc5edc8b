"""Records made up from accuracies, written through the package's own writer."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from fusionbench_lite.tables import records
from fusionbench_lite.tables.rows import Row, Rows, write_rows
from fusionbench_lite.tables.statistics import wilson

TASKS = ("digits", "letters", "signs", "garments")


def selection(correct: dict[str, np.ndarray], *, step: int = 0, uses_test_labels: bool = False) -> dict[str, Any]:
    """One entry of `selections` from the per-example correctness."""
    cells = {}
    for task, hits in correct.items():
        count, size = int(hits.sum()), len(hits)
        cells[task] = {
            "metric": "accuracy",
            "value": count / size,
            "correct": count,
            "examples": size,
            "interval": list(wilson(count, size)),
        }
    average = sum(cell["value"] for cell in cells.values()) / len(cells)
    return {"step": step, "uses_test_labels": uses_test_labels, "per_task": cells, "average": average}


def result(method: str, chosen: dict[str, Any], *, seed: int = 0, limit: int | None = None, **extra: Any) -> dict[str, Any]:
    """A result.json of schema version 1."""
    tasks = list(chosen["last"]["per_task"])
    identity = {"method": method, "seed": seed, "limit": limit, "tasks": tasks, **extra}
    return {
        "schema_version": 1,
        "key": records.key(identity),
        "config": {"method": {"name": method}},
        "method": method,
        "hyperparameters": {},
        "model": "vit_mini",
        "tasks": tasks,
        "task_set": "mini8",
        "checkpoints": {"family": "embedded", "files": {}},
        "data": {task: f"sha-{task}-{seed}" for task in tasks},
        "select": "last",
        "seeds": {"seed": seed, "checkpoints": seed},
        "limit": limit,
        "versions": {},
        "git_revision": None,
        "device": "cpu",
        "device_name": "",
        "selections": chosen,
        "seconds": {"load": 0.5, "merge": 1.25, "adapt": 20.0 if len(chosen) > 1 else 0.0, "evaluate": 2.0, "total": 23.75},
        "peak_bytes": 123456,
        **extra,
    }


def hits(accuracy: float, size: int = 500, seed: int = 0) -> np.ndarray:
    """Correctness of `size` examples with the given accuracy; one seed, one order, so that methods agree a lot."""
    difficulty = np.random.default_rng(seed).permutation(size)
    return difficulty < round(accuracy * size)


def store(
    results_dir: Path,
    method: str,
    accuracies: dict[str, float],
    *,
    best: dict[str, float] | None = None,
    seed: int = 0,
    limit: int | None = None,
    size: int = 500,
    **extra: Any,
) -> str:
    """Write a record; `best` adds a best_test selection. Returns its key."""
    arrays = {"last": {task: hits(a, size, seed) for task, a in accuracies.items()}}
    chosen = {"last": selection(arrays["last"], step=300 if best else 0)}
    if best:
        arrays["best_test"] = {task: hits(a, size, seed) for task, a in best.items()}
        chosen["best_test"] = selection(arrays["best_test"], step=200, uses_test_labels=True)
    samples = {
        name: {task: {"predictions": np.zeros(size, np.int64), "correct": c} for task, c in tasks.items()}
        for name, tasks in arrays.items()
    }
    data = result(method, chosen, seed=seed, limit=limit, **extra)
    records.write(results_dir, data, samples)
    return str(data["key"])


def experiment(results_dir: Path, *, seeds: int = 1, name: str = "mini/demo", limit: int | None = None) -> Rows:
    """A small experiment: three references, two data-free rows and one adaptive row with both selections."""
    base = {"pretrained": 0.52, "individual": 0.96, "traditional_mtl": 0.94, "task_arithmetic": 0.70, "tsv_m": 0.78}
    rows = []
    for method, accuracy in {**base, "adarank_tsvm": 0.86}.items():
        keys = []
        for seed in range(seeds):
            given = {task: accuracy + 0.01 * ((i + seed) % 3) for i, task in enumerate(TASKS)}
            best = {task: a + 0.01 for task, a in given.items()} if method == "adarank_tsvm" else None
            keys.append(store(results_dir, method, given, best=best, seed=seed, limit=limit))
        rows.append(Row(method.replace("_", " "), method, tuple(keys)))
    manifest = Rows(name, "Merging methods on eight tasks", tuple(rows), "Which methods recover the experts?")
    write_rows(results_dir, manifest)
    return manifest

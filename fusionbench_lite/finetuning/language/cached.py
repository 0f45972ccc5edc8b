"""Experts of a small language model, trained on first use and kept in the cache in the own arrangement.

    <cache>/zoo/<model>-<key>/pretrained, TASK, manifest.json

The key covers everything that decides the weights. A damaged file is trained again, alone; a training that was interrupted
goes on.
"""

from __future__ import annotations

import dataclasses
import hashlib
import importlib.metadata
import json
from collections.abc import Mapping
from pathlib import Path

from fusionbench_lite.data.text import TextTask
from fusionbench_lite.finetuning.embedded import fixed_threads, threads
from fusionbench_lite.finetuning.language.experts import VERSION, Report, data_sha256, train_expert
from fusionbench_lite.finetuning.language.folder import base_sha256
from fusionbench_lite.finetuning.language.recipes import LanguageRecipe


def cached_experts(
    model: str, pretrained: Path, tasks: Mapping[str, TextTask], recipe: LanguageRecipe, *, cache: Path, seed: int, report: Report
) -> Path:
    """Return the folder of the experts of these tasks, on a processor with at most two threads, training what is missing."""
    content = {
        "version": VERSION, "base": base_sha256(pretrained), "recipe": dataclasses.asdict(recipe), "seed": seed,
        "data": {name: data_sha256(task) for name, task in sorted(tasks.items())}, "threads": threads(),
        "libraries": {name: importlib.metadata.version(name) for name in ("torch", "transformers")},
    }
    key = hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()[:16]
    folder = cache / "zoo" / f"{model}-{key}"
    with fixed_threads():
        for task in tasks.values():
            train_expert(pretrained, task, recipe, out=folder, seed=seed, model=model, report=report)
    return folder

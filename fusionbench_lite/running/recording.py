"""What a run leaves behind: what its record is known by, result.json, and the predictions."""

from __future__ import annotations

import dataclasses
import importlib.metadata
import platform
import resource
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

import fusionbench_lite
from fusionbench_lite import registry
from fusionbench_lite.data import fingerprint
from fusionbench_lite.evaluation.batches import earlier_peak
from fusionbench_lite.evaluation.evaluator import Evaluation, average
from fusionbench_lite.planning import plan as planning
from fusionbench_lite.planning import settings
from fusionbench_lite.planning.plan import Plan
from fusionbench_lite.tables import records, schema, statistics

if TYPE_CHECKING:
    from fusionbench_lite.suites.suite import Suite

RESULTS_SINCE = "0.2.0"
"""The first version whose results are those of this one: part of every key, to be raised when a method's results change."""
_LIBRARIES = ("torch", "torchvision", "lightning", "open_clip_torch", "transformers", "pillow", "numpy", "hydra-core")


@dataclasses.dataclass(frozen=True)
class Selection:
    """The predictions that one selection rule picks, and the step they were made at."""

    step: int
    uses_test_labels: bool
    evaluation: Evaluation


@dataclasses.dataclass(frozen=True)
class Outcome:
    """What a run found: predictions per selection rule, writers of further files, the bytes that a server of all tasks
    keeps (`Merged.storage`; empty for an adaptation), what the method warned of, and the evaluations of an adaptation."""

    selections: Mapping[str, Selection]
    files: Mapping[str, Callable[[Path], None]]
    storage: Mapping[str, int] = dataclasses.field(default_factory=dict)
    warnings: tuple[str, ...] = ()
    evaluations: Sequence[Mapping[str, Any]] = ()


def identity(plan: Plan, suite: Suite, base: str | None = None) -> dict[str, Any]:
    """Return everything that determines the numbers of a run; its hash names the record.

    Which evaluation is shown (`select`) is left out: a record holds all of them. `base` stands for the merged model
    that adapters sit on.
    """
    own: dict[str, Any] = {} if base is None else {"base": base}
    checkpoints: Any = dict(suite.files)
    if plan.backbone.layout is not None:  # published files count by what they hold, wherever they lie
        checkpoints = [sorted(suite.files.values()), dict(suite.expert_hashes), dict(suite.head_hashes)]
        own["layout"] = plan.backbone.layout
        if planning.reads_training(plan):
            own["training"] = {task: fingerprint(entry.train_images) for task, entry in suite.data.items()}
    if plan.precision == "bf16":
        own["evaluation"] = "bf16"
    return own | {
        "schema": schema.VERSION,
        "version": RESULTS_SINCE,
        "method": plan.method,
        "hyperparameters": registry.get(plan.method).known_by(plan.values),
        "settings": {name: setting.value for name, setting in plan.settings.items()},
        "model": plan.model,
        "tasks": list(plan.tasks.names),
        "checkpoints": checkpoints,
        "experts": list(suite.experts),
        "recipe": dict(plan.checkpoints["recipe"] or {}),
        "data": suite.data_hashes,
        "seed": plan.seed,
        "limit": plan.limit,
        "device": torch.device(suite.device).type,
        "precision": plan.precision,
        "chunk": plan.trainer["chunk"],
    }


def result(
    plan: Plan, suite: Suite, key: str, outcome: Outcome, seconds: Mapping[str, float]
) -> dict[str, Any]:
    """Return the content of result.json (design section 6)."""
    base = planning.base_of(plan)
    chosen = {**(base.hyperparameters if base else {}), **plan.hyperparameters}
    caveats = [*suite.caveats, *settings.caveats(chosen, plan.backbone)]
    return {
        "schema_version": schema.VERSION,
        "key": key,
        "config": plan.config,
        "method": plan.method,
        "hyperparameters": {
            name: dataclasses.asdict(setting) for name, setting in {**plan.hyperparameters, **plan.settings}.items()
        },
        "model": plan.model,
        "tasks": list(plan.tasks.names),
        "task_set": plan.tasks.label,
        "checkpoints": {
            "family": suite.family, "layout": plan.backbone.layout, "files": dict(suite.files),
            "sources": dict(suite.sources),
        },
        "data": suite.data_hashes,
        **_images(suite),
        **({"caveats": caveats} if caveats else {}),
        "select": plan.select,
        "seeds": {"seed": plan.seed, "checkpoints": plan.checkpoints_seed},
        "limit": plan.limit,
        "versions": _versions(),
        "git_revision": _git_revision(),
        "device": str(suite.device),
        "device_name": _device_name(suite.device),
        "precision": plan.precision,
        "selections": {name: _selection(chosen) for name, chosen in outcome.selections.items()},
        "storage": dict(outcome.storage),
        "warnings": list(outcome.warnings),
        **({"evaluations": list(outcome.evaluations)} if outcome.evaluations else {}),
        "seconds": dict(seconds),
        "peak_bytes": peak_bytes(suite.device),
    }


def _images(suite: Suite) -> dict[str, Any]:
    """Return where the images of every task come from, where that is known."""
    known = {task: {"source": entry.source, "files": dict(entry.files)} for task, entry in suite.data.items() if entry.source}
    return {"images": known} if known else {}


def samples(selections: Mapping[str, Selection]) -> dict[str, Any]:
    """Return the arrays of samples.npz: predictions and correctness per selection rule, task and example."""
    return {
        f"{name}/{task}/{part}": getattr(outcome, part)
        for name, chosen in selections.items()
        for task, outcome in chosen.evaluation.items()
        for part in ("predictions", "correct")
    }


def write(plan: Plan, record: Mapping[str, Any], outcome: Outcome) -> None:
    """Write the record, atomically."""
    records.write(plan.results_dir, record, samples(outcome.selections), outcome.files)


def _selection(chosen: Selection) -> dict[str, Any]:
    per_task = {}
    for task, outcome in chosen.evaluation.items():
        correct, examples = int(outcome.correct.sum()), len(outcome.correct)
        low, high = statistics.wilson(correct, examples)
        per_task[task] = {
            "metric": "accuracy", "value": correct / examples, "correct": correct, "examples": examples,
            "interval": [low, high],
        }
    return {
        "step": chosen.step, "uses_test_labels": chosen.uses_test_labels, "per_task": per_task,
        "average": average(chosen.evaluation),
    }


def peak_bytes(device: torch.device) -> int:
    """Return the largest memory the process has used so far: of the GPU where there is one, else resident memory."""
    if device.type == "cuda":
        return max(int(torch.cuda.max_memory_allocated(device)), earlier_peak(device))
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


def _versions() -> dict[str, str]:
    versions = {"fusionbench_lite": fusionbench_lite.__version__, "python": platform.python_version()}
    for library in _LIBRARIES:
        try:
            versions[library] = importlib.metadata.version(library)
        except importlib.metadata.PackageNotFoundError:
            continue
    return versions


def _git_revision() -> str | None:
    """Return the commit of the checkout that runs, with "+" where it has local changes; None outside a checkout."""
    root = Path(fusionbench_lite.__file__).resolve().parent.parent
    if not (root / ".git").exists():
        return None
    try:
        git = ["git", "-C", str(root)]
        head = subprocess.run([*git, "rev-parse", "HEAD"], capture_output=True, text=True, check=True).stdout.strip()
        changed = subprocess.run([*git, "status", "--porcelain"], capture_output=True, text=True, check=True).stdout
    except (OSError, subprocess.CalledProcessError):
        return None
    return head + ("+" if changed.strip() else "")


def _device_name(device: torch.device) -> str:
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    return platform.processor() or platform.machine()

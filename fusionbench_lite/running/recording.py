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

from fusionbench_lite import registry
from fusionbench_lite.base.version import __version__
from fusionbench_lite.evaluation.measures import ACCURACY
from fusionbench_lite.evaluation.passes import earlier_peak
from fusionbench_lite.evaluation.results import Evaluation, TaskResult, average
from fusionbench_lite.paths import package_dir
from fusionbench_lite.planning import plan as planning
from fusionbench_lite.planning import settings
from fusionbench_lite.planning.plan import Plan
from fusionbench_lite.tables import records, schema

if TYPE_CHECKING:
    from fusionbench_lite.evaluation.suite import Suite
    from fusionbench_lite.running.clock import Clock

RESULTS_SINCE = "0.2.0"
"""The first version whose results are those of this one: part of every key, to be raised when a method's results change."""
_LIBRARIES = ("torch", "torchvision", "lightning", "open_clip_torch", "transformers", "tokenizers", "pillow", "numpy", "hydra-core")


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
    content: dict[str, Any] = {} if base is None else {"base": base}
    checkpoints: Any = dict(suite.files)
    content |= suite.details
    if suite.by_content:  # published files count by what they hold, wherever they lie
        checkpoints = [sorted(suite.files.values()), dict(suite.expert_hashes), dict(suite.head_hashes)]
        if plan.reads_training:
            read = plan.seen if registry.get(plan.method).adaptive else suite.tasks
            content["training"] = {task: suite.training_hash(task) for task in read}
    wanted = plan.wanted
    if wanted.precision == "bf16":
        content["evaluation"] = "bf16"
    kind_of_device = torch.device(suite.device).type
    if registry.get(plan.method).noisy and kind_of_device != "cpu":  # earlier versions drew on the processor
        content["noise"] = kind_of_device
    judged = {task: entry.metric for task, entry in suite.tasks.items() if entry.metric != ACCURACY.name}
    if judged:
        content["metrics"] = judged
    return content | {
        "schema": schema.KEYED_AS,
        "version": RESULTS_SINCE,
        "method": plan.method,
        "hyperparameters": registry.get(plan.method).known_by(plan.values),
        "settings": settings.known_by(plan.settings),
        "model": plan.model,
        "tasks": list(plan.tasks),
        "checkpoints": checkpoints,
        "experts": list(suite.experts),
        "recipe": dict(wanted.recipe),
        "data": suite.data_hashes,
        "seed": plan.seed,
        "limit": wanted.limit,
        "device": kind_of_device,
        "precision": wanted.precision,
        "chunk": plan.trainer["chunk"],
    }


def result(
    plan: Plan, suite: Suite, key: str, outcome: Outcome, clock: Clock
) -> dict[str, Any]:
    """Return the content of result.json (docs/decisions.md, D31)."""
    base = planning.base_of(plan)
    chosen = {**(base.hyperparameters if base else {}), **plan.hyperparameters}
    defaults = {name: setting.value for name, setting in chosen.items() if setting.source == "default"}
    caveats = [*suite.caveats, *plan.kind.caveats(plan.wanted, defaults)]
    return {
        "schema_version": schema.VERSION,
        "key": key,
        "config": plan.config,
        "method": plan.method,
        "hyperparameters": {
            name: dataclasses.asdict(setting) for name, setting in {**plan.hyperparameters, **plan.settings}.items()
        },
        "model": plan.model,
        "tasks": list(plan.tasks),
        "task_set": plan.task_set,
        **({"scale": "mini"} if plan.wanted.family == "embedded" else {}),
        **({"experts": list(plan.seen)} if len(plan.seen) < len(plan.tasks) else {}),
        "checkpoints": {
            "family": suite.family, "layout": suite.details.get("layout"), "files": dict(suite.files),
            "sources": dict(suite.sources),
        },
        **({"model_details": details} if (details := {k: v for k, v in suite.details.items() if k != "layout"}) else {}),
        "data": suite.data_hashes,
        **_images(suite),
        **({"caveats": caveats} if caveats else {}),
        "select": plan.select,
        "seeds": {"seed": plan.seed, "checkpoints": plan.wanted.checkpoints_seed},
        "limit": plan.wanted.limit,
        "versions": _versions(),
        "git_revision": _git_revision(),
        "device": str(suite.device),
        "device_name": _device_name(suite.device),
        "precision": plan.wanted.precision,
        "selections": {name: _selection(chosen) for name, chosen in outcome.selections.items()},
        "storage": dict(outcome.storage),
        "warnings": list(outcome.warnings),
        **({"evaluations": list(outcome.evaluations)} if outcome.evaluations else {}),
        "seconds": clock.total(),
        "peak_bytes": peak_bytes(suite.device),
        **({"peaks": dict(clock.peaks)} if clock.peaks else {}),
    }


def _images(suite: Suite) -> dict[str, Any]:
    """Return where the images of every task come from, where that is known."""
    sources = {task: {"source": entry.source, "files": dict(entry.files)} for task, entry in suite.tasks.items() if entry.source}
    return {"images": sources} if sources else {}


def samples(selections: Mapping[str, Selection]) -> dict[str, Any]:
    """Return the arrays of samples.npz: predictions per selection rule, task and example, beside them correctness; for a metric
    of the whole set the labels, so that records can be compared without the data."""
    return {
        f"{name}/{task}/{part}": getattr(outcome, part)
        for name, chosen in selections.items()
        for task, outcome in chosen.evaluation.items()
        for part in ("predictions", "labels" if outcome.correct is None else "correct", *_texts(outcome))
    }


def _texts(outcome: TaskResult) -> tuple[str, ...]:
    return () if outcome.answers is None else ("answers",)


def write(plan: Plan, record: Mapping[str, Any], outcome: Outcome) -> None:
    """Write the record, atomically."""
    records.write(plan.results_dir, record, samples(outcome.selections), outcome.files)


def _selection(chosen: Selection) -> dict[str, Any]:
    return {
        "step": chosen.step, "uses_test_labels": chosen.uses_test_labels,
        "per_task": {task: _cell(outcome) for task, outcome in chosen.evaluation.items()},
        "average": average(chosen.evaluation),
    }


def _cell(outcome: TaskResult) -> dict[str, Any]:
    """Return the entry of a task; what is not accuracy says how its numbers are read."""
    measure, correct = outcome.measure, outcome.correct
    return {
        "metric": outcome.metric, "value": outcome.value, **({} if correct is None else {"correct": int(correct.sum())}),
        "examples": len(outcome.labels), "interval": list(outcome.interval),
        **({} if outcome.confidence is None else {"confidence": outcome.confidence}),
        **({} if outcome.unreadable is None else {"unreadable": outcome.unreadable}),
        **({} if measure == ACCURACY else {"label": measure.label, "unit": measure.unit, "direction": measure.direction}),
    }


def peak_bytes(device: torch.device) -> int:
    """Return the largest memory the process has used so far: of the GPU where there is one, else resident memory."""
    if device.type == "cuda":
        return max(int(torch.cuda.max_memory_allocated(device)), earlier_peak(device))
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


def _versions() -> dict[str, str]:
    versions = {"fusionbench_lite": __version__, "python": platform.python_version()}
    for library in _LIBRARIES:
        try:
            versions[library] = importlib.metadata.version(library)
        except importlib.metadata.PackageNotFoundError:
            continue
    return versions


def _git_revision() -> str | None:
    """Return the commit of the checkout that runs, with "+" where it has local changes; None outside a checkout."""
    root = package_dir().parent
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

"""Numbers of tables that need no run: parameters of a planned run, and examples and classes of a task. Never imports torch."""

from __future__ import annotations

import functools
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from fusionbench_lite import registry
from fusionbench_lite.errors import InputError, did_you_mean
from fusionbench_lite.planning.plan import Plan
from fusionbench_lite.weights.architecture import Architecture
from fusionbench_lite.weights.costs import Learned

PARAMETERS = ("total", "learned", "extra", "relative", "share")
SPLITS = ("train", "validation", "test", "classes")
UNDECLARED = Learned(None, note="it does not say what it learns")
NOTHING = Learned({})
"""Of a merge into one model without data."""


def parameters(plan: Plan, what: str) -> int | float:
    """Return a number of parameters of a run, as papers count them (docs/decisions.md, D13).

    `total`: of the models that it starts from, one for `pretrained` and else the experts. `learned`: in all phases together.
    `extra`: kept at inference beyond one encoder and the heads. `relative`: all that is kept, in encoders. `share`: learned of the
    total, in percent. Raises InputError for another number, a model without a count, and a method that does not apply to it.
    """
    if what not in PARAMETERS:
        raise InputError(f"unknown number of parameters {what!r}: {did_you_mean(what, PARAMETERS)}")
    of, tasks = plan.kind.counted(plan.wanted), len(plan.experts or plan.tasks)
    if of is None:
        raise InputError(f"nothing says which tensors model {plan.model!r} has: its parameters cannot be counted")
    total = of.parameters * (1 if plan.method == "pretrained" else tasks)
    if what == "total":
        return total
    size = learned(of, tasks, plan.method, plan.values)
    if size.counts is None or size.total is None:
        raise InputError(f"method {plan.method!r} has no number of parameters for {plan.model}: {size.note}")
    values = {"learned": size.total, "extra": size.extra, "relative": models_kept(of, size), "share": 100 * size.total / total}
    return values[what]


def learned(of: Architecture, tasks: int, method: str, values: Mapping[str, Any] | None = None) -> Learned:
    """Return what a method learns and keeps with these hyperparameters, its defaults where `values` has none.

    Where it chooses matrices, they are those of the architecture's blocks. Raises MergeError for an unknown method or
    hyperparameter.
    """
    entry = registry.get(method, learning=True)
    if entry.learned is None:
        return NOTHING if not (entry.adaptive or entry.per_task or entry.routed) else UNDECLARED
    of_model = {"matrices": of.policy} if "matrices" in entry.defaults else {}
    return entry.learned(of, tasks, entry.configure(**{**of_model, **(values or {})}))


def models_kept(of: Architecture, size: Learned) -> float:
    """Return what is kept at inference in encoders, heads aside."""
    return (of.parameters + size.extra) / of.parameters


def size(task: str, what: str, variant: str = "tall") -> int:
    """Return the number of examples of a split of a published task, or of its classes: of the 20 image tasks, and of GLUE.

    `variant` is whose splits an image task has. MNLI has two validation and test splits, `mnli_matched` and `mnli_mismatched`.
    Raises InputError for what is not published, with the nearest name.
    """
    from fusionbench_lite.data.vision import tasks as images

    if what not in SPLITS:
        raise InputError(f"unknown size {what!r}: {did_you_mean(what, SPLITS)}")
    if task in images.names():
        entry = images.task(task, variant)
        found: Mapping[str, int] = {"train": entry.train, "test": entry.test, "classes": entry.classes}
    elif task in _glue():
        found = _glue()[task]
    else:
        raise InputError(f"no size of task {task!r} is published: {did_you_mean(task, [*images.names(), *_glue()])}")
    if what not in found:
        raise InputError(f"task {task!r} has no number of {what}: it has {', '.join(found)}")
    return found[what]


@functools.cache
def _glue() -> dict[str, dict[str, int]]:
    import yaml

    from fusionbench_lite.data.text import descriptions

    sizes: dict[str, dict[str, int]] = yaml.safe_load(Path(descriptions.__file__).with_name("glue_sizes.yaml").read_text("utf-8"))
    return sizes

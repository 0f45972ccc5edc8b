"""How much every adaptive method learns and keeps, by formulas, beside what the papers print.

Specification of the adaptive methods, §0.1, §0.2, §7 to §11 and §18. Hyperparameters are the methods' defaults.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from importlib import resources
from typing import Any

import pandas as pd
import yaml

from fusionbench_lite.resources.inventories import TENSORS_PER_BLOCK, TEXT_BLOCKS, Inventory
from fusionbench_lite.tables.families import label

PUBLISHED = "published_sizes.yaml"
SURGERY_RANK, PROB_HIDDEN, META_RANK, PARETO_RANK = 16, 128, 64, 16
COMMON_FRACTION, TWIN_RATIO = 0.8, 0.1


@dataclass(frozen=True)
class Size:
    """`learned` {what: number of parameters}; `extra`: parameters kept at inference beyond one encoder and the heads.

    None where the method does not apply to the model, with the reason as `note`.
    """

    learned: Mapping[str, int] | None
    extra: int = 0
    note: str = ""
    task_id: bool = False
    parts: Mapping[str, int] = field(default_factory=dict)

    @property
    def learnable(self) -> int | None:
        """The number of parameters that are learned, in all phases together."""
        return None if self.learned is None else sum(self.learned.values())


Formula = Callable[[Inventory, int], Size]


def _coefficients(each: bool) -> Formula:
    def formula(of: Inventory, tasks: int) -> Size:
        return Size({"coefficients": tasks * (of.count if each else 1)})

    return formula


def _adamerging_iso_cts(of: Inventory, tasks: int) -> Size:
    return Size({"coefficients": tasks * of.count, "coefficients of common blocks": len(of.matrices)})


def _adarank(of: Inventory, tasks: int) -> Size:
    """λ of every task and tensor, and a bit per singular component of every task and masked matrix (AdaRank, Eq. 5)."""
    return Size(
        {"coefficients": tasks * of.count, "mask logits": tasks * of.components},
        parts={"unused scalars of the released code": of.count - len(of.matrices)},
    )


def _adarank_iso_cts(of: Inventory, tasks: int) -> Size:
    logits = 0
    for shape in of.matrices:
        common = int(COMMON_FRACTION * min(shape))
        logits += common + tasks * ((min(shape) - common) // tasks)
    return Size({**(_adamerging_iso_cts(of, tasks).learned or {}), "mask logits": logits})


def _concrete_ta(of: Inventory, tasks: int) -> Size:
    return Size({"mask logits": of.parameters})


def _concrete_am(of: Inventory, tasks: int) -> Size:
    return Size({"mask logits": of.parameters, "coefficients": tasks * of.count})


def _doge_am(of: Inventory, tasks: int) -> Size:
    shared = sum(map(math.prod, of.matrices))
    return Size(
        {"shared vector": shared, "coefficients": tasks * len(of.matrices)},
        note=f"one vector per task as in the released code: {tasks * shared:,}",
    )


def _awd_am(of: Inventory, tasks: int) -> Size:
    return Size({"redundant vector": of.parameters, "coefficients": tasks * of.count})


def _surgery(of: Inventory, tasks: int) -> Size:
    """Down and up projections of the final feature, without biases (Representation Surgery)."""
    own = 2 * SURGERY_RANK * of.feature
    return Size({"adapters": tasks * own}, tasks * own, f"{own:,} per task", True, {"per task": own})


def _surgery_v2(of: Inventory, tasks: int) -> Size:
    own = of.blocks * 2 * SURGERY_RANK * of.width + 2 * SURGERY_RANK * of.feature
    return Size({"adapters": tasks * own}, tasks * own, f"{own:,} per task", True, {"per task": own})


def _prob_surgery(of: Inventory, tasks: int) -> Size:
    own, kept = 3 * of.feature * PROB_HIDDEN, 2 * of.feature * PROB_HIDDEN
    note = f"{own:,} per task, of which evaluation needs {kept:,}: down projection and mean head"
    return Size({"adapters": tasks * own}, tasks * kept, note, True, {"per task": own})


def _metamerging(of: Inventory, tasks: int) -> Size:
    adapter = 2 * of.width * META_RANK + META_RANK + of.width
    own = of.blocks * adapter
    note = f"{own:,} per task: an adapter of {adapter:,} after each of {of.blocks} blocks"
    learned = {"coefficients": tasks, "adapters": tasks * own}
    return Size(learned, tasks * own, note, True, {"adapter": adapter, "per task": own})


def _pareto_merging(of: Inventory, tasks: int) -> Size:
    low_rank = 0
    for shape in of.matrices:
        rank = min(PARETO_RANK, *shape)
        low_rank += rank * sum(shape) + tasks * rank**2
    return Size({"coefficients": tasks * of.count, "low-rank tensors": low_rank}, low_rank, "and a preference over the tasks")


def _wemoe(of: Inventory, tasks: int) -> Size:
    """T task vectors of the MLPs and a router d → d → T per block stay at inference (WEMoE)."""
    if not of.perceptrons:
        return Size(None, note="no module is called mlp")
    router = of.width**2 + of.width + of.width * tasks + tasks
    extra = tasks * of.perceptrons + of.blocks * router
    return Size(
        {"routers": of.blocks * router}, extra, f"{router:,} per router",
        parts={"router": router, "kept of what is read": of.used + extra},
    )


def _twin_merging(of: Inventory, tasks: int) -> Size:
    """T truncated task vectors, a factor pair per matrix, and a router d → 2d → 2d → T with batch normalisation."""
    factors = 0
    for name, shape in of.tensors.items():
        if not name.endswith("bias"):
            factors += int(TWIN_RATIO * min(shape)) * sum(shape) if len(shape) == 2 else math.prod(shape)
    wide = 2 * of.width
    linear = of.width * wide + wide + wide * wide + wide + wide * tasks + tasks
    learned = {"router": linear, "batch normalisation": 4 * wide}
    extra = tasks * factors + sum(learned.values()) + 4 * wide  # running means and variances
    return Size(learned, extra, f"{factors:,} per truncated task vector", parts={"per task": factors})


def _traditional_mtl(of: Inventory, tasks: int) -> Size:
    return Size({"encoder": of.parameters})


def _individual(of: Inventory, tasks: int) -> Size:
    return Size({"encoders": tasks * of.parameters}, (tasks - 1) * of.parameters, task_id=True)


METHODS: dict[str, Formula] = {
    "individual": _individual, "traditional_mtl": _traditional_mtl,
    "adamerging_taskwise": _coefficients(False), "adamerging_pp_taskwise": _coefficients(False),
    "adamerging_layerwise": _coefficients(True), "adamerging_pp_layerwise": _coefficients(True),
    "adamerging_tsvm": _coefficients(True), "adamerging_cart": _coefficients(True), "adamerging_iso_cts": _adamerging_iso_cts,
    "adarank_ta": _adarank, "adarank_cart": _adarank, "adarank_tsvm": _adarank, "adarank_iso_cts": _adarank_iso_cts,
    "concrete_ta": _concrete_ta, "concrete_am": _concrete_am, "doge_am": _doge_am, "awd_am": _awd_am,
    "surgery": _surgery, "surgery_v2": _surgery_v2, "prob_surgery": _prob_surgery, "metamerging": _metamerging,
    "pareto_merging": _pareto_merging, "wemoe": _wemoe, "twin_merging": _twin_merging,
}


def table(of: Inventory, tasks: int) -> pd.DataFrame:
    """Return a line per method: what it learns, what it keeps at inference, and how many encoders that is."""
    lines = []
    for method, formula in METHODS.items():
        size = formula(of, tasks)
        applies = size.learned is not None
        detail = "; ".join(f"{what} {number:,}" for what, number in (size.learned or {}).items()) if applies else ""
        lines.append(
            {
                "method": method, "name": label(method), "learnable": size.learnable, "detail": detail,
                "extra": size.extra if applies else None, "needs_task": size.task_id,
                "models_kept": (of.parameters + size.extra) / of.parameters if applies else None, "note": size.note,
            }
        )
    return pd.DataFrame(lines).astype({"learnable": "Int64", "extra": "Int64"})


def quantity(of: Inventory, tasks: int, method: str, what: str) -> float | None:
    """Return a number that a paper prints: of a method, or with method "" of the encoder alone."""
    text_tower = TEXT_BLOCKS * TENSORS_PER_BLOCK
    encoder: dict[str, float] = {
        "parameters": of.parameters, "parameters read": of.used, "task vectors": tasks * of.parameters,
        "tensors of complete CLIP": of.count + text_tower,
    }
    if not method:
        return encoder.get(what)
    size = METHODS[method](of, tasks)
    if size.learned is None:
        return None
    return {
        "learnable": size.learnable, "models kept": (of.parameters + size.extra) / of.parameters, "extra": size.extra,
        **size.learned, **size.parts,
    }.get(what)


@functools.cache
def published() -> list[dict[str, Any]]:
    """Return the papers' figures: paper, table, model, tasks, method, quantity, printed, value and why it differs."""
    text = resources.files("fusionbench_lite.resources").joinpath(PUBLISHED).read_text(encoding="utf-8")
    return list(yaml.safe_load(text))


def compare(of: Inventory, tasks: int) -> pd.DataFrame:
    """Return the papers' figures for this model and number of tasks beside the computed ones."""
    lines = [
        {
            "paper": entry["paper"], "table": entry["table"], "method": entry["method"],
            "name": label(entry["method"]) if entry["method"] else "encoder", "quantity": entry["quantity"],
            "printed": str(entry["printed"]), "value": entry["value"],
            "computed": quantity(of, tasks, entry["method"], entry["quantity"]), "why": entry.get("why", ""),
        }
        for entry in published()
        if of.model in entry["models"] and tasks in entry.get("tasks", [tasks])
    ]
    columns = ("paper", "table", "method", "name", "quantity", "printed", "value", "computed", "why")
    return pd.DataFrame(lines, columns=list(columns))

"""The keys of ten runs without running them: real plans on a suite of made-up hashes.

`python -m tests.support.identities` prints what tests/running/identities_0_4.yaml holds, as this version has it.
"""

from __future__ import annotations

import sys
from types import SimpleNamespace
from typing import Any

import yaml

from fusionbench_lite import registry
from fusionbench_lite.planning import plan as planning
from fusionbench_lite.planning.command_line import plan_of
from fusionbench_lite.planning.plan import Plan
from fusionbench_lite.running import recording
from fusionbench_lite.tables import records

LINES = (
    ["method=task_arithmetic", "method.scaling=0.4", "checkpoints.recipe={finetune_steps: 100, weight_decay: 1}", "seed=1"],
    ["method=ties_merging", "model=vit_b32", "tasks=8", "method.keep=0.1", "method.reduce=mean"],
    ["method=fisher_merging", "model=vit_b16", "tasks=14", "method.statistics.examples=64"],
    ["method=adamerging_layerwise", "preset=fusionbench", "method.adaptation.fraction=1", "steps=20", "seed=3"],
    ["method=adarank", "method.base=tsvm", "model=vit_l14", "tasks=20", "method.adaptation.held_out=64"],
    ["method=surgery", "method.base=adamerging_layerwise", "method.adaptation.base_steps=50"],
    [
        "method=tall_masks", "model=vit_b32", "model.layout=separate", "tasks=[sun397,dtd]",
        "method.threshold={sun397: 0.3, dtd: 0.5}", "precision=bf16",
    ],
    ["method=metamerging", "model=vit_b32", "tasks=8", "checkpoints=fusionbench", "precision=bf16", "steps=100"],
    ["method=nuslerp", "checkpoints.experts=2", "limit=10", "method.t=1", "trainer.chunk=64"],
    ["method=prob_surgery", "method.base=cart", "model=vit_b32", "tasks=14", "method.lr=0.01"],
)


def entry(line: list[str]) -> dict[str, Any]:
    """Return the key of a command line's run, and the values that enter it."""
    plan = plan_of([*line, "device=cpu"])
    identity = _identity(plan)
    return {"line": line, "key": records.key(identity), **{name: identity[name] for name in ("hyperparameters", "settings")}}


def _identity(plan: Plan) -> dict[str, Any]:
    base = planning.base_of(plan)
    key = None
    if base is not None:
        key = records.key(_identity(base) if registry.get(base.method).adaptive else {"values": base.values})
    return recording.identity(plan, _suite(plan), key)


def _suite(plan: Plan) -> Any:
    """Return what an identity reads of a suite."""
    tasks, layout = plan.tasks, plan.wanted.layout
    return SimpleNamespace(
        files={f"{task}.safetensors": f"file of {task}" for task in tasks},
        expert_hashes={task: f"expert of {task}" for task in tasks}, head_hashes={task: f"head of {task}" for task in tasks},
        tasks={task: SimpleNamespace(metric="accuracy") for task in tasks}, training_hash=lambda task: f"images of {task}",
        data_hashes={task: f"data of {task}" for task in tasks}, experts=dict.fromkeys(plan.experts or tasks), device="cpu",
        details={"layout": layout} if layout else {}, by_content=bool(layout),
    )


if __name__ == "__main__":
    yaml.safe_dump([entry(line) for line in LINES], sys.stdout, sort_keys=False, width=130)

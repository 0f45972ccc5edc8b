"""Whether a record answers a plan, as far as can be said before anything is loaded."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from fusionbench_lite.planning.plan import Plan
from fusionbench_lite.tables.records import RESULT

_OF_DATA = ("data", "data_dir")


def setting_of(plan: Plan) -> str:
    """Return what decides the numbers of a run, but for the content of its files and the device."""
    values = {name: chosen.value for name, chosen in {**plan.hyperparameters, **plan.settings}.items()}
    wanted = plan.wanted
    return _text(plan.method, values, plan.config, {
        "model": plan.model, "tasks": plan.tasks, "family": wanted.family, "seed": plan.seed, "limit": wanted.limit,
        "checkpoints_seed": wanted.checkpoints_seed, "precision": wanted.precision,
    })


def settings_there(results_dir: Path) -> frozenset[str]:
    """Return those of the records of a folder; what cannot be read is no record."""
    return frozenset(filter(None, map(_of_record, (results_dir / "records").glob(f"[!.]*/{RESULT}"))))


def _of_record(path: Path) -> str | None:
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
        values = {name: chosen["value"] for name, chosen in data["hyperparameters"].items()}
        return _text(data["method"], values, data["config"], {
            "model": data["model"], "tasks": data["tasks"], "family": data["checkpoints"]["family"], "seed": data["seeds"]["seed"],
            "limit": data["limit"], "checkpoints_seed": data["seeds"]["checkpoints"], "precision": data["precision"],
        })
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return None


def _text(method: str, values: Mapping[str, Any], config: Mapping[str, Any], others: Mapping[str, Any]) -> str:
    checkpoints, trainer = config.get("checkpoints") or {}, config.get("trainer") or {}
    own = {name: checkpoints.get(name) for name in ("dir", "manifest", "recipe", "experts", "tensors")}
    content = {
        "method": method, "values": values, **others, "checkpoints": own, "chunk": trainer.get("chunk"),
        **{name: config.get(name) for name in _OF_DATA},
    }
    return json.dumps(content, sort_keys=True, default=str)

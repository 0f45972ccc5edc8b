"""The layout of a folder for which no other library has a class: safetensors, and export.json, which says what they are.

    export.json          format, form, method and hyperparameters, tasks, the encoder, heads with the names of their classes
    model.safetensors    the encoder's whole state dict
    parts.safetensors    what makes it a model of its tasks (`forms`), where it is more than weights
    heads.safetensors    the heads' tensors
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from torch import Tensor

from fusionbench_lite.errors import InputError
from fusionbench_lite.exporting import encoders, heads
from fusionbench_lite.exporting.forms import WHAT, Form

if TYPE_CHECKING:
    from fusionbench_lite.exporting.remaking import Remade

FORMAT = 1
DESCRIPTION, MODEL, PARTS = "export.json", "model.safetensors", "parts.safetensors"


def write(made: Remade, form: Form, tasks: tuple[str, ...], encoder: Mapping[str, Any], folder: Path) -> None:
    """Write a folder of this layout for some tasks."""
    from safetensors.torch import save_file

    chosen = {task: made.suite.heads[task] for task in tasks}
    described = {task: heads.described(task, head, made.suite.tasks[task].classes) for task, head in chosen.items()}
    content = {
        "format": FORMAT, "form": form.kind, "method": made.plan.method, "hyperparameters": made.plan.values,
        "model": made.plan.model, "tasks": list(tasks), "experts": list(made.plan.seen), "encoder": dict(encoder),
        "heads": described,
    }
    save_file(alone(encoders.whole_state(made.suite, form.weights)), folder / MODEL)
    if form.kind != "weights":
        save_file(alone(form.parts), folder / PARTS)
    save_file(heads.tensors(chosen), folder / heads.FILE)
    (folder / DESCRIPTION).write_text(json.dumps(content, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")


def alone(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return tensors as safetensors takes them: contiguous, none sharing its memory with another."""
    return {name: tensor.detach().cpu().clone().contiguous() for name, tensor in tensors.items()}


def described(folder: Path) -> dict[str, Any]:
    """Return the content of export.json. Raises InputError where it is not there, no JSON, or of another format."""
    path = folder / DESCRIPTION
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise InputError(f"{folder} has no {DESCRIPTION}: give a folder that export wrote{_elsewhere(folder)}") from None
    except (OSError, ValueError) as error:
        raise InputError(f"{path} cannot be read ({str(error).splitlines()[0]}): export the record again") from None
    if not isinstance(content, dict) or content.get("format") != FORMAT:
        found = content.get("format") if isinstance(content, dict) else None
        raise InputError(f"{path} is of format {found!r}, this version reads {FORMAT}: export the record again with this version")
    kinds = {"form": str, "method": str, "hyperparameters": dict, "tasks": list, "encoder": dict, "heads": dict}
    for key, kind in kinds.items():
        if not isinstance(content.get(key), kind):
            raise InputError(f"{path}: {key!r} is no {kind.__name__}: export the record again")
    if content["form"] not in WHAT or set(content["heads"]) != set(content["tasks"]):
        raise InputError(f"{path}: form or heads are none that this version knows: export the record again")
    return content


def _elsewhere(folder: Path) -> str:
    if (folder / "open_clip_config.json").is_file():
        return f"; this one is open_clip's: open_clip.create_model_and_transforms('local-dir:{folder}')"
    if (folder / "adapter_config.json").is_file():
        return f"; this one is peft's: PeftModel.from_pretrained(model, {str(folder)!r})"
    if (folder / "config.json").is_file():
        return f"; this one is transformers': AutoModel.from_pretrained({str(folder)!r})"
    within = sorted(path.parent.name for path in folder.glob(f"*/{DESCRIPTION}")) if folder.is_dir() else []
    return f", such as {folder / within[0]}" if within else ""


def read(path: Path) -> dict[str, Tensor]:
    """Return the tensors of a file. Raises InputError where it is missing or damaged."""
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        return load_file(path)
    except (OSError, SafetensorError) as error:
        raise InputError(f"{path} cannot be read ({str(error).splitlines()[0]}): export the record again") from None

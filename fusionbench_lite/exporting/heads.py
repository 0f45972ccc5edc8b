"""Heads of tasks in files: their tensors, and in words what they are and which classes they name."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from fusionbench_lite.errors import InputError
from fusionbench_lite.models.heads import ZeroShotHead
from fusionbench_lite.models.language.heads import LinearHead, RobertaHead

KINDS = {"zero_shot": ZeroShotHead, "linear": LinearHead, "roberta": RobertaHead, "none": nn.Identity}
TENSORS = {
    "zero_shot": ("weight",), "linear": ("weight", "bias"), "roberta": ("dense", "dense_bias", "out", "out_bias"), "none": (),
}
FILE = "heads.safetensors"


def described(task: str, head: Callable[[Tensor], Tensor], classes: tuple[str, ...]) -> dict[str, Any]:
    """Return what a head is: its kind, its scale, and the names of its classes in order. Raises InputError for another one."""
    for name, kind in KINDS.items():
        if type(head) is kind:
            return {"kind": name, "scale": getattr(head, "scale", 1.0), "classes": list(classes)}
    raise InputError(f"task {task!r}: a head of type {type(head).__name__} has no form in files here")


def tensors(heads: Mapping[str, Any]) -> dict[str, Tensor]:
    """Return the tensors of heads, `<task>/<part>`."""
    return {
        f"{task}/{name}": tensor.detach().cpu().contiguous()
        for task, head in heads.items() for name, tensor in head.named_buffers()
    }


def rebuilt(task: str, said: Mapping[str, Any], stored: Mapping[str, Tensor]) -> nn.Module:
    """Return the head that `described` and `tensors` are of. Raises InputError where they do not fit."""
    kind = said.get("kind")
    if kind not in KINDS:
        raise InputError(f"task {task!r}: its head is of kind {kind!r}, this version knows {', '.join(KINDS)}")
    parts = {name: stored[f"{task}/{name}"] for name in TENSORS[kind] if f"{task}/{name}" in stored}
    lacking = [name for name in TENSORS[kind] if name not in parts and name != "bias"]
    if lacking:
        raise InputError(f"task {task!r}: {FILE} lacks '{task}/{lacking[0]}'")
    if kind == "none":
        return nn.Identity()
    if kind == "zero_shot":
        head: nn.Module = ZeroShotHead(parts["weight"], float(said["scale"]))
        head.get_buffer("weight").copy_(parts["weight"])  # rows have their length already, to the last bit
        return head
    if kind == "linear":
        return LinearHead(parts["weight"], float(said["scale"]), parts.get("bias"))
    return RobertaHead(*(parts[name] for name in TENSORS["roberta"]))


@torch.no_grad()
def placed(head: nn.Module, device: torch.device) -> nn.Module:
    """Return a head on a device, frozen, as it is at evaluation."""
    return head.to(device).eval().requires_grad_(False)

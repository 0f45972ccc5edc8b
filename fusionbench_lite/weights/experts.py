"""A checked, read-only view of a pretrained model and its fine-tuned experts."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from fusionbench_lite.errors import MergeError, did_you_mean
from fusionbench_lite.lazy import torch

if TYPE_CHECKING:
    from torch import Tensor

StateDict = Mapping[str, "Tensor"]


class Experts:
    """The pretrained weights and T experts, read one tensor at a time.

    Keys, shapes and dtypes are compared when the view is made; values are checked to be finite when a tensor is first
    read, so that a file behind a lazy mapping is read once. Arithmetic happens in `work_dtype(name)`: float32, or
    float64 where the base is float64. Nothing handed out shares memory with the inputs where it could be modified.

    Attributes: `tasks`, the task names in order; `names`, the floating-point tensors that methods act on, in the order
    of `pretrained`. Tensors with no dimension or no element, and integer buffers, are not listed: they stay as they
    are in `pretrained`.

    Raises MergeError: no experts, missing or extra keys, shape or dtype mismatch, non-finite values.
    """

    def __init__(self, pretrained: StateDict, experts: Mapping[str, StateDict]) -> None:
        if not isinstance(experts, Mapping):
            raise MergeError(f"experts must map task names to state dicts, got {type(experts).__name__}")
        if not experts:
            raise MergeError("no experts were given: a merge needs at least one {task: state dict}")
        if not isinstance(pretrained, Mapping) or not all(isinstance(v, torch.Tensor) for v in pretrained.values()):
            raise MergeError("pretrained must map names to tensors: pass model.state_dict()")
        self.pretrained = pretrained
        self.by_task = experts
        self.tasks = list(experts)
        for task, weights in experts.items():
            _check_same_layout(pretrained, task, weights)
        self.floating = [name for name, tensor in pretrained.items() if tensor.is_floating_point()]
        self.names = [name for name in self.floating if pretrained[name].dim() > 0 and pretrained[name].numel() > 0]
        self._checked: set[tuple[str | None, str]] = set()

    def __len__(self) -> int:
        return len(self.tasks)

    def work_dtype(self, name: str) -> torch.dtype:
        """Return the dtype in which the tensor is merged."""
        return torch.float64 if self.pretrained[name].dtype == torch.float64 else torch.float32

    def base(self, name: str) -> Tensor:
        """Return the pretrained tensor θ0 in the work dtype."""
        return self._read(None, name).to(self.work_dtype(name))

    def expert(self, task: str, name: str) -> Tensor:
        """Return the expert tensor θ_t in the work dtype."""
        return self._read(task, name).to(self.work_dtype(name))

    def task_vector(self, task: str, name: str) -> Tensor:
        """Return τ_t = θ_t - θ0 in the work dtype."""
        return self.expert(task, name) - self.base(name)

    def stack(self, name: str) -> Tensor:
        """Return θ_1 … θ_T as one new tensor [T, *shape] in the work dtype, in task order."""
        stacked = self._empty_stack(name)
        for row, task in zip(stacked, self.tasks, strict=True):
            row.copy_(self._read(task, name))
        return stacked

    def task_vectors(self, name: str) -> Tensor:
        """Return τ_1 … τ_T as one new tensor [T, *shape] in the work dtype, in task order."""
        return self.stack(name).sub_(self.base(name))

    def mean(self, name: str) -> Tensor:
        """Return θ̄ = (1/T) Σ θ_t in the work dtype."""
        total = self.expert(self.tasks[0], name).clone()
        for task in self.tasks[1:]:
            total += self.expert(task, name)
        return total.div_(len(self))

    def check_unread(self) -> None:
        """Check the values of every floating-point tensor that no method has read yet."""
        for name in self.floating:
            for task in (None, *self.tasks):
                self._read(task, name)

    def _empty_stack(self, name: str) -> Tensor:
        like = self.pretrained[name]
        return torch.empty((len(self), *like.shape), dtype=self.work_dtype(name), device=like.device)

    def _read(self, task: str | None, name: str) -> Tensor:
        tensor = (self.pretrained if task is None else self.by_task[task])[name].detach()
        if (task, name) not in self._checked:
            count = _count_non_finite(tensor)
            if count:
                who = "the pretrained model" if task is None else f"expert {task!r}"
                raise MergeError(
                    f"{who}: {name!r} has {count} non-finite of {tensor.numel()} values; repair or drop the checkpoint"
                )
            self._checked.add((task, name))
        return tensor


def _count_non_finite(tensor: Tensor) -> int:
    # A float64 sum of finite values is finite, short of float64 inputs near the end of their range; infinities and
    # NaNs never leave it. One pass over memory decides almost always.
    if bool(torch.isfinite(tensor.sum(dtype=torch.float64))):
        return 0
    return int(tensor.numel() - torch.isfinite(tensor).sum().item())


def _check_same_layout(pretrained: StateDict, task: str, weights: StateDict) -> None:
    if not isinstance(weights, Mapping):
        raise MergeError(f"expert {task!r} must be a state dict, got {type(weights).__name__}")
    for name in pretrained:
        if name not in weights:
            hint = did_you_mean(name, [key for key in weights if key not in pretrained])
            raise MergeError(
                f"expert {task!r} lacks key {name!r} of the pretrained model "
                f"({len(weights)} keys against {len(pretrained)}): {hint}"
            )
    for name in weights:
        if name not in pretrained:
            raise MergeError(
                f"expert {task!r} has key {name!r} that the pretrained model lacks "
                f"({len(weights)} keys against {len(pretrained)}): remove it, or use the expert's own pretrained model"
            )
    for name, base in pretrained.items():
        tensor = weights[name]
        if not isinstance(tensor, torch.Tensor):
            raise MergeError(f"expert {task!r}: {name!r} must be a tensor, got {type(tensor).__name__}")
        if tensor.shape != base.shape:
            raise MergeError(
                f"expert {task!r}: {name!r} has shape {tuple(tensor.shape)}, the pretrained model {tuple(base.shape)}; "
                "was it fine-tuned from another backbone?"
            )
        if tensor.dtype != base.dtype:
            raise MergeError(
                f"expert {task!r}: {name!r} has dtype {tensor.dtype}, the pretrained model {base.dtype}; "
                f"convert it with .to({base.dtype})"
            )


MATRIX_POLICIES = ("attn_mlp", "all_2d", "encoder_linear")
"""Which tensors an SVD method factorises: AdaRank and CART, TSV and Iso, doGe."""


def is_factorised(name: str, tensor: Tensor, policy: str) -> bool:
    """Say whether an SVD method with this `matrices` policy factorises the tensor.

    `attn_mlp`: 2-D, key contains attn or mlp and neither ln nor bias (AdaRank, CART). `all_2d`: 2-D and not
    text_projection (TSV-M, Iso-C). `encoder_linear`: 2-D, key contains encoder and weight but not layer_norm (doGe).
    Every other tensor is treated elementwise. Source: specification of the data-free methods, §15 to §17 and §21.
    """
    if tensor.dim() != 2:
        return False
    if policy == "attn_mlp":
        return ("attn" in name or "mlp" in name) and "ln" not in name and "bias" not in name
    if policy == "all_2d":
        return "text_projection" not in name
    return "encoder" in name and "weight" in name and "layer_norm" not in name

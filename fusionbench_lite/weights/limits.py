"""Merged values beyond the range of the dtype that they are stored in, and variances that no longer are any."""

from __future__ import annotations

import dataclasses
import math
import warnings
from typing import TYPE_CHECKING

from fusionbench_lite.errors import MergeError, MergeWarning
from fusionbench_lite.lazy import torch

if TYPE_CHECKING:
    from torch import Tensor


@dataclasses.dataclass
class Limits:
    """Casts merged tensors to the dtypes of the base and checks what comes of it.

    `method` is named in errors; `scaled` says whether it has a `scaling` that could be lower.
    """

    method: str
    scaled: bool = False
    negative: list[str] = dataclasses.field(default_factory=list)

    def cast(
        self, name: str, merged: Tensor, dtype: torch.dtype, *, finite: bool = False, whole: Tensor | None = None,
    ) -> Tensor:
        """Return a merged tensor in the dtype of the base; `finite` says that its values are known to be.

        It may be a part of the `whole` tensor, which is then told of.

        Raises MergeError where a value is beyond the range of the dtype, with the largest value and the limit.
        """
        stored = merged.to(dtype)
        if not (finite and dtype == merged.dtype) and not is_finite(stored):
            raise beyond(self.method, name, merged if whole is None else whole, dtype, "scaling" if self.scaled else "")
        # Of BatchNorm, which takes a root of it: a few numbers.
        if name.endswith("running_var") and name not in self.negative and bool((stored < 0).any()):
            self.negative.append(name)
        return stored

    def warn(self) -> None:
        """Warn once of merged variances below 0."""
        if self.negative:
            others = f" and {len(self.negative) - 1} more" if len(self.negative) > 1 else ""
            fix = "lower scaling, or " if self.scaled else ""
            warnings.warn(
                f"{self.method} makes variances of {self.negative[0]!r}{others} negative, where normalisation gives NaN: "
                f"{fix}average the experts, or compute the statistics of the merged model anew", MergeWarning, stacklevel=3,
            )
            self.negative.clear()


def beyond(who: str, name: str, merged: Tensor, dtype: torch.dtype, lower: str = "") -> MergeError:
    """Return the error for merged values that a dtype cannot hold; `lower` names the hyperparameters that could be lower."""
    largest = "NaN" if bool(merged.isnan().any()) else f"{float(merged.abs().amax()):.6g}"
    wider = "torch.float64" if torch.finfo(dtype).max > 1e38 else "torch.bfloat16 or torch.float32"
    fixes = [f"lower {lower}"] if lower else []
    wide = dtype == torch.float64
    fixes.append("check the size of the weights" if wide else f"give the pretrained model and the experts in {wider}")
    return MergeError(
        f"{who}: {name!r} leaves the range of {dtype}: its largest value is {largest}, the limit {torch.finfo(dtype).max:.6g}; "
        f"{', or '.join(fixes)}"
    )


def is_finite(tensor: Tensor) -> bool:
    """Say whether all values are finite, in one pass over memory unless large finite values overflow the sum: infinities
    and NaNs never leave one."""
    if not tensor.is_floating_point() or not tensor.numel() or math.isfinite(tensor.sum().item()):
        return True
    return all(math.isfinite(value.item()) for value in torch.aminmax(tensor))

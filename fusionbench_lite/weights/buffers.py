"""Integer and boolean tensors, which no method merges: whether experts changed them, and what that means."""

from __future__ import annotations

import re
import warnings
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING

from fusionbench_lite.errors import MergeError, MergeWarning
from fusionbench_lite.lazy import torch
from fusionbench_lite.weights.quantised import FIX

if TYPE_CHECKING:
    from torch import Tensor

    from fusionbench_lite.weights.specs import StateDict

_COUNTER = re.compile(r"num_.*|n_.*|.*(tracked|count(er)?s?|steps?|epochs?|updates?|iterations?|seen)", re.IGNORECASE)
"""Last parts of the names of buffers that count."""
_LISTED = 8
"""Names that a warning lists at most."""


def changed(pretrained: Mapping[str, Tensor], experts: Mapping[str, StateDict]) -> list[str]:
    """Return the names of the given counters and boolean tensors that some expert has other values of.

    `pretrained` holds the tensors to be compared. Raises MergeError for an integer tensor that differs and is no counter:
    most likely these are codes of quantised weights, and what the merged model should have is unknown.
    """
    found = []
    for name, base in pretrained.items():
        for task, weights in experts.items():
            # An adapter says what it changes; reading the rest would read the pretrained file again.
            if not base.numel() or name not in getattr(weights, "changed", weights) or _same(base, weights[name]):
                continue
            if base.dtype != torch.bool and base.numel() > 1 and not _COUNTER.fullmatch(name.rpartition(".")[2]):
                raise MergeError(
                    f"expert {task!r}: {name!r} holds integers ({base.dtype}) that differ from the pretrained model's and count "
                    f"nothing; if the model is quantised: {FIX}, else give the experts the pretrained model's {name!r}"
                )
            found.append(name)
            break
    return found


def _same(base: Tensor, other: Tensor) -> bool:
    other = other.detach().to(base.device)
    if base.device.type != "cpu":
        return torch.equal(base, other)
    # torch.equal takes five times as long: with GPT-2's masks, a tenth of what averaging costs.
    return bool((base.numpy() == other.numpy()).all())


def warn_kept(names: Iterable[str]) -> None:
    """Say which buffers of the merged model are the pretrained model's although experts changed them."""
    names = list(names)
    if names:
        listed = ", ".join(map(repr, names[:_LISTED])) + (f" and {len(names) - _LISTED} more" if len(names) > _LISTED else "")
        warnings.warn(
            f"experts changed {listed}, which no method merges: the merged model keeps the pretrained model's values",
            MergeWarning, stacklevel=3,
        )

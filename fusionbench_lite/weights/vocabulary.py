"""Language models whose vocabularies differ in size: an expert that got a [PAD] token has a row more than its base."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

from fusionbench_lite.errors import MergeError
from fusionbench_lite.fields import choice, one
from fusionbench_lite.lazy import torch
from fusionbench_lite.weights.specs import StateDict, TensorSpec, spec_of

if TYPE_CHECKING:
    from torch import Tensor

RESIZES = ("mean", "pad")
RESIZE = choice(None, RESIZES, optional=True)
_TABLE = re.compile(r"(.*\.)?(embed_tokens|lm_head|wte|word_embeddings|shared|embed_in|embed_out)\.(weight|bias)")
"""Tensors with one row per token."""


class Resized(Mapping[str, "Tensor"]):
    """Weights whose tables of tokens end with new rows, {name: all rows}: the mean of the model's own rows, or zeros.

    The mean is taken in float64 and rounded to the stored dtype.
    """

    def __init__(self, weights: StateDict, rows: Mapping[str, int], resize: str) -> None:
        self._weights, self._rows, self._resize = weights, rows, resize

    def __getitem__(self, name: str) -> Tensor:
        tensor = self._weights[name]
        if name not in self._rows:
            return tensor
        resized = torch.empty((self._rows[name], *tensor.shape[1:]), dtype=tensor.dtype, device=tensor.device)
        resized[: len(tensor)] = tensor
        resized[len(tensor) :] = tensor.mean(0, dtype=torch.float64).to(tensor.dtype) if self._resize == "mean" else 0
        return resized

    def spec(self, name: str) -> TensorSpec:
        """Return shape and dtype without reading the tensor, where the weights know them."""
        shape, dtype = spec_of(self._weights, name)
        return TensorSpec((self._rows[name], *shape[1:]) if name in self._rows else shape, dtype)

    def factors(self, name: str) -> Any:
        """Return the factors of an adapter's change, as `LoraExpert` does; None for a table with new rows."""
        read = getattr(self._weights, "factors", None)
        return read(name) if callable(read) and name not in self._rows else None

    def __getattr__(self, name: str) -> Any:
        return getattr(self._weights, name)

    def __contains__(self, name: object) -> bool:
        return name in self._weights

    def __iter__(self) -> Iterator[str]:
        return iter(self._weights)

    def __len__(self) -> int:
        return len(self._weights)


class Vocabulary:
    """Makes models with tables of different sizes fit each other (`resize` mean or pad), or refuses them (None).

    Attribute `rows`: the size that some model was brought to, None while none was; `largest`: who has it, "pretrained" or a task.
    """

    def __init__(self, resize: str | None) -> None:
        self.resize = one("resize", resize, RESIZE)
        self.rows: int | None = None
        self.largest: str | None = None

    def fit(self, pretrained: StateDict, experts: Mapping[str, StateDict]) -> tuple[StateDict, Mapping[str, StateDict]]:
        """Return the models with tables of one size, that of the largest. Raises MergeError with both sizes."""
        models: dict[str | None, StateDict] = {None: pretrained}
        models.update(experts.items())
        wanted: dict[str | None, dict[str, int]] = {task: {} for task in models}
        for name in filter(_TABLE.fullmatch, pretrained) if isinstance(pretrained, Mapping) else ():
            shapes = {task: spec_of(model, name).shape for task, model in models.items() if name in model}
            most = max(shape[0] if shape else 0 for shape in shapes.values())
            if len({shape[1:] for shape in shapes.values()}) > 1 or len({shape[:1] for shape in shapes.values()}) == 1:
                continue  # the same, or other models altogether, which the comparison of all tensors tells
            if self.resize is None:
                raise _differ(name, shapes)
            self.rows, self.largest = most, next(task for task, shape in shapes.items() if shape[0] == most)
            for task, shape in shapes.items():
                if shape[0] < most:
                    wanted[task][name] = most
        if self.resize is not None:
            models = {
                task: Resized(model, wanted[task], self.resize) if wanted[task] else model for task, model in models.items()
            }
        return models[None], {task: models[task] for task in experts}


def _differ(name: str, shapes: Mapping[str | None, tuple[int, ...]]) -> MergeError:
    base = shapes[None][0]
    task, rows = next((task, shape[0]) for task, shape in shapes.items() if shape[0] != base)
    return MergeError(
        f"expert {task!r}: {name!r} has {rows} rows, one per token, the pretrained model {base}: resize=mean gives the smaller "
        "ones rows that are the mean of their own, resize=pad rows of zeros"
    )

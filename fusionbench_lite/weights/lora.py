"""LoRA adapters of the PEFT library as experts: W = W_0 + s·B·A, folded one tensor at a time.

Source: huggingface/peft, `tuners/lora/layer.py` (`get_delta_weight` and `merge`); docs/decisions.md, D16.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from fusionbench_lite.lazy import torch
from fusionbench_lite.weights.lora_files import FOLD, AdapterFile, is_adapter, read_config
from fusionbench_lite.weights.lora_pairs import Pair, check_shape, find, fit, replacements, sort_keys
from fusionbench_lite.weights.specs import StateDict, TensorSpec, specs_of, tied_names, work_dtype

if TYPE_CHECKING:
    from torch import Tensor

__all__ = ["LoraExpert", "is_adapter", "read_adapter"]


class LoraExpert(Mapping[str, "Tensor"]):
    """The fine-tuned model of an adapter, with the keys, shapes and dtypes of `pretrained`.

    Tensors are folded when they are asked for, as PEFT's `merge_and_unload` folds them: W_0 + s·(B·A) in float32, or
    float64 where the base is float64, cast to the dtype of the base. Nothing is kept, and no file stays open.

    Attributes: `folder`; `changed`, the names of the tensors that the adapter changes.

    Raises MergeError on reading a tensor with non-finite values, or when the file is gone.
    """

    def __init__(
        self,
        file: AdapterFile,
        pretrained: StateDict,
        specs: Mapping[str, TensorSpec],
        pairs: Mapping[str, Pair],
        replaced: Mapping[str, str],
        shifts: Mapping[str, tuple[str, float]],
    ) -> None:
        self.folder = file.folder
        self.changed = frozenset((*pairs, *replaced, *shifts))
        self._file, self._pretrained, self._specs = file, pretrained, specs
        self._pairs, self._replaced, self._shifts = pairs, replaced, shifts

    def __iter__(self) -> Iterator[str]:
        return iter(self._pretrained)

    def __len__(self) -> int:
        return len(self._pretrained)

    def __contains__(self, name: object) -> bool:
        return name in self._pretrained

    def __getitem__(self, name: str) -> Tensor:
        base = self._pretrained[name]
        if name not in self.changed:
            return base
        value, work = base.detach(), work_dtype(base.dtype)
        if name in self._replaced:
            value = self._file.read(self._replaced[name], base.device, base.dtype)
        if name in self._pairs:
            pair = self._pairs[name]
            left, right = (self._file.read(key, base.device, work) for key in (pair.b, pair.a))
            delta = _product(left, right) * pair.scale
            value = value.to(work) + (delta.T if pair.transposed else delta)
        if name in self._shifts:
            key, scale = self._shifts[name]
            value = value.to(work) + self._file.read(key, base.device, work) * scale
        return value.to(base.dtype)

    def spec(self, name: str) -> TensorSpec:
        """Return shape and dtype without reading the tensor."""
        return self._specs[name]

    def factors(self, name: str) -> tuple[Tensor, Tensor] | None:
        """Return (L [m, r], R [r, n]) with τ = L·R for the stored weight [m, n], in the work dtype; L holds the scale.

        (s·B, A), or (s·Aᵀ, Bᵀ) where the weight is stored as [in, out] (GPT-2's Conv1D, embeddings). None where τ is
        not such a product: tensors without LoRA, convolutions, weights that the adapter also replaces as a whole.
        """
        pair, spec = self._pairs.get(name), self._specs[name]
        if pair is None or len(spec.shape) != 2 or name in self._replaced:
            return None
        from_file = callable(getattr(self._pretrained, "spec", None))  # asking it for the device would read the weight
        device = torch.device("cpu") if from_file else self._pretrained[name].device
        left, right = (self._file.read(key, device, work_dtype(spec.dtype)) for key in (pair.b, pair.a))
        return (right.T * pair.scale, left.T) if pair.transposed else (left * pair.scale, right)


def read_adapter(folder: str | os.PathLike[str], pretrained: StateDict) -> LoraExpert:
    """Return the expert that the LoRA adapter in `folder` makes of the pretrained weights.

    The tensor of a module is found by its exact name, else as the one key that equals it up to a prefix. Fully trained
    tensors in the adapter (`modules_to_save`, biases) replace the pretrained ones; those that `pretrained` lacks, such
    as heads, are skipped with a log message. Tied tensors in memory get the same factors. Shapes are checked here,
    values when they are read.

    Raises MergeError: no adapter, unreadable files, anything but plain LoRA, tensors that do not fit `pretrained`.
    """
    file = AdapterFile(Path(folder))
    config = read_config(file)
    modules, whole = sort_keys(file)
    specs, tied = specs_of(pretrained, "pretrained"), tied_names(pretrained, {})
    pairs: dict[str, Pair] = {}
    shifts: dict[str, tuple[str, float]] = {}
    for module in modules:
        weight = find(file, module.a, f"{module.name}.weight", specs)
        pair = fit(file, config, module, weight, specs)
        first = tied.get(weight, weight)
        for name in (weight, *(other for other in specs if other != weight and tied.get(other, other) == first)):
            if name in pairs:
                raise file.error(f"{pairs[name].a!r} and {pair.a!r} both change {name!r} of the pretrained model: {FOLD}")
            pairs[name] = pair
        if module.bias is not None:
            bias = find(file, module.bias, f"{module.name}.bias", specs)
            check_shape(file, module.bias, bias, specs)
            shifts[bias] = (module.bias, pair.scale)
    return LoraExpert(file, pretrained, specs, pairs, replacements(file, whole, specs), shifts)


def _product(b: Tensor, a: Tensor) -> Tensor:
    """Return B·A [m, n], or the kernel [m, c, h, w] of A [r, c, h, w] followed by the 1×1 convolution B [m, r, 1, 1]."""
    if a.dim() == 2:
        return b @ a
    if a.shape[2:] == (1, 1):
        return (b[:, :, 0, 0] @ a[:, :, 0, 0])[:, :, None, None]
    return torch.nn.functional.conv2d(a.transpose(0, 1), b).transpose(0, 1)

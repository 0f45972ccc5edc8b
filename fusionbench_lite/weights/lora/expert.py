"""LoRA adapters of the PEFT library as experts: W = W_0 + s·B·A, folded one tensor at a time.

Source: huggingface/peft, `tuners/lora/layer.py` (`get_delta_weight` and `merge`); docs/decisions.md, D16.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from fusionbench_lite.lazy import torch
from fusionbench_lite.weights.lora.config import AdapterConfig, read_config, warn_of_patterns
from fusionbench_lite.weights.lora.files import FOLD, AdapterFile
from fusionbench_lite.weights.lora.keys import Module, sort_keys
from fusionbench_lite.weights.lora.names import Names
from fusionbench_lite.weights.lora.pairs import Pair, check_shape, fit
from fusionbench_lite.weights.lora.targets import warn_of_targets
from fusionbench_lite.weights.lora.tied import partner, stored_twice, twins, untied, warn_of_ties
from fusionbench_lite.weights.lora.whole import replacements
from fusionbench_lite.weights.specs import StateDict, TensorSpec, specs_of, tied_names, work_dtype

if TYPE_CHECKING:
    from torch import Tensor


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
        equal: Mapping[str, tuple[str, str]],
    ) -> None:
        self.folder = file.folder
        self.changed = frozenset((*pairs, *replaced, *shifts))
        self._file, self._pretrained, self._specs = file, pretrained, specs
        self._pairs, self._replaced, self._shifts, self._equal = pairs, replaced, shifts, equal
        self._twins = dict(twins(pairs, specs))

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
            value = self._replacement(name, base)
        if name in self._pairs:
            self._warn_of_twin(name)
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
        self._warn_of_twin(name)
        from_file = callable(getattr(self._pretrained, "spec", None))  # asking it for the device would read the weight
        device = torch.device("cpu") if from_file else self._pretrained[name].device
        left, right = (self._file.read(key, device, work_dtype(spec.dtype)) for key in (pair.b, pair.a))
        return (right.T * pair.scale, left.T) if pair.transposed else (left * pair.scale, right)

    def _replacement(self, name: str, base: Tensor) -> Tensor:
        """Return the tensor that takes the place of the pretrained one, after a look at the head that is tied to it."""
        value = self._file.read(self._replaced[name], base.device, base.dtype)
        if name in self._equal:
            key, head = self._equal[name]
            if not torch.equal(value, self._file.read(key, base.device, base.dtype)):
                raise untied(self._file, key, head, name, "was trained apart as")
        return value

    def _warn_of_twin(self, name: str) -> None:
        """Warn where a changed head or embedding is a copy of the other, once: the values are known only here."""
        other = self._twins.pop(name, None)
        if other is not None:
            self._twins.pop(other, None)
            if torch.equal(self._pretrained[name], self._pretrained[other]):
                self._file.warn(stored_twice(name, other))


def read_adapter(folder: str | os.PathLike[str], pretrained: StateDict) -> LoraExpert:
    """Return the expert that the LoRA adapter in `folder` makes of the pretrained weights.

    The tensor of a module is found by its name, or with one prefix dropped or added for all names. Fully trained tensors
    (`modules_to_save`, biases) replace the pretrained ones; heads that `pretrained` lacks are warned of. Tied tensors in
    memory get the same factors. Shapes are checked here, values when they are read.

    Raises MergeError: no adapter, unreadable files, anything but plain LoRA, tensors that do not fit `pretrained`.
    """
    file = AdapterFile(Path(folder))
    config, keys = read_config(file), sort_keys(file)
    specs, tied = specs_of(pretrained, "pretrained"), tied_names(pretrained, {})
    names = Names(file, {f"{module.name}.weight": module.a for module in keys.modules}, specs)
    pairs, shared = _pairs(file, config, keys.modules, names, specs, tied)
    shifts: dict[str, tuple[str, float]] = {}
    for module in keys.modules:
        if module.bias is not None:
            bias = names.find(f"{module.name}.bias")
            if bias is None:
                raise file.error(names.lacking(module.bias, f"{module.name}.bias"))
            check_shape(file, module.bias, bias, specs)
            shifts[bias] = (module.bias, pairs[_weight(file, module, names, specs)].scale)
    replaced, equal = replacements(file, config, keys.whole, names, specs, pairs)
    for name, key in tuple(replaced.items()):
        if ".base_layer." in key:  # the base of a module with factors, which peft loads into the shared tensor
            replaced |= {other: key for other in _sharing(name, specs, tied) if other not in replaced}
    names.check_meaning(config)
    warn_of_targets(file, config.targets, [module.name for module in keys.modules], _foldable(names, specs, tied))
    warn_of_patterns(file, config, {module.name: file.shapes[module.a][0] for module in keys.modules})
    warn_of_ties(file, config, pairs, {name: key for name, key in replaced.items() if name not in equal}, shared, specs)
    return LoraExpert(file, pretrained, specs, pairs, replaced, shifts, equal)


def _pairs(
    file: AdapterFile,
    config: AdapterConfig,
    modules: Sequence[Module],
    names: Names,
    specs: Mapping[str, TensorSpec],
    tied: Mapping[str, str],
) -> tuple[dict[str, Pair], dict[str, list[str]]]:
    """Return what is added to which weight, and the names that share memory with a weight that a module changes."""
    pairs: dict[str, Pair] = {}
    shared: dict[str, list[str]] = {}
    for module in modules:
        weight = _weight(file, module, names, specs)
        pair = fit(file, config, module, weight, specs)
        for name in (weight, *(others := _sharing(weight, specs, tied))):
            if name in pairs:
                tie = f", tied to {others[0]!r}" if others else ""
                raise file.error(f"{pairs[name].a!r} and {pair.a!r} both change {name!r} of the pretrained model{tie}: {FOLD}")
            pairs[name] = pair
        if others:
            shared[weight] = others
    return pairs, shared


def _weight(file: AdapterFile, module: Module, names: Names, pretrained: Mapping[str, TensorSpec]) -> str:
    """Return the weight of a module with factors. Raises MergeError where the pretrained model lacks it."""
    name = f"{module.name}.weight"
    weight = names.find(name)
    if weight is not None:
        return weight
    a, b, moved = file.shapes[module.a], file.shapes[module.b], names.moved(name)
    product = (*b[:1], *a[1:])
    other = partner(moved, product[::-1] if module.embedding else product, pretrained)
    if other is not None:
        raise untied(file, module.a, moved, other, "changes")
    raise file.error(names.lacking(module.a, name))


def _foldable(names: Names, pretrained: Mapping[str, TensorSpec], tied: Mapping[str, str]) -> Iterator[str]:
    """Yield the modules of the pretrained model that could have factors, as the adapter would call them."""
    shared = {*tied, *tied.values()}
    for own, name in names.known.items():
        if own.endswith(".weight") and len(pretrained[name].shape) > 1 and name not in shared:
            called = names.own(own)
            if called is not None:
                yield called.removesuffix(".weight")


def _sharing(name: str, pretrained: Mapping[str, TensorSpec], tied: Mapping[str, str]) -> list[str]:
    """Return the other names of the tensor in memory."""
    first = tied.get(name, name)
    return [other for other in pretrained if other != name and tied.get(other, other) == first] if tied else []


def _product(b: Tensor, a: Tensor) -> Tensor:
    """Return B·A [m, n], or the kernel [m, c, ...] of A [r, c, ...] followed by the convolution B [m, r, 1, ...]."""
    return b @ a if a.dim() == 2 else (b.flatten(1) @ a.flatten(1)).reshape(len(b), *a.shape[1:])

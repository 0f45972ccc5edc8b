"""The tensors of stored language models, under the names of their class and in float32."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path

import torch
from torch import Tensor

from fusionbench_lite.checkpoints import store
from fusionbench_lite.checkpoints.language.api import Folder
from fusionbench_lite.errors import InputError
from fusionbench_lite.models.language.names import canonical
from fusionbench_lite.weights.readers import SafetensorsWeights
from fusionbench_lite.weights.specs import StateDict, TensorSpec, spec_of
from fusionbench_lite.weights.stored.folders import describe

_WIDENED = (torch.float16, torch.bfloat16)


class Named(Mapping[str, Tensor]):
    """Some tensors of `source` by other names, {name: stored name}; half precisions are widened to float32, exactly."""

    def __init__(self, source: StateDict, names: Mapping[str, str]) -> None:
        self.source, self.names = source, dict(names)
        if callable(getattr(source, "factors", None)):
            self.factors = self._factors
            self.changed = frozenset(name for name, stored in names.items() if stored in source.changed)  # type: ignore[attr-defined]

    def __getitem__(self, name: str) -> Tensor:
        tensor = self.source[self.names[name]]
        return tensor.to(torch.float32) if tensor.dtype in _WIDENED else tensor

    def spec(self, name: str) -> TensorSpec:
        """Return shape and dtype without reading the tensor."""
        shape, dtype = spec_of(self.source, self.names[name])
        return TensorSpec(shape, torch.float32 if dtype in _WIDENED else dtype)

    @property
    def halved(self) -> bool:
        """Whether a tensor is stored in half precision."""
        return any(spec_of(self.source, stored).dtype in _WIDENED for stored in self.names.values())

    def only(self, names: Iterable[str]) -> Named:
        """Return the part with these names."""
        return Named(self.source, {name: self.names[name] for name in names})

    def _factors(self, name: str) -> tuple[Tensor, Tensor] | None:
        factors: tuple[Tensor, Tensor] | None = self.source.factors(self.names[name])  # type: ignore[attr-defined]
        return factors

    def __contains__(self, name: object) -> bool:
        return name in self.names

    def __iter__(self) -> Iterator[str]:
        return iter(self.names)

    def __len__(self) -> int:
        return len(self.names)


def named(folder: Folder, kind: str, cache: Path) -> Named:
    """Return the tensors of a model in a folder under the names of its class; raises InputError for what is no model."""
    stored = SafetensorsWeights(describe(_safe(folder, kind, cache), adapters=False).checked())
    names = {name: given for given, name in canonical(kind, stored).items()}
    return Named(stored, names)


def _safe(folder: Folder, kind: str, cache: Path) -> Path:
    """Return the safetensors of a folder: its own, or what its pickle was converted to, once."""
    if folder.weights is None:
        raise InputError(f"{folder.path} holds an adapter, where a whole model is needed: fold it into its pretrained model")
    if folder.weights.suffix != ".bin":
        return folder.weights
    name = next(name for name in folder.files if name.endswith(folder.weights.name))
    sha256, where = folder.files[name], folder.sources[name]
    place = cache / "checkpoints" / "language" / kind
    kept = store.lookup(place, "model", lambda metadata: metadata.get("sha256") == sha256)
    if kept is not None:
        return kept[0]
    from fusionbench_lite.weights.pickles import read_pickled

    read = read_pickled(folder.weights)
    odd = next((name for name, tensor in read.tensors.items() if not isinstance(tensor, Tensor)), None)
    if odd is not None or not read.tensors:
        raise InputError(f"{where} holds no state dict: save the state_dict() of the model as safetensors")
    tensors = {name: tensor.contiguous() for name, tensor in read.tensors.items()}
    return store.write(place, "model", tensors, {"sha256": sha256, "origin": name, "where": where})

"""`fusionbench_lite.load_exported`: an exported folder as a model that gives features and logits."""

from __future__ import annotations

import dataclasses
import functools
import json
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from fusionbench_lite import models, registry
from fusionbench_lite.adaptation.engine.procedure import Context, Examples, Procedure
from fusionbench_lite.data import normalise
from fusionbench_lite.errors import InputError, did_you_mean
from fusionbench_lite.exporting import layout
from fusionbench_lite.models.clip_sizes import EMBEDDED
from fusionbench_lite.models.heads import ZeroShotHead
from fusionbench_lite.models.modes import with_weights
from fusionbench_lite.paths import expanded
from fusionbench_lite.weights.experts import Experts

if TYPE_CHECKING:
    from fusionbench_lite.adaptation.learners.lazy_weights import Vectors

Encode = Callable[[Tensor], Tensor]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Exported:
    """An exported model. `tasks` are those that it has heads for, `classes` the names of theirs, `kind` the form it has
    (docs/export.md)."""

    kind: str
    method: str
    model: str
    tasks: tuple[str, ...]
    classes: Mapping[str, tuple[str, ...]]
    heads: Mapping[str, ZeroShotHead]
    _encode: Callable[[str, Tensor], Tensor] = dataclasses.field(repr=False)
    _merged: tuple[str, ...] = dataclasses.field(repr=False)
    _device: torch.device = dataclasses.field(repr=False)

    def features(self, images: Any, task: str | None = None) -> Tensor:
        """Return features [B, d] of images: bytes [B, H, W, 3], or what the encoder reads, float [B, 3, H, W].

        `task` is needed where the model has something of each task's own. Raises InputError for a task without.
        """
        if self.kind in (layout.EACH, layout.ADAPTERS):
            if task is None:
                raise InputError(f"this model has {layout.KINDS[self.kind]}: name the task, one of {', '.join(self._merged)}")
            if task not in self._merged:
                raise InputError(f"this model has nothing for task {task!r}: {did_you_mean(task, self._merged)}")
        with torch.no_grad():
            return self._encode(task or self._merged[0], self._inputs(images))

    def logits(self, images: Any, task: str) -> Tensor:
        """Return logits [B, C] over the classes of a task, in their order."""
        if task not in self.heads:
            raise InputError(f"this model has no head for task {task!r}: {did_you_mean(task, self.tasks)}")
        with torch.no_grad():
            return self.heads[task](self.features(images, task).float())

    def _inputs(self, images: Any) -> Tensor:
        tensor = torch.as_tensor(images)
        size = EMBEDDED[self.model].image
        if tensor.dtype == torch.uint8 and tensor.shape[1:] == (size, size, 3):
            return normalise(tensor.to(self._device))
        if tensor.is_floating_point() and tensor.shape[1:] == (3, size, size):
            return tensor.to(self._device)
        raise InputError(
            f"images must be bytes [B, {size}, {size}, 3] or normalised floats [B, 3, {size}, {size}], got {tensor.dtype} "
            f"{tuple(tensor.shape)}: resize or convert them"
        )


def load_exported(folder: str | os.PathLike[str], device: str = "cpu") -> Exported:
    """Return the model that `python -m fusionbench_lite.export` wrote.

    Raises InputError for a folder that is none, that another version wrote, or whose files do not fit each other.
    """
    path, place = expanded(folder), torch.device(device)
    found = layout.described(path)
    if found.model not in EMBEDDED:
        raise InputError(f"{path} is of the unknown model {found.model!r}: {did_you_mean(str(found.model), EMBEDDED)}")
    try:
        heads, classes = _heads(path, place)
        reader = {
            layout.ONE: _one, layout.EACH: _each, layout.ADAPTERS: _adapted, layout.PERCEPTRONS: _perceptrons,
            layout.COMPONENTS: _components,
        }[found.kind]
        encode = reader(path, found, models.build(found.model).to(place).eval().requires_grad_(False), heads)
    except (RuntimeError, KeyError, TypeError) as error:
        raise InputError(f"{path} is not whole: {str(error).splitlines()[0]}: export it again") from error
    if set(heads) != set(found.tasks):
        raise InputError(f"{path} has heads for {', '.join(heads)}, and is of tasks {', '.join(found.tasks)}: export it again")
    return Exported(
        kind=found.kind, method=found.method, model=found.model, tasks=tuple(found.tasks), classes=classes, heads=heads,
        _encode=encode, _merged=tuple(found.merged), _device=place,
    )


def _read(path: Path, device: torch.device) -> dict[str, Tensor]:
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        return {name: tensor.to(device) for name, tensor in load_file(path).items()}
    except (OSError, SafetensorError) as error:
        raise InputError(f"cannot read {path}: {str(error).splitlines()[0]}: export it again") from None


def _heads(folder: Path, device: torch.device) -> tuple[dict[str, ZeroShotHead], dict[str, tuple[str, ...]]]:
    """Return heads and class names by task; rows are taken as they are written, so that logits are the same to the bit."""
    from safetensors import safe_open

    weights = _read(folder / layout.HEADS, device)
    with safe_open(folder / layout.HEADS, framework="pt") as file:
        metadata = file.metadata() or {}
    classes, scales = (json.loads(metadata[name]) for name in ("classes", "scales"))
    heads = {}
    for task, rows in weights.items():
        heads[task] = ZeroShotHead(rows, float(scales[task]))
        heads[task].weight.copy_(rows)
        if len(classes[task]) != len(rows):
            raise InputError(f"{folder}: the head of {task!r} has {len(rows)} rows and {len(classes[task])} classes: export it again")
    return heads, {task: tuple(names) for task, names in classes.items()}


Reader = Callable[[Path, layout.Description, nn.Module, Mapping[str, ZeroShotHead]], Callable[[str, Tensor], Tensor]]


def _one(folder: Path, found: layout.Description, model: nn.Module, heads: Any) -> Callable[[str, Tensor], Tensor]:
    encode = with_weights(model, _checked(_read(folder / layout.MODEL, _device_of(model)), model, folder))
    return lambda task, inputs: encode(inputs)


def _each(folder: Path, found: layout.Description, model: nn.Module, heads: Any) -> Callable[[str, Tensor], Tensor]:
    @functools.lru_cache(maxsize=1)
    def encoder(task: str) -> Callable[[Any], Tensor]:
        path = folder / found.folders[task] / layout.MODEL
        return with_weights(model, _checked(_read(path, _device_of(model)), model, path))

    for task in found.merged:
        if not (folder / found.folders[task] / layout.MODEL).is_file():
            raise InputError(f"{folder} lacks {found.folders[task]}/{layout.MODEL}, the model of task {task!r}: export it again")
    return lambda task, inputs: encoder(task)(inputs)


def _adapted(folder: Path, found: layout.Description, model: nn.Module, heads: Any) -> Callable[[str, Tensor], Tensor]:
    """The method's own procedure on the shared weights; what its experts were is not asked for again."""
    base = _checked(_read(folder / layout.MODEL, _device_of(model)), model, folder)
    experts = Experts(base, dict.fromkeys(found.merged, base))
    entry = registry.get(found.method)
    learner = entry.function(experts, entry.configure(**_noted(found)), merged=base)
    return _procedure(learner(_context(found, model, heads)), _read(folder / layout.LEARNED, _device_of(model)))


def _perceptrons(folder: Path, found: layout.Description, model: nn.Module, heads: Any) -> Callable[[str, Tensor], Tensor]:
    from fusionbench_lite.adaptation.learners.wemoe import Routing

    base = _checked(_read(folder / layout.MODEL, _device_of(model)), model, folder)
    own = _read(folder / layout.EXPERTS, _device_of(model))
    experts = Experts(base, {
        task: base | {name.removeprefix(f"{task}/"): tensor for name, tensor in own.items() if name.startswith(f"{task}/")}
        for task in found.merged
    })
    values = found.values
    procedure = Routing(
        experts, base, _context(found, model, heads), scaling=values["scaling"], lr=values["lr"], falling=False,
        whole_batch=values["routing"] == "batch", seed=values["seed"],
    )
    return _procedure(procedure, _read(folder / layout.LEARNED, _device_of(model)))


def _components(folder: Path, found: layout.Description, model: nn.Module, heads: Any) -> Callable[[str, Tensor], Tensor]:
    from fusionbench_lite.adaptation.learners.lazy_weights import LowRank, Whole
    from fusionbench_lite.adaptation.learners.twin import Twin

    base = _checked(_read(folder / layout.MODEL, _device_of(model)), model, folder)
    tensors, vectors = _read(folder / layout.EXPERTS, _device_of(model)), {}
    for key, tensor in tensors.items():
        part, _, name = key.partition("/")
        if part != "right":
            made: Vectors = Whole(tensor) if part == "whole" else LowRank(tensor, tensors[f"right/{name}"], len(found.merged))
            vectors[name] = made
    values = found.values
    procedure = Twin(
        Experts(base, dict.fromkeys(found.merged, base)), base, _context(found, model, heads), rank_ratio=values["rank_ratio"],
        of_tasks=True, lr=values["lr"], dropout=values["dropout"], seed=values["seed"], vectors=vectors,
    )
    return _procedure(procedure, _read(folder / layout.LEARNED, _device_of(model)))


def _procedure(procedure: Procedure, learned: Mapping[str, Tensor]) -> Callable[[str, Tensor], Tensor]:
    procedure.restore(learned, learned)
    procedure.refresh(0)
    return lambda task, inputs: procedure.encode(task, Examples(inputs, procedure.precomputed(task, inputs)))


def _context(found: layout.Description, model: nn.Module, heads: Mapping[str, ZeroShotHead]) -> Context:
    size = EMBEDDED[found.model].image
    return Context(model, heads, 0, example=torch.zeros(1, 3, size, size, device=_device_of(model)))


def _noted(found: layout.Description) -> dict[str, Any]:
    """Return the hyperparameters of the method; adapters sit on the weights of the folder, whichever method merged them."""
    return {name: value for name, value in found.values.items() if name in registry.get(found.method).defaults}


def _checked(weights: dict[str, Tensor], model: nn.Module, where: Path) -> dict[str, Tensor]:
    """Return weights in the order of the model's. Raises InputError for other names and shapes."""
    expected = {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}
    for name in dict.fromkeys([*expected, *weights]):
        shape = tuple(weights[name].shape) if name in weights else None
        if expected.get(name) != shape:
            raise InputError(f"{where}: {name!r} has shape {shape}, the model's is {expected.get(name)}: export it again")
    return {name: weights[name] for name in expected}


def _device_of(model: nn.Module) -> torch.device:
    return next(model.parameters()).device

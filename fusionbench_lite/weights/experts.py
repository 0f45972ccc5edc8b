"""A checked, read-only view of a pretrained model and its fine-tuned experts."""

from __future__ import annotations

import functools
import itertools
import math
import weakref
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, TypeVar

from fusionbench_lite.errors import MergeError
from fusionbench_lite.lazy import torch
from fusionbench_lite.weights import buffers
from fusionbench_lite.weights.combinations import averaged, combined
from fusionbench_lite.weights.limits import is_finite
from fusionbench_lite.weights.specs import StateDict, check_same, specs_of, tied_names, work_dtype
from fusionbench_lite.weights.walks import Walk, added

if TYPE_CHECKING:
    from torch import Tensor

T = TypeVar("T")
AHEAD = 8 << 20
"""Bytes of a model that are read ahead of the tensor that is worked on, at least one tensor."""


class Experts:
    """The pretrained weights and T experts, read one tensor at a time.

    Keys, shapes and dtypes are compared when the view is made; values are checked to be finite when a tensor is first
    read, so that a file behind a lazy mapping is read once. Arithmetic happens in `work_dtype(name)`: float32, or
    float64 where the base is float64. Nothing handed out shares memory with the inputs where it could be modified.

    Attributes: `tasks`, the task names in order; `specs`, shape and dtype by name; `names`, the floating-point
    tensors that methods act on, in the order of `pretrained`; `tied`, the names that repeat an earlier one's storage;
    `finished`, the names whose merged tensors are there already, of a merge that is continued, and `notes`, what its method
    took down for that, as JSON holds it (see `note`).
    Tensors with no element, and integer buffers, are not listed: they stay as they are in `pretrained`. Methods see a
    tensor with no dimension as one of shape (1,).

    Raises MergeError: no experts, missing or extra keys, shape or dtype mismatch, tensors without values to merge (see
    `kinds`), non-finite values.
    """

    def __init__(self, pretrained: StateDict, experts: Mapping[str, StateDict]) -> None:
        if not isinstance(experts, Mapping):
            raise MergeError(f"experts must map task names to state dicts, got {type(experts).__name__}")
        if not experts:
            raise MergeError("no experts were given: a merge needs at least one {task: state dict}")
        self.specs = specs_of(pretrained, "pretrained")
        self.pretrained = pretrained
        self.by_task = experts
        self.tasks = list(experts)
        for task, weights in experts.items():
            check_same(self.specs, who := f"expert {task!r}", specs_of(weights, who))
        self.floating = [name for name, spec in self.specs.items() if spec.dtype.is_floating_point]
        self.names = [name for name in self.floating if self.specs[name].numel]
        self.tied = tied_names(pretrained, experts)
        self.finished: set[str] = set()
        self.notes: dict[str, Any] = {}
        self._checked: set[tuple[str | None, str]] = set()
        self._begun: str | None = None
        self._after: dict[str, str] = {}
        self._buffers: dict[str, Tensor] = {}
        self._finite: tuple[weakref.ref[Tensor], int] | None = None

    def __len__(self) -> int:
        return len(self.tasks)

    def work_dtype(self, name: str) -> torch.dtype:
        """Return the dtype in which the tensor is merged."""
        return work_dtype(self.specs[name].dtype)

    @property
    def pending(self) -> list[str]:
        """The names whose merged tensors are wanted: methods may produce the others too, which costs time alone."""
        return [name for name in self.names if name not in self.finished]

    def note(self, key: str, compute: Callable[[], T]) -> T:
        """Return what JSON holds of a value that all tensors decide: computed once, and again only where no note of it is."""
        if key not in self.notes:
            self.notes[key] = compute()
        return self.notes[key]  # type: ignore[no-any-return]

    @property
    def device(self) -> torch.device:
        """Where tensors are read to: what the pretrained weights say, the processor's memory for plain files."""
        declared = getattr(self.pretrained, "device", None)
        if isinstance(declared, torch.device):
            return declared
        if callable(getattr(self.pretrained, "spec", None)) or not self.specs:
            return torch.device("cpu")
        return self.pretrained[next(iter(self.specs))].device

    def shape(self, name: str) -> tuple[int, ...]:
        """Return the shape in which methods see the tensor, without reading it: (1,) for one with no dimension."""
        return self.specs[name].shape or (1,)

    def numel(self, name: str) -> int:
        """Return the number of elements of the tensor, without reading it."""
        return self.specs[name].numel

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
        like = self._read(None, name)
        stacked = torch.empty((len(self), *like.shape), dtype=self.work_dtype(name), device=like.device)
        for row, task in zip(stacked, self.tasks, strict=True):
            row.copy_(self._read(task, name))
        return stacked

    def task_vectors(self, name: str) -> Tensor:
        """Return τ_1 … τ_T as one new tensor [T, *shape] in the work dtype, in task order."""
        return self.stack(name).sub_(self.base(name))

    def blocks(self, name: str) -> Iterator[tuple[slice, Tensor]]:
        """Walk the task vectors of one tensor block by block: a slice of the flattened tensor and τ [T, length].

        A block stays in the processor's cache while a method works on it, so a chain of elementwise operations costs
        one pass over memory and no temporary of the tensor's size.
        """
        return self.walk(name).blocks()

    def walk(self, name: str, *, weights: bool = False) -> Walk:
        """Return the task vectors of one tensor, or the experts' `weights`, to be passed over block by block."""
        base = None if weights else self._read(None, name).reshape(-1)
        return Walk(base, [self._read(task, name).reshape(-1) for task in self.tasks], self.work_dtype(name))

    def added(self, name: str, vectors: Tensor, scaling: float = 1.0) -> Tensor:
        """Return θ0 + λ τ in the work dtype, in the memory of τ [n], `vectors`, which becomes it."""
        return added(vectors, self._read(None, name).reshape(-1), scaling).reshape(self.shape(name))

    def new(self, name: str) -> Tensor:
        """Return a new tensor of the work dtype whose values are yet to be written, flattened."""
        device = self.device if callable(getattr(self.pretrained, "spec", None)) else self.pretrained[name].device
        return torch.empty(self.numel(name), dtype=self.work_dtype(name), device=device)

    def filled(self, name: str, pieces: Iterable[tuple[slice, Tensor]]) -> Tensor:
        """Return a new tensor of the work dtype, flattened, put together from slices and their values."""
        result = self.new(name)
        for part, values in pieces:
            result[part] = values
        return result

    def combination(self, name: str, weights: Sequence[float], walk: Walk | None = None) -> Tensor:
        """Return θ0 + Σ_t w_t τ_t in the work dtype, with one pass over the inputs, or over those that a walk holds already."""
        held = None if walk is None else walk.base
        base = self._raw(None, name).reshape(-1) if held is None else held  # [n]
        flat = [self._raw(task, name).reshape(-1) for task in self.tasks] if walk is None else walk.flat
        result, finite = combined(base, flat, weights, self.work_dtype(name))
        self._settle(name, finite)
        return self._noted(result.reshape(self.shape(name)), finite)

    def mean(self, name: str) -> Tensor:
        """Return θ̄ = (1/T) Σ θ_t in the work dtype."""
        flat = [self._raw(task, name).reshape(-1) for task in self.tasks]
        result, finite = averaged(flat, self.work_dtype(name))
        self._settle(name, finite, base=False)
        return self._noted(result.reshape(self.shape(name)), finite)

    def inner_products(self, name: str) -> Tensor:
        """Return ⟨τ_s, τ_t⟩ of one tensor as a matrix [T, T] in float64."""
        return self.walk(name).products()

    def factors(self, task: str, name: str) -> tuple[Tensor, Tensor] | None:
        """Return (B [m, r], A [r, n]) with τ_t = B A where the expert is a low-rank adapter, else None."""
        read = getattr(self.by_task[task], "factors", None)
        return read(name) if callable(read) else None

    def rounding(self, name: str) -> float:
        """Return the largest singular value that rounding to the stored dtype alone leaves in a task vector [m, n].

        Entries of θ_t are rounded to half an epsilon of their size; a random matrix of entries with root mean square e
        has a largest singular value of about e (√m + √n).
        """
        base = self.base(name)
        size = torch.finfo(self.specs[name].dtype).eps * float(torch.linalg.vector_norm(base, dtype=torch.float64))
        return size * sum(math.sqrt(side) for side in base.shape) / math.sqrt(base.numel())

    @functools.cached_property
    def changed(self) -> list[str]:
        """The counters and boolean buffers that some expert changed; reading them refuses other integers that differ."""
        names = [name for name, spec in self.specs.items() if not spec.dtype.is_floating_point]
        self._buffers = {name: self.pretrained[name].detach() for name in names}
        return buffers.changed(self._buffers, self.by_task)

    def kept(self, name: str) -> Tensor:
        """Return a copy of the pretrained tensor as it is stored, for the merged model that does not change it."""
        return (self._buffers[name] if name in self._buffers else self.pretrained[name].detach()).clone()

    def stored(self, task: str, name: str) -> Tensor:
        """Return the expert's tensor as it is stored."""
        return self.by_task[task][name].detach()

    def check_unread(self) -> None:
        """Check the values of every floating-point tensor that no method has read yet and that is not finished."""
        for name in self.floating:
            if name not in self.finished:
                self.check(name)

    def check(self, name: str) -> None:
        """Check the values of a floating-point tensor where no method has read them yet."""
        for task in (None, *self.tasks) if self.specs[name].dtype.is_floating_point else ():
            if (task, name) not in self._checked:
                self._read(task, name)

    def release(self, needed: Iterable[str]) -> None:
        """Let go of the experts' tensors in memory, all but these; files are read again when they are asked for."""
        self.drop_held()
        names = set(needed)
        if names.issuperset(self.names):
            return
        self.by_task = {
            task: weights if callable(getattr(weights, "spec", None)) else {name: weights[name] for name in sorted(names)}
            for task, weights in self.by_task.items()
        }

    def drop_held(self) -> None:
        """Let weights that can be read again (see `PlacedWeights`) give back the memory they hold."""
        for weights in (self.pretrained, *self.by_task.values()):
            drop = getattr(weights, "drop_held", None)
            if callable(drop):
                drop()

    def known_finite(self, result: Tensor) -> bool:
        """Say whether a tensor is the last sum or mean that was handed out, unchanged since, and was seen to be finite."""
        return self._finite is not None and self._finite[0]() is result and self._finite[1] == result._version

    def _noted(self, result: Tensor, finite: bool) -> Tensor:
        versioned = finite and not result.is_inference()
        self._finite = (weakref.ref(result), result._version) if versioned else None
        return result

    def _read_ahead(self, name: str) -> None:
        """Have the system read the tensors that come after this one, while it is worked on."""
        self._begun = name
        self._after = self._after or dict(itertools.pairwise(self.floating))
        size = 0
        while size < AHEAD and (name := self._after.get(name, "")):
            for weights in (self.pretrained, *self.by_task.values()):
                read_ahead = getattr(weights, "read_ahead", None)
                if callable(read_ahead):
                    read_ahead(name)
            size += self.specs[name].nbytes

    def _raw(self, task: str | None, name: str) -> Tensor:
        if name != self._begun:
            self._read_ahead(name)
        tensor = (self.pretrained if task is None else self.by_task[task])[name].detach()
        return tensor if tensor.dim() else tensor.reshape(1)

    def _read(self, task: str | None, name: str) -> Tensor:
        tensor = self._raw(task, name)
        if (task, name) not in self._checked:
            count = 0 if is_finite(tensor) else int((~torch.isfinite(tensor)).sum())
            if count:
                who = "the pretrained model" if task is None else f"expert {task!r}"
                raise MergeError(
                    f"{who}: {name!r} has {count} non-finite of {tensor.numel()} values; repair or drop the checkpoint"
                )
            self._checked.add((task, name))
        return tensor

    def _settle(self, name: str, finite: bool, *, base: bool = True) -> None:
        """Take note that the inputs of a sum are finite, or find the one that is not."""
        for task in (None, *self.tasks) if base else self.tasks:
            if finite:
                self._checked.add((task, name))
            else:
                self._read(task, name)

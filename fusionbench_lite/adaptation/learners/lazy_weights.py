"""A copy of a model whose weights are a sum of their own for every example, put together where they are read.

θ* + Σ_t g_t v_t with gates g per example. Linear layers, embeddings and attention apply low-rank v_t to what they
read, without weights per example; any other tensor is summed at the moment a module reads it, for a few examples at a
time, so a whole model per example is never in memory.
"""

from __future__ import annotations

import dataclasses
import functools
import logging
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from fusionbench_lite.adaptation.engine.procedure import Examples
from fusionbench_lite.adaptation.learners.mixture import Gates, frozen_copy, is_linear
from fusionbench_lite.models.inputs import Inputs, size_of
from fusionbench_lite.weights.costs import BUDGET

log = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True)
class Whole:
    """v [T, *shape], kept as they are."""

    vectors: Tensor

    def total(self, base: Tensor, gates: Tensor) -> Tensor:
        """Return θ* + Σ_t g_t v_t."""
        return base + (gates @ self.vectors.flatten(1)).view(base.shape).to(base.dtype)


@dataclasses.dataclass(frozen=True)
class LowRank:
    """v_t = L_t R_t of a matrix [m, n] for all tasks side by side: `left` [m, T·r], `right` [T·r, n]."""

    left: Tensor
    right: Tensor
    tasks: int

    def total(self, base: Tensor, gates: Tensor) -> Tensor:
        """Return θ* + Σ_t g_t L_t R_t; the products are made once for all examples."""
        left = self.left.view(len(self.left), self.tasks, -1).transpose(0, 1)
        dense = left @ self.right.view(self.tasks, -1, self.right.shape[1])
        return base + (gates @ dense.flatten(1)).view(base.shape).to(base.dtype)

    def scale(self, states: Tensor, gates: Tensor) -> Tensor:
        """Return states [..., T·r] of the components, each times the gate of its task."""
        each = gates[:, None].expand(self.tasks, self.right.shape[0] // self.tasks).reshape(-1)
        return states * each.to(states.dtype)


Vectors = Whole | LowRank


class LazyModel:
    """A copy of `model` with the weights `base`, and `vectors` by tensor name that gates add to them.

    The gates of a forward pass are those of its example, [T], or under vmap of each of its examples.
    """

    def __init__(self, model: nn.Module, base: Mapping[str, Tensor], vectors: Mapping[str, Vectors]) -> None:
        self.model, follow = frozen_copy(model, base)
        vectors = {**vectors, **{name: vectors[first] for name, first in follow.items() if first in vectors}}
        self.gates = Gates()
        self._summed: list[int] = []
        self._bytes: tuple[int, int] | None = None
        self._in_turn = False
        for prefix, module in list(self.model.named_modules()):
            direct = {name for name, _ in (*module.named_parameters(recurse=False), *module.named_buffers(recurse=False))}
            present = {name: vectors[key] for name in direct if (key := f"{prefix}.{name}".lstrip(".")) in vectors}
            for name, vector in present.items():
                origin = getattr(module, name).detach()
                _apply_to_states(module, name, origin, vector, self.gates)
                _make_lazy(module, name, origin, vector, self.gates, self._summed)

    def encode(self, inputs: Inputs, gates: Tensor, chunk: int | None = None) -> Tensor:
        """Return features [B, d] for gates [B, T], of at most `chunk` examples in one pass."""
        size = min(chunk or len(gates), self.fitting(inputs, gates))
        whole = Examples(inputs, gates)
        with _plain_attention():
            parts = [self._together(whole.part(start, start + size)) for start in range(0, len(whole), size)]
        return torch.cat(parts)

    def _together(self, examples: Examples) -> Tensor:
        assert examples.inputs is not None
        assert examples.precomputed is not None
        if not self._in_turn and len(examples) > 1:
            try:
                features: Tensor = torch.vmap(self._one)(examples.inputs, examples.precomputed)
                return features
            except torch.OutOfMemoryError:
                raise
            except RuntimeError as error:
                log.warning("examples run one by one: %s cannot be vectorised: %s", type(self.model).__name__, error)
                self._in_turn = True
        each = (examples.part(start, start + 1) for start in range(len(examples)))
        return torch.stack([self._one(_first(one.inputs), _first(one.precomputed)) for one in each])

    def _one(self, inputs: Any, gates: Tensor) -> Tensor:
        """Return the features [d] of one example without the dimension of examples."""
        self.gates.values = gates
        self._summed.clear()
        if isinstance(inputs, Mapping):
            features = self.model(**{name: tensor[None] for name, tensor in inputs.items()})
        else:
            features = self.model(inputs[None])
        return features[0]  # type: ignore[no-any-return]

    def fitting(self, inputs: Inputs, gates: Tensor) -> int:
        """Return how many examples of a batch fit the budget: autograd keeps what is summed, else the largest counts."""
        if self._bytes is None:
            with torch.no_grad(), _plain_attention():
                self._one(_first(Examples(inputs).part(0, 1).inputs), gates[0])
            self._bytes = sum(self._summed, 1), max(self._summed, default=1)
        keeps = torch.is_grad_enabled() and gates.requires_grad
        budget = BUDGET.get(gates.device.type, BUDGET["cuda"])
        return max(1, min(size_of(inputs), budget // self._bytes[0 if keeps else 1]))


def _first(inputs: Any) -> Any:
    return {name: tensor[0] for name, tensor in inputs.items()} if isinstance(inputs, Mapping) else inputs[0]


def _make_lazy(module: nn.Module, name: str, origin: Tensor, vectors: Vectors, gates: Gates, summed: list[int]) -> None:
    """Make an attribute of a module the sum of the moment, by a class of the module's own; `summed` gets its bytes."""

    def read(self: nn.Module) -> Tensor:
        total = vectors.total(origin, gates.values)
        summed.append(total.numel() * total.element_size())
        return total

    delattr(module, name)
    kind = type(module)
    module.__class__ = type(kind.__name__, (kind,), {name: property(read), "__module__": kind.__module__})


def _apply_to_states(module: nn.Module, name: str, origin: Tensor, vectors: Vectors, gates: Gates) -> None:
    """Let a linear layer or an embedding multiply states by low-rank factors instead of summing its weights."""
    if not isinstance(vectors, LowRank):
        return
    left, right, scale = vectors.left, vectors.right, vectors.scale

    def linear(inputs: Tensor) -> Tensor:
        inner = nn.functional.linear(inputs, right.to(inputs.dtype))
        change = nn.functional.linear(scale(inner, gates.values), left.to(inputs.dtype))
        return nn.functional.linear(inputs, origin, module.bias) + change  # type: ignore[arg-type]

    def projection(inputs: Tensor) -> Tensor:
        inner = scale(nn.functional.linear(inputs, right.to(inputs.dtype)), gates.values)
        bias = module.in_proj_bias
        return nn.functional.linear(inputs, origin, bias) + nn.functional.linear(inner, left.to(inputs.dtype))  # type: ignore[arg-type]

    def convolution(inputs: Tensor) -> Tensor:
        inner = inputs @ left.to(inputs.dtype)
        return inputs @ origin + cast(Tensor, module.bias) + scale(inner, gates.values) @ right.to(inputs.dtype)

    def embedding(inputs: Tensor) -> Tensor:
        inner = nn.functional.embedding(inputs, left)
        return nn.functional.embedding(inputs, origin) + (scale(inner, gates.values) @ right).to(origin.dtype)

    if isinstance(module, nn.MultiheadAttention):
        if name == "in_proj_weight" and module.bias_k is None and not module.add_zero_attn:
            module.forward = functools.partial(_attend, module, projection)  # type: ignore[method-assign]
    elif name != "weight":
        return
    elif isinstance(module, nn.Embedding) and module.max_norm is None:
        module.forward = embedding  # type: ignore[method-assign, assignment]
    elif is_linear(module):
        module.forward = linear if isinstance(module, nn.Linear) else convolution


def _attend(
    module: nn.MultiheadAttention, projection: Callable[[Tensor], Tensor], query: Tensor, key: Tensor, value: Tensor,
    key_padding_mask: Tensor | None = None, need_weights: bool = True, attn_mask: Tensor | None = None,
    average_attn_weights: bool = True, is_causal: bool = False,
) -> tuple[Tensor, Tensor | None]:
    """Do what nn.MultiheadAttention does, with `projection` in place of its packed one; `is_causal` is only a hint there."""
    shared = key is query and value is query
    if not module.batch_first:
        query, key, value = (tensor.transpose(0, 1) for tensor in (query, key, value))
    packed = [projection(query)] * 3 if shared else [projection(tensor) for tensor in (query, key, value)]
    heads = [
        part.chunk(3, -1)[number].view(*part.shape[:2], module.num_heads, -1).transpose(1, 2)
        for number, part in enumerate(packed)
    ]
    scores = heads[0] @ heads[1].mT / heads[0].shape[-1] ** 0.5
    for mask in (attn_mask, None if key_padding_mask is None else key_padding_mask[:, None, None]):
        if mask is not None:
            mask = mask.view(-1, module.num_heads, *mask.shape[1:]) if mask.dim() == 3 else mask
            scores = scores.masked_fill(mask, -torch.inf) if mask.dtype == torch.bool else scores + mask
    weights = torch.softmax(scores, dim=-1)
    output = module.out_proj((weights @ heads[2]).transpose(1, 2).flatten(2))
    if not module.batch_first:
        output = output.transpose(0, 1)
    if not need_weights:
        return output, None
    return output, weights.mean(1) if average_attn_weights else weights


@contextmanager
def _plain_attention() -> Iterator[None]:
    """Switch off fused attention: that of torch's own modules reads weights past their classes, others know no vmap."""
    before = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        with sdpa_kernel(SDPBackend.MATH):
            yield
    finally:
        torch.backends.mha.set_fastpath_enabled(before)

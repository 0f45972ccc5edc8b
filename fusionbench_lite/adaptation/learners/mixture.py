"""Linear layers whose weights are a mixture of their own for every example: W_b = W0 + Σ_t g_bt τ_t."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from fusionbench_lite.adaptation.engine.ties import repeats
from fusionbench_lite.errors import MergeError
from fusionbench_lite.models.modes import is_mixed, unmixed

BUDGET = {"cpu": 1 << 20, "cuda": 1 << 26}
"""Bytes that the mixed weights of a layer may take at a time. A processor works in its cache, a graphics card wants
large products; the examples that fit share a product."""


def frozen_copy(model: nn.Module, weights: Mapping[str, Tensor]) -> tuple[nn.Module, dict[str, str]]:
    """Return a copy of the model with these weights, in evaluation mode, and {name: the name it follows} of tied tensors."""
    twin = copy.deepcopy(model).eval()
    follow = {
        name: first for name, first in repeats(twin, [*weights, *twin.state_dict(keep_vars=True)]).items() if first in weights
    }
    twin.load_state_dict({**weights, **{name: weights[first] for name, first in follow.items()}}, strict=False, assign=True)
    return twin.requires_grad_(False), follow


def is_linear(module: nn.Module) -> bool:
    """Say whether a module is a linear layer: torch's, or transformers' Conv1D, whose weight is [in, out]."""
    return isinstance(module, nn.Linear) or type(module).__name__ == "Conv1D"


class Gates:
    """The gates g that the layers of a model read during a forward pass, in the shape that these layers take."""

    values: Tensor


class MixedLinear(nn.Module):
    """y_b = x_b (W0 + Σ_t g_bt τ_t)ᵀ + (c0 + Σ_t g_bt c_t), for states [B, ..., in] and the gates [B, T] of the moment,
    or [1, T] for all examples.

    `weight` [out, in] and `vectors` [T, out, in] are W0 and τ, in this order also for weights kept as [in, out], which
    `transposed` says; `bias` [out] and `bias_vectors` [T, out] are c0 and c. All are constants.
    """

    def __init__(
        self, gates: Gates, weight: Tensor, vectors: Tensor, bias: Tensor | None = None, bias_vectors: Tensor | None = None,
        *, transposed: bool = False,
    ) -> None:
        super().__init__()
        self.gates = gates
        self.weight, self.vectors = weight.contiguous(), vectors.contiguous()
        self.bias, self.bias_vectors = bias, bias_vectors
        self.transposed = transposed

    def forward(self, inputs: Tensor) -> Tensor:
        """Return the layer's output, [B, ..., out]."""
        gates = self.gates.values
        if len(gates) not in (1, len(inputs)):
            raise MergeError(
                f"a routed layer got states of shape {tuple(inputs.shape)} for {len(gates)} examples: "
                "the first dimension has to be that of the examples"
            )
        states = inputs.reshape(len(gates), -1, inputs.shape[-1])  # [B, N, in]
        if is_mixed(inputs.device):  # states as in other linear layers; weights are summed in their own precision before
            states, gates = states.to(torch.get_autocast_dtype(inputs.device.type)), gates.to(self.weight.dtype)
        with unmixed(inputs.device):
            output = self._output(states, gates)
        return output.view(*inputs.shape[:-1], output.shape[-1])  # [B, ..., out]

    def _output(self, states: Tensor, gates: Tensor) -> Tensor:
        output: Tensor
        if cheaper_factored(states.shape[1], gates.shape[1]):
            output = factored(states, gates, self.weight, self.vectors, self.transposed)
        else:
            output = Mixture.apply(states, gates, self.weight, self.vectors, self.transposed)  # type: ignore[no-untyped-call]
        if self.bias is None or self.bias_vectors is None:
            return output
        bias = torch.addmm(self.bias, gates, self.bias_vectors.to(gates.dtype))
        return output + bias[:, None].to(output.dtype)


def cheaper_factored(tokens: int, tasks: int) -> bool:
    """Say whether a step takes fewer operations in the factored form.

    Counted in products of the weight's size, per example: factored, N(T + 1) forward and as many backward; mixed,
    T + N forward, and 2T + 2N backward.
    """
    return 2 * tokens * (tasks + 1) < 3 * (tasks + tokens)


def factored(states: Tensor, gates: Tensor, weight: Tensor, vectors: Tensor, transposed: bool) -> Tensor:
    """Return x_b W0ᵀ + Σ_t g_bt (x_b τ_tᵀ), [B, N, out], without a weight per example."""
    pattern = "bni,tio->btno" if transposed else "bni,toi->btno"
    of_tasks = torch.einsum(pattern, states, vectors.to(states.dtype))  # [B, T, N, out]
    mixed = torch.einsum("bt,btno->bno", gates.to(states.dtype), of_tasks)  # [B, N, out]
    base = weight.to(states.dtype)
    return mixed + states @ (base if transposed else base.T)


class Mixture(torch.autograd.Function):
    """x_b (W0 + Σ_t g_bt τ_t)ᵀ with the weights of some examples at a time, built anew in the backward pass.

    Only x and g are saved. ∂L/∂x_b = δ_b W_b and ∂L/∂g_bt = ⟨δ_bᵀ x_b, τ_t⟩ (docs/decisions.md, D4).
    """

    @staticmethod
    def forward(ctx: Any, states: Tensor, gates: Tensor, weight: Tensor, vectors: Tensor, transposed: bool) -> Tensor:
        """Return [B, N, out] from states [B, N, in] and gates [B, T]."""
        ctx.save_for_backward(states, gates)
        ctx.constants = weight, vectors, transposed
        width = weight.shape[1 if transposed else 0]
        output = states.new_empty((*states.shape[:2], width))
        for part in _groups(len(states), weight):
            mixed = _mixed(gates[part], weight, vectors, states.dtype)
            torch.bmm(states[part], mixed if transposed else mixed.mT, out=output[part])
        return output

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, Tensor | None, None, None, None]:
        """Return the gradients of states and gates."""
        with unmixed(gradients[0].device):  # mixed precision may be on where the backward pass was started
            return *Mixture._gradients(ctx, gradients[0]), None, None, None

    @staticmethod
    def _gradients(ctx: Any, delta: Tensor) -> tuple[Tensor | None, Tensor]:
        states, gates = ctx.saved_tensors
        weight, vectors, transposed = ctx.constants
        of_states = torch.empty_like(states) if ctx.needs_input_grad[0] else None
        of_gates = torch.empty_like(gates)
        flat = vectors.flatten(1)  # [T, out·in]
        for part in _groups(len(states), weight):
            if of_states is not None:
                mixed = _mixed(gates[part], weight, vectors, states.dtype)
                torch.bmm(delta[part], mixed.mT if transposed else mixed, out=of_states[part])
            first, second = (states, delta) if transposed else (delta, states)
            of_weights = torch.bmm(first[part].mT, second[part]).flatten(1)  # [b, out·in]
            torch.mm(of_weights.to(flat.dtype), flat.T, out=of_gates[part])
        return of_states, of_gates


def _mixed(gates: Tensor, weight: Tensor, vectors: Tensor, dtype: torch.dtype) -> Tensor:
    """Return the weights of some examples, [b, *weight.shape]."""
    flat = torch.addmm(weight.flatten(), gates.to(weight.dtype), vectors.flatten(1))  # [b, out·in]
    return flat.view(-1, *weight.shape).to(dtype)


def _groups(examples: int, weight: Tensor) -> list[slice]:
    """Return the examples in groups whose weights fit the budget."""
    budget = BUDGET.get(weight.device.type, BUDGET["cuda"])
    size = max(1, budget // max(weight.numel() * weight.element_size(), 1))
    return [slice(start, min(start + size, examples)) for start in range(0, examples, size)]

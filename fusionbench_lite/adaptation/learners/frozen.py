"""Networks that adapters compare: the merged model they sit on and the experts, none of which changes."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping

import torch
from torch import Tensor, nn

from fusionbench_lite.adaptation.engine.core import call, in_chunks
from fusionbench_lite.adaptation.engine.procedure import Context, Examples
from fusionbench_lite.models.inputs import Inputs, plain
from fusionbench_lite.weights.experts import Experts
from fusionbench_lite.weights.specs import StateDict, work_dtype

Forward = Callable[[Mapping[str, Tensor], Inputs], Tensor]
"""`forward(weights, inputs)` returns [B, ...]: something about examples, from a model with these weights."""


class Frozen:
    """The model with the weights of a merge, `base`, or of an expert, in the dtypes they are stored in."""

    def __init__(self, context: Context, experts: Experts, base: Mapping[str, Tensor]) -> None:
        self.model = context.model
        self.chunk = context.chunk
        self.experts = experts
        self._whole = dict(base)
        self._names = [name for name in self.model.state_dict() if name in experts.specs]
        self._device = next((parameter.device for parameter in self.model.parameters()), torch.device("cpu"))
        self.base = self._on_device(base)
        self._expert: tuple[str, dict[str, Tensor]] | None = None

    @property
    def device(self) -> torch.device:
        """Where the model is."""
        return self._device

    @property
    def dtype(self) -> torch.dtype:
        """The dtype in which adapters of this model learn: float64 where the model has float64 weights, else float32."""
        wide = any(self.experts.specs[name].dtype == torch.float64 for name in self._names)
        return work_dtype(torch.float64 if wide else torch.float32)

    def zero(self) -> Tensor:
        """Return a loss of 0, for tasks without examples here."""
        return torch.zeros((), dtype=self.dtype, device=self._device)

    def expert(self, task: str) -> dict[str, Tensor]:
        """Return an expert's weights on the model's device. The last one that was asked for is kept."""
        if self._expert is None or self._expert[0] != task:
            self._expert = None  # first, so that never two of them are in memory
            self._expert = (task, self._on_device(self.experts.by_task[task]))
        return self._expert[1]

    @torch.no_grad()
    def run(self, weights: Mapping[str, Tensor], inputs: Inputs, forward: Forward | None = None) -> Tensor:
        """Return what `forward` (default: the features) says of inputs, chunk by chunk where memory is short."""
        forward = forward or self.features
        whole = Examples(inputs)

        def compute(size: int) -> Tensor:
            if size >= len(whole):
                return forward(weights, inputs)
            parts = [whole.part(start, start + size).inputs for start in range(0, len(whole), size)]
            return torch.cat([forward(weights, part) for part in parts if part is not None])  # [B, ...]

        outputs, self.chunk = in_chunks(compute, len(whole), self.chunk)
        return outputs

    def features(self, weights: Mapping[str, Tensor], inputs: Inputs) -> Tensor:
        """Return the model's features with these weights."""
        return call(self.model, weights, inputs)

    def state_dict(self) -> dict[str, Tensor]:
        """Return a copy of the merged weights; tensors that are tied in the experts stay so."""
        copies: dict[str, Tensor] = {}
        for name, tensor in self._whole.items():
            first = self.experts.tied.get(name)
            copies[name] = tensor.clone() if first is None else copies[first]
        return copies

    def _on_device(self, weights: StateDict) -> dict[str, Tensor]:
        tied = self.experts.tied
        moved: dict[str, Tensor] = {}
        for name in self._names:
            first = tied.get(name, name)
            if first not in moved:
                moved[first] = plain(weights[first]).to(self._device)
        return {name: moved[tied.get(name, name)] for name in self._names}


def linear_start(numbers: Tensor) -> Tensor:
    """Return uniform numbers from [0, 1) [r, d] as weights from [-1/√d, 1/√d) in float64, as nn.Linear starts."""
    return (2 * numbers.double() - 1) / math.sqrt(numbers.shape[1])


def parameters(tensors: Iterable[Tensor]) -> nn.ParameterList:
    """Return tensors as learnables."""
    return nn.ParameterList(nn.Parameter(tensor) for tensor in tensors)

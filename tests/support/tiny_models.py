"""The smallest encoder, two experts of it, heads and batches: whatever users give to `fbl.adapt`, in milliseconds."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tests.support.helpers import Setting, experts_of, rng

CLASSES, BATCH, WIDTH = 5, 8, 4


class Encoder(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.visual = nn.Sequential(nn.Linear(6, 16), nn.GELU(), nn.Linear(16, 16))
        self.proj = nn.Linear(16, WIDTH, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.proj(torch.tanh(self.visual(x)))


def tiny(model: nn.Module | None = None, *, steps: int = 4, dtype: torch.dtype = torch.float32) -> Setting:
    """A setting for any model that reads [B, 6] and has the names of `Encoder`."""
    g = rng(3)
    model = (Encoder() if model is None else model).to(dtype)
    state = {}
    with torch.no_grad():
        for name, tensor in model.state_dict().items():
            tensor.copy_(torch.randn(tensor.shape, generator=g, dtype=torch.float64) * 0.3)
            state[name] = tensor.clone()
    heads: dict[str, nn.Module] = {}
    for number in range(2):
        heads[f"task{number}"] = head = nn.Linear(WIDTH, CLASSES).to(dtype)
        for p in head.parameters():
            p.data.copy_(torch.randn(p.shape, generator=g, dtype=torch.float64))
    batches = {t: [torch.randn(BATCH, 6, generator=g).to(dtype) for _ in range(steps)] for t in heads}
    return Setting(model, state, experts_of(state, 2), heads, batches)


class Masked(nn.Module):
    """A head whose classes from `first` on are masked with -inf."""

    def __init__(self, head: nn.Module, first: int = 3) -> None:
        super().__init__()
        self.head, self.first = head, first

    def forward(self, features: Tensor) -> Tensor:
        logits = self.head(features).clone()
        logits[:, self.first :] = -torch.inf
        return logits


class Fewer(Masked):
    """The same classes without the masked ones: the entropy is that of `Masked`, by p log p = 0 at p = 0."""

    def forward(self, features: Tensor) -> Tensor:
        return F.linear(features, self.head.weight[: self.first], self.head.bias[: self.first])

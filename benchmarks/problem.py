"""Synthetic merging problems of real sizes: encoder, experts in factored form, heads and one step's batches.

Singular value decompositions of hundreds of matrices would take longer than the measurement. One pair of random
orthonormal bases is drawn per matrix shape; every tensor and task takes it with rows and columns rolled, so that
Δ = U diag(s) Vᵀ holds exactly, costs a copy, and no two of them are equal. Costs do not depend on the values.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable

import torch
from torch import Tensor, nn

import fusionbench_lite.base.torchvision_ops  # noqa: F401  (before open_clip, which imports torchvision)

# isort: split
from open_clip.transformer import VisionTransformer

from fusionbench_lite.models import clip_sizes
from fusionbench_lite.weights.matrices import is_factorised

CLASSES = 100
NORM = 0.02
"""Root mean square of the entries of a task vector."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Size:
    """Architecture numbers of a vision transformer and `images` per task and step."""

    image: int
    patch: int
    width: int
    layers: int
    heads: int
    output: int
    images: int
    tasks: int = 8


def _size(of: clip_sizes.ClipSize, images: int) -> Size:
    """Return the size of one of the package's models, for so many images per task and step."""
    return Size(image=of.image, patch=of.patch, width=of.width, layers=of.layers, heads=of.heads, output=of.output, images=images)


SIZES = {"vit_mini": _size(clip_sizes.MINI, images=16), "vit_b32": _size(clip_sizes.SIZES["vit_b32"], images=2)}


@dataclasses.dataclass(frozen=True)
class Method:
    """`kind` of merge, initial λ `scaling`, and for AdaRank the part of the components that starts `active`.

    `exact` says whether the components of a task add up to its task vector.
    """

    kind: str
    scaling: float
    active: float = 1.0
    exact: bool = True


METHODS = {
    "adamerging": Method("vectors", 0.3),
    "adarank_ta": Method("factors", 0.3, 1.0),
    "adarank_cart": Method("factors", 2.3, 0.16),
    "adarank_tsvm": Method("factors", 1.0, 1 / 8, exact=False),
}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Svd:
    """u [T, r, m] and v [T, r, n] as rows, s [T, r], how many components start `active`, and Δ [T, m, n] if known."""

    left: Tensor
    values: Tensor
    right: Tensor
    active: int
    deltas: Tensor | None


@dataclasses.dataclass(frozen=True, kw_only=True)
class Problem:
    """Everything that one adaptation step reads: each tensor is either in `vectors` (Δ [T, *shape]) or in `factors`."""

    method: Method
    model: nn.Module
    pretrained: dict[str, Tensor]
    vectors: dict[str, Tensor]
    factors: dict[str, Svd]
    heads: dict[str, Callable[[Tensor], Tensor]]
    batch: dict[str, Tensor]


def build(size: Size, method: Method, device: torch.device, *, dense: bool = True) -> Problem:
    """Return the problem, the same for the same arguments; without `dense`, factors come without Δ."""
    torch.manual_seed(0)
    model = encoder(size).to(device).eval()
    pretrained = {name: tensor.detach() for name, tensor in model.state_dict().items()}
    vectors, factors = {}, {}
    for index, (name, tensor) in enumerate(pretrained.items()):
        if method.kind == "factors" and is_factorised(name, tensor.shape, "attn_mlp"):
            factors[name] = _svd(tensor, size.tasks, index, method, dense)
        else:
            vectors[name] = NORM * torch.randn((size.tasks, *tensor.shape), device=device)
    tasks = [f"task {number}" for number in range(size.tasks)]
    shape = (size.images, 3, size.image, size.image)
    return Problem(
        method=method, model=model, pretrained=pretrained, vectors=vectors, factors=factors,
        heads={task: head(torch.randn(CLASSES, size.output, device=device)) for task in tasks},
        batch={task: torch.randn(shape, device=device) for task in tasks},
    )


def encoder(size: Size) -> nn.Module:
    """Return a vision transformer of this size."""
    model: nn.Module = VisionTransformer(
        size.image, size.patch, size.width, size.layers, size.heads, mlp_ratio=4.0, output_dim=size.output
    )
    return model


def head(weight: Tensor) -> Callable[[Tensor], Tensor]:
    """Return a head in CLIP's form: scaled cosines."""
    weight = nn.functional.normalize(weight, dim=1)
    return lambda features: 20 * nn.functional.normalize(features, dim=1) @ weight.T


def _svd(like: Tensor, tasks: int, index: int, method: Method, dense: bool) -> Svd:
    left, values, right, delta = _bases(tuple(like.shape), like.device)
    rank = len(values)
    shifts = [(17 * index + 5 * task, 29 * index + 11 * task) for task in range(tasks)]
    return Svd(
        left=_stack([functools.partial(left.roll, rows, 1) for rows, _ in shifts]), values=values.repeat(tasks, 1),
        right=_stack([functools.partial(right.roll, columns, 1) for _, columns in shifts]), active=int(method.active * rank + 1e-9),
        deltas=_stack([functools.partial(delta.roll, shift, (0, 1)) for shift in shifts]) if dense and method.exact else None,
    )


def _stack(rows: list[Callable[[], Tensor]]) -> Tensor:
    """Stack what the functions return, without holding all of it twice."""
    first = rows[0]()
    stacked = torch.empty((len(rows), *first.shape), device=first.device)
    for target, row in zip(stacked, rows, strict=True):
        target.copy_(row())
    return stacked


@functools.cache
def _bases(shape: tuple[int, int], device: torch.device) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Return u [r, m], a decaying spectrum s [r], v [r, n] and Δ [m, n]."""
    rank = min(shape)
    left, right = (torch.linalg.qr(torch.randn(side, rank, device=device))[0].T.contiguous() for side in shape)
    values = torch.exp(-4 * torch.arange(rank, device=device) / rank)
    values *= NORM * (shape[0] * shape[1]) ** 0.5 / values.norm()
    return left, values, right, (left * values[:, None]).T @ right

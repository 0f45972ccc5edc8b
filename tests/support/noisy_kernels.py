"""Kernels of another processor: products, sums and decompositions with roundings that are not this one's."""

from __future__ import annotations

import zlib
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from tests.support.helpers import rng

PRODUCTS = {"mm": 0, "bmm": 0, "mv": 0, "dot": 0, "addmm": 1, "baddbmm": 1, "addmm_": 1, "addmv": 1}
"""Operators with the place of their first factor among the arguments."""

DECOMPOSITIONS = ("_linalg_eigh", "_linalg_svd", "linalg_qr")


class NoisyKernels(TorchDispatchMode):
    """Adds to every product u √k |A| |B| times uniform noise in [-1, 1], u the unit roundoff and k the length of its sums; to
    sums and norms the like; to what is decomposed u ‖A‖ √n, as backward stable algorithms do.

    What real kernels differ by: the order of sums and fused multiplications. As theirs, the noise is the same whenever a
    kernel is given the same numbers.
    """

    def __init__(self, seed: int) -> None:
        super().__init__()
        self.seed = seed

    def __torch_dispatch__(self, function: Any, types: Any, arguments: Any = (), named: Any = None) -> Any:
        named, name = named or {}, function.overloadpacket.__name__
        if name in DECOMPOSITIONS:
            matrix = arguments[0]
            noise = self._uniform(matrix) * float(torch.linalg.matrix_norm(matrix)) * self._unit(matrix) * len(matrix) ** 0.5
            # eigh reads one triangle.
            return function(matrix + noise, *arguments[1:], **named)
        before = arguments[0].clone() if name == "addmm_" else None
        result = function(*arguments, **named)
        if name in PRODUCTS and result.is_floating_point():
            first, second = (arguments[PRODUCTS[name] + i].abs() for i in range(2))
            made_of = torch.matmul(first, second) * abs(named.get("alpha", 1))
            if PRODUCTS[name]:
                made_of = made_of + (arguments[0] if before is None else before).abs() * abs(named.get("beta", 1))
            self._disturb(result, made_of * first.shape[-1] ** 0.5)
        elif name in ("sum", "linalg_vector_norm") and isinstance(result, Tensor) and result.is_floating_point():
            whole = arguments[0].numel() / max(result.numel(), 1)
            made_of = function(arguments[0].abs(), *arguments[1:], **named) if name == "sum" else result
            # Whatever the order, a sum of two terms is rounded once.
            self._disturb(result, result.abs() + made_of * max(whole - 2, 0) ** 0.5)
        return result

    def _disturb(self, result: Tensor, made_of: Tensor) -> None:
        result.add_(self._uniform(result) * made_of.to(result.dtype) * self._unit(result))

    def _uniform(self, like: Tensor) -> Tensor:
        seed = zlib.crc32(like.detach().contiguous().numpy().tobytes(), self.seed)
        return (2 * torch.rand(like.shape, generator=rng(seed), dtype=torch.float64) - 1).to(like.dtype)

    @staticmethod
    def _unit(like: Tensor) -> float:
        return torch.finfo(like.dtype).eps / 2

"""Randomly generated experts of real sizes, and what is compared on which part of them."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

import fusionbench_lite as fbl
from benchmarks import merging_reference as reference
from benchmarks.merging_reference import Experts, State
from benchmarks.problem import SIZES, Size
from fusionbench_lite.methods.api import Merged

# isort: split
from open_clip.transformer import VisionTransformer  # after benchmarks.problem, which prepares torchvision

Merge = Callable[[State, Experts], "State | Merged"]
GRID = 2.0**-23
"""All weights are multiples of it, so that θ_t - θ0 and the sums of experts are exact in float32: what a method is said to
err by is its own."""

SPREAD, NORM = 0.02, 0.0003
"""Root mean squares of the entries of the pretrained weights and of the task vectors."""


@dataclasses.dataclass(frozen=True)
class Case:
    """A method on a part of the model, next to its straightforward `reference`.

    The part is the tensors of the first `blocks` blocks of the tower, of these the ones whose names end as `tensors` say;
    `others` adds what is outside the blocks. Goals: the reference takes at least `slower` times the time, or the method
    at most `reading` times that of reading its inputs; `memory` is the most of the reference's peak, or for doGe of one
    matrix's state, work space included; `error` of the result.
    `information`: versions that are only reported. `check`: the tensor on which results are compared with the reference in
    float64, where the reference's own float32 errors are larger than the goal. `steps`: of doGe that are timed. `rounds`: at
    least; the first does not count where there are more than two, because it touches memory for the first time.
    """

    method: str
    part: str
    fast: Merge
    reference: Merge
    blocks: int = 12
    others: bool = False
    tensors: tuple[str, ...] = ("",)
    slower: float | None = None
    reading: float | None = None
    memory: float | None = None
    error: float = 1e-5
    information: Mapping[str, Merge] = dataclasses.field(default_factory=dict)
    check: str | None = None
    steps: int = 0
    rounds: int = 2


def package(method: str, base: State, experts: Experts, **given: object) -> Merged:
    """The package's merge."""
    return fbl.merge(method, base, experts, **given)


def weights(result: State | Merged) -> Mapping[str, Tensor]:
    """Return the state dict of what a version returned."""
    return result.state_dict() if isinstance(result, Merged) else result


BLOCK = ("attn.in_proj_weight", "attn.out_proj.weight", "mlp.c_fc.weight", "mlp.c_proj.weight")
OUT, FC = BLOCK[1], BLOCK[2]


def _one_block(method: str, merge: Merge, **given: Any) -> Case:
    part = "4 matrices of 1 block of 12"
    fast = functools.partial(package, method)
    return Case(method, part, fast, merge, blocks=1, tensors=BLOCK, slower=2.0, check=OUT, **given)


def _doge(tensor: str) -> Case:
    fast = functools.partial(package, "doge_ta", matrices="attn_mlp", steps=1)
    part = tensor.split(".")[1] + " of 1 block of 12"
    straight = functools.partial(reference.doge_ta, steps=1)
    return Case("doge_ta", part, fast, straight, blocks=1, tensors=(tensor,), slower=5.0, memory=1.2, error=1e-4, steps=20)


CASES = (
    Case(
        "task_arithmetic", "all 12 blocks", functools.partial(package, "task_arithmetic"), reference.task_arithmetic,
        others=True, reading=2.0, rounds=6, information={"reading": reference.reading},
    ),
    Case(
        "ties_merging", "4 blocks of 12", functools.partial(package, "ties_merging"), reference.ties_merging, blocks=4,
        slower=3.0, memory=0.25, rounds=3,
    ),
    _one_block("tsv_m", reference.tsv_m),
    _one_block("cart", reference.cart),
    _one_block("iso_c", reference.iso_c, information={"one SVD": reference.iso_c_of_sum}),
    _doge(OUT),
    _doge(FC),
)
METHODS = tuple(dict.fromkeys(case.method for case in CASES))
VIT_B32 = SIZES["vit_b32"]


def layout(size: Size) -> dict[str, tuple[int, ...]]:
    """Return the shapes of the tower's tensors by name."""
    with torch.device("meta"):
        model = VisionTransformer(
            size.image, size.patch, size.width, size.layers, size.heads, mlp_ratio=4.0, output_dim=size.output
        )
    return {f"visual.{name}": tuple(tensor.shape) for name, tensor in model.state_dict().items()}


def draw(size: Size, case: Case) -> tuple[State, dict[str, State]]:
    """Return the pretrained weights and the experts of the part that the case takes, the same for the same arguments."""
    shapes = {name: shape for name, shape in layout(size).items() if _taken(name, case)}
    base = {name: noise(shape, SPREAD, index) for index, (name, shape) in enumerate(shapes.items())}
    experts = {f"task {task}": expert(base, task) for task in range(size.tasks)}
    return base, experts


def expert(base: State, task: int) -> State:
    """Return the weights of one expert."""
    start = (task + 1) * 10_000
    return {name: noise(origin.shape, NORM, start + index).add_(origin) for index, (name, origin) in enumerate(base.items())}


def noise(shape: tuple[int, ...], scale: float, seed: int) -> Tensor:
    """Return normally distributed multiples of GRID."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(shape, generator=generator).mul_(scale / GRID).round_().mul_(GRID)


def _taken(name: str, case: Case) -> bool:
    _, block, rest = name.partition("resblocks.")
    inside = int(rest.split(".")[0]) < case.blocks if block else case.others
    return inside and name.endswith(case.tensors)


def largest_error(got: Mapping[str, Tensor], want: Mapping[str, Tensor], base: State) -> float:
    """Return the largest deviation of a change θ - θ0 in units of the largest change of its tensor."""
    errors = []
    for name, tensor in want.items():
        scale = (tensor - base[name]).abs().max().clamp_min(1e-30)
        errors.append(float((got[name] - tensor).abs().max() / scale))
    return max(errors)

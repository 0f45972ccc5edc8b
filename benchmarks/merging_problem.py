"""Randomly generated experts of real sizes, and what is compared on which part of them."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Mapping

import torch
from torch import Tensor

import fusionbench_lite as fbl
from benchmarks import merging_reference as reference
from benchmarks.merging_reference import Experts, State
from benchmarks.problem import SIZES, Size

# isort: split
from open_clip.transformer import VisionTransformer  # after benchmarks.problem, which prepares torchvision

Merge = Callable[[State, Experts], Mapping[str, Tensor]]
GRID = 2.0**-22
"""All weights are multiples of it, so that θ0 + τ and θ_t - θ0 are exact in float32: errors are those of the methods."""

SPREAD, NORM = 0.02, 0.002
"""Root mean squares of the entries of the pretrained weights and of the task vectors."""


@dataclasses.dataclass(frozen=True)
class Case:
    """A method on a part of the model, with its yardsticks.

    `blocks` and `tensors` choose the part: tensors of the first blocks of the tower, and of these the ones whose names
    end so; `others` adds what is outside the blocks. `slower`: the reference must be as many times slower; `information`:
    further versions that are only reported. `limit`: the most of the time of `yardstick`, where that is not the reference.
    """

    method: str
    part: str
    fast: Merge
    reference: Merge
    blocks: int = 12
    others: bool = False
    tensors: tuple[str, ...] = ("",)
    slower: float = 1.0
    error: float = 1e-5
    memory: float | None = None
    information: Mapping[str, Merge] = dataclasses.field(default_factory=dict)
    check: str | None = None
    steps: int = 0


def package(method: str, base: State, experts: Experts, **given: object) -> Mapping[str, Tensor]:
    """The package's merge, whose result is a state dict of its own."""
    return fbl.merge(method, base, experts, **given).state_dict()


BLOCK = ("attn.in_proj_weight", "attn.out_proj.weight", "mlp.c_fc.weight", "mlp.c_proj.weight")
OUT, FC = BLOCK[1], BLOCK[2]


def _one_block(method: str, merge: Merge, **given: object) -> Case:
    part = "the 4 matrices of one block of 12"
    return Case(method, part, functools.partial(package, method), merge, 1, False, BLOCK, 2.0, check=OUT, **given)


def _doge(tensor: str, shape: str) -> Case:
    fast = functools.partial(package, "doge_ta", matrices="attn_mlp", steps=1)
    part = f"{shape} of one block, 400 steps extrapolated from 20"
    straight = functools.partial(reference.doge_ta, steps=1)
    return Case("doge_ta", part, fast, straight, 1, False, (tensor,), 5.0, error=1e-4, steps=20)


CASES = (
    Case(
        "task_arithmetic", "the whole tower", functools.partial(package, "task_arithmetic"), reference.task_arithmetic,
        others=True, information={"reading": reference.reading},
    ),
    Case(
        "ties_merging", "4 blocks of 12", functools.partial(package, "ties_merging"), reference.ties_merging, 4,
        slower=3.0, memory=0.25,
    ),
    _one_block("tsv_m", reference.tsv_m),
    _one_block("cart", reference.cart),
    _one_block("iso_c", reference.iso_c, information={"one SVD": reference.iso_c_of_sum}),
    _doge(OUT, "out_proj"),
    _doge(FC, "c_fc"),
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
        errors.append(float(((got[name] - tensor).abs().max() / scale)))
    return max(errors)

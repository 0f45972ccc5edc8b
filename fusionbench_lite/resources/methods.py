"""The adaptive methods: what each keeps beside task vectors, and how its steps run."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from fusionbench_lite.resources import tensors
from fusionbench_lite.resources.encoder import WORK, Encoder
from fusionbench_lite.resources.tensors import Tensors


@dataclasses.dataclass(frozen=True)
class Family:
    """How the methods of a family run.

    `costs(encoder, tasks, values, threads)` yields each tensor's cost. `merges`: weights are merged into leaves that take
    gradients. `placeable`: constants follow the place. `new_origin`: merges start from weights other than the pretrained
    ones. `kind` is what a step computes: "descent" through the leaves, "features" of frozen networks alone, "adapters" or
    "routers" on frozen weights, "meta", "training".
    """

    costs: Callable[[Encoder, int, Mapping[str, Any], int], Iterator[Tensors]]
    kind: str = "descent"
    merges: bool = True
    placeable: bool = True
    new_origin: bool = False


def _concrete(encoder: Encoder, tasks: int, values: Mapping[str, Any], threads: int) -> Iterator[Tensors]:
    """The mask, and the task vectors or (Concrete TA) their sum; logits are learned entry by entry."""
    vectors = tasks if "mask_lr" in values or "mask_steps" in values else 1
    for shape in encoder.tensors.values():
        size = math.prod(shape)
        yield Tensors(vectors=vectors * size * WORK, own=size * WORK, learned=size + tasks, room=2 * size * WORK)


def _pareto(encoder: Encoder, tasks: int, values: Mapping[str, Any], threads: int) -> Iterator[Tensors]:
    chosen = encoder.matrices(values.get("matrices", "attn_mlp"))
    named = zip(encoder.tensors.items(), tensors.vectors(encoder, tasks, values, threads), strict=True)
    for (name, shape), own in named:
        if name in chosen:
            rank = min(int(values.get("rank", 16)), *shape)
            own = dataclasses.replace(own, learned=tasks + rank * sum(shape) + tasks * rank**2)
        yield own


def _nothing(encoder: Encoder, tasks: int, values: Mapping[str, Any], threads: int) -> Iterator[Tensors]:
    yield from ()


def _meta(encoder: Encoder, tasks: int, values: Mapping[str, Any], threads: int) -> Iterator[Tensors]:
    rank = int(values.get("rank", 64))
    yield from () if values.get("base") else tensors.vectors(encoder, tasks, values, threads)
    adapters = {"blocks": encoder.layers, "final": 1, "none": 0}[values.get("adapters", "blocks")]
    yield Tensors(learned=tasks * adapters * (2 * encoder.width * rank + rank + encoder.width))


def _adapters(rank: int, sides: list[int], tasks: int, parts: int = 2) -> Iterator[Tensors]:
    yield Tensors(learned=sum(parts * rank * side * tasks for side in sides))


def _surgery(encoder: Encoder, tasks: int, values: Mapping[str, Any], threads: int) -> Iterator[Tensors]:
    return _adapters(int(values.get("rank", 16)), [encoder.output], tasks)


def _prob_surgery(encoder: Encoder, tasks: int, values: Mapping[str, Any], threads: int) -> Iterator[Tensors]:
    return _adapters(int(values.get("hidden", 128)), [encoder.output], 1 if values.get("shared") else tasks, 3)


def _surgery_v2(encoder: Encoder, tasks: int, values: Mapping[str, Any], threads: int) -> Iterator[Tensors]:
    return _adapters(int(values.get("rank", 16)), [encoder.width] * encoder.layers + [encoder.output], tasks)


def _wemoe(encoder: Encoder, tasks: int, values: Mapping[str, Any], threads: int) -> Iterator[Tensors]:
    """The perceptrons of all tasks around the pretrained ones, and a router for each."""
    for name, shape in encoder.tensors.items():
        if ".mlp." in name:
            size = math.prod(shape)
            yield Tensors(own=(1 + tasks) * size * WORK, room=size * encoder.itemsize, setup=tasks * size)
    yield Tensors(learned=encoder.layers * (encoder.width**2 + encoder.width + encoder.width * tasks + tasks))


def _twin(encoder: Encoder, tasks: int, values: Mapping[str, Any], threads: int) -> Iterator[Tensors]:
    """Truncated differences as factors, other tensors whole, biases not at all; a router over the features."""
    ratio = float(values.get("rank_ratio", 0.1))
    for name, shape in encoder.tensors.items():
        if name.endswith("bias"):
            continue
        size = math.prod(shape)
        if len(shape) == 2:
            rank = int(ratio * min(shape))
            factors = tasks * rank * sum(shape)
            room = tasks * size * WORK + tensors.decomposition_room(shape, 1) + 8 * factors
            yield Tensors(own=factors * WORK, room=room, setup=tasks * tensors.decomposition_flops(shape))
        else:
            yield Tensors(own=tasks * size * WORK, room=size * encoder.itemsize)
    wide = 2 * encoder.width
    yield Tensors(learned=encoder.width * wide + wide**2 + wide * tasks + 4 * wide + 2 * wide + tasks)


def summed(encoder: Encoder) -> tuple[int, int]:
    """Return the bytes of all tensors that Twin-Merging sums for every example, and of the largest.

    Linear layers and embeddings that are called apply their low-rank parts to states instead.
    """
    sizes = [
        math.prod(shape) * WORK for name, shape in encoder.tensors.items()
        if not name.endswith("bias") and (len(shape) != 2 or name in ("positional_embedding", "proj"))
    ]
    return sum(sizes), max(sizes)


def _training(encoder: Encoder, tasks: int, values: Mapping[str, Any], threads: int) -> Iterator[Tensors]:
    for shape in encoder.tensors.values():
        yield Tensors(learned=math.prod(shape))


FAMILIES: dict[str, Family] = {
    **dict.fromkeys(("adamerging_taskwise", "adamerging_layerwise"), Family(tensors.vectors)),
    **dict.fromkeys(("adamerging_pp_taskwise", "adamerging_pp_layerwise"), Family(tensors.trimmed)),
    "adamerging_tsvm": Family(tensors.low_rank), "adamerging_iso_cts": Family(tensors.iso),
    "adamerging_cart": Family(tensors.low_rank, new_origin=True),
    "adarank_ta": Family(tensors.adarank), "adarank_cart": Family(tensors.adarank, new_origin=True),
    "adarank_tsvm": Family(tensors.adarank_tsvm),
    "adarank_iso_cts": Family(tensors.adarank_iso), "doge_am": Family(tensors.doge), "awd_am": Family(tensors.awd),
    "concrete_ta": Family(_concrete, placeable=False), "concrete_am": Family(_concrete), "pareto_merging": Family(_pareto),
    "surgery": Family(_surgery, "features", merges=False), "prob_surgery": Family(_prob_surgery, "features", merges=False),
    "surgery_v2": Family(_surgery_v2, "adapters", merges=False), "metamerging": Family(_meta, "meta"),
    "wemoe": Family(_wemoe, "routers", merges=False, placeable=False),
    "twin_merging": Family(_twin, "features", merges=False, placeable=False),
    "traditional_mtl": Family(_training, "training", merges=False, placeable=False),
}
"""The adaptive methods. The sum of task vectors of Concrete TA stays with the model."""

"""Operations of one step of an adaptation."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from typing import Any

from fusionbench_lite.resources.encoder import Encoder


@dataclasses.dataclass(frozen=True)
class Counts:
    """Elements of dense constants, elements that are learned, images of a step, and those of one batch of every task; of
    MetaMerging's steps, the images for the coefficients and for the adapters."""

    dense: int
    learned: int
    images: int
    batch: int
    outer: int = 0
    adapters: int = 0


def step_flops(
    encoder: Encoder, method: str, kind: str, values: Mapping[str, Any], tasks: int, counts: Counts
) -> int:
    """Return the operations of a step: passes, merge, and the gradient's way back; heads and optimizers aside."""
    forward, backward = encoder.forward_flops, encoder.backward_flops
    if kind == "features":
        return 6 * counts.batch * counts.learned // max(tasks, 1)
    if kind == "adapters":
        tokens = counts.learned // max(tasks, 1) * encoder.tokens
        return counts.images * (forward + backward // 2 + 6 * tokens)
    if kind == "routers":
        perceptrons = sum(math.prod(shape) for name, shape in encoder.tensors.items() if ".mlp." in name)
        mixing = 6 * tasks * perceptrons  # weights are mixed in both passes, and their gradient meets every expert's
        return counts.images * (forward + backward + mixing)
    if kind == "training":
        return counts.images * (forward + backward)
    merging = 4 * counts.dense + _components(encoder, method, values, tasks)
    if values.get("mode") == "distance":
        return merging
    if kind == "meta":
        if values.get("base"):
            return adapter_flops(encoder, counts)
        return _meta(forward, backward, encoder.layers, values, counts) + merging
    return counts.images * (forward + backward) + merging


def _components(encoder: Encoder, method: str, values: Mapping[str, Any], tasks: int) -> int:
    """Return the products of AdaRank's way back: every component of every task meets the gradient."""
    if not method.startswith("adarank") or values.get("learn") == "coefficients":
        return 0
    blocks = 1 if method.endswith("iso_cts") else tasks
    shapes = encoder.matrices(values.get("matrices", "attn_mlp")).values()
    return sum(2 * blocks * min(shape) * (math.prod(shape) + max(shape)) for shape in shapes)


def _meta(forward: int, backward: int, layers: int, values: Mapping[str, Any], counts: Counts) -> int:
    """Return a step on the coefficients: the outer passes, the inner ones, and the second-order part of those."""
    inner = int(values.get("inner_steps", 1)) if values.get("adapters", "blocks") != "none" else 0
    # The way back ends at the first adapter, behind the first block.
    each = forward + backward * (layers - 1) // (2 * layers)
    if values.get("order", "second") == "second":
        each += backward + (forward + backward // 2) * (layers - 1) // layers
    return counts.outer * (forward + backward) + counts.images * inner * each


def adapter_flops(encoder: Encoder, counts: Counts) -> int:
    """Return the operations of a step on MetaMerging's adapters: weights take no gradient, and the way back ends at the first."""
    return counts.adapters * (encoder.forward_flops + encoder.backward_flops * (encoder.layers - 1) // (2 * encoder.layers))


def run_flops(encoder: Encoder, kind: str, values: Mapping[str, Any], steps: int, step: int, counts: Counts) -> int:
    """Return the operations of `steps` steps of `step` each, the last of MetaMerging's on its adapters."""
    if kind != "meta" or values.get("base") or values.get("adapters") == "none":
        return step * steps
    chosen = values.get("adapter_steps")
    last = steps // 2 if chosen is None else min(chosen, steps)
    return step * (steps - last) + adapter_flops(encoder, counts) * last

"""Operations of the steps of an adaptation."""

from __future__ import annotations

from fusionbench_lite.resources.plan import Inputs
from fusionbench_lite.weights.costs import WORK, Stage


def step_flops(inputs: Inputs) -> int:
    """Return the operations of a step: passes, merge, and the gradient's way back; heads and optimizers aside.

    With stages it is one of the first of them.
    """
    cost, passes, images, tasks = inputs.cost, inputs.transformer, inputs.images, max(inputs.tasks, 1)
    forward, backward = passes.forward_flops, passes.backward_flops
    if cost.kind == "features":
        return 6 * inputs.read * inputs.batch_size * inputs.learned // tasks
    if cost.kind == "adapters":
        return images * (forward + backward // 2 + 6 * (inputs.learned // tasks * inputs.encoder.tokens))
    if cost.kind == "routers":
        # Weights are mixed in both passes, and their gradient meets every expert's.
        return images * (forward + backward + 6 * inputs.tasks * inputs.encoder.perceptrons)
    if cost.kind == "training":
        return images * (forward + backward)
    if not cost.forward:
        return _merging(inputs)
    if cost.kind == "stages":
        return _of_stage(inputs, cost.stages[0])
    return images * (forward + backward) + _merging(inputs)


def run_flops(inputs: Inputs) -> int:
    """Return the operations of all steps."""
    if inputs.cost.stages:
        return sum(stage.steps * _of_stage(inputs, stage) for stage in inputs.cost.stages)
    return inputs.steps * step_flops(inputs)


def _merging(inputs: Inputs) -> int:
    """Return the operations of a merge and its gradient's way back."""
    tensors = inputs.cost.tensors
    return 4 * (sum(tensor.vectors + tensor.sums for tensor in tensors) // WORK) + sum(tensor.step for tensor in tensors)


def _of_stage(inputs: Inputs, stage: Stage) -> int:
    passes, blocks = inputs.transformer, inputs.encoder.blocks
    forward, backward, images = passes.forward_flops, passes.backward_flops, inputs.read * inputs.batch_of(stage)
    # The way back to the adapters ends at the first, behind the first block; weights take no gradient.
    adapters = forward + backward * (blocks - 1) // (2 * blocks)
    if not stage.merges:
        return images * adapters
    if stage.second:  # its part of every inner step
        adapters += backward + (forward + backward // 2) * (blocks - 1) // blocks
    inner = inputs.images * stage.inner if stage.adapted else 0
    return images * (forward + backward) + inner * adapters + _merging(inputs)

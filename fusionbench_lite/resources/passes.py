"""What the passes of a run take: merges, steps, evaluations."""

from __future__ import annotations

from collections.abc import Iterable

from fusionbench_lite.evaluation.pass_sizes import PLACES, of_images, of_places
from fusionbench_lite.resources.plan import Entry, Inputs
from fusionbench_lite.weights.architecture import Architecture
from fusionbench_lite.weights.costs import BUDGET, WORK, Mixture

EVALUATED = {"cpu": 64, "cuda": 16}
"""Images of an evaluation's pass where its size is found automatically: a processor's at 224 pixels, and the first one on a
GPU, whose later ones take what is free."""

ADAPTER_STATES = 1.0
"""States that an adapter behind a block keeps for its backward pass, in those of the block."""

SECOND_ORDER = 3.0
"""What a second-order step keeps, in passes with attention that is not fused: an inner pass, its gradient's, the outer."""

ROUTED_STATES = 8.0
"""Bytes that mixed layers and their router keep for every entry of a block's states: the layers' inputs, its states."""


def spot_of(inputs: Inputs) -> str:
    """Return where the constants of a method go."""
    return inputs.place if inputs.cost.placeable else "device"


def passes(inputs: Inputs) -> Iterable[Entry]:
    """Yield what merges and steps take beside constants and learnables."""
    cost, encoder, passes, bf16 = inputs.cost, inputs.encoder, inputs.transformer, inputs.bf16
    if cost.kind == "features":
        if cost.mixture is not None and cost.mixture.steps:
            yield from _mixing(inputs, cost.mixture)
        return
    yield from _merging(inputs)
    if not cost.forward:
        return
    if cost.kind == "stages":
        yield from _stages(inputs)
        return
    together = inputs.images
    size = min(inputs.chunk or together, together)
    yield Entry("images of a step", "device", 2 * passes.inputs(together), ("step",))  # and side by side
    frozen = cost.kind in ("adapters", "routers")
    gradients = 0 if frozen else encoder.leaves
    kept = passes.saved(size, bf16=bf16, frozen=frozen) + passes.backward(size, bf16=bf16)
    if cost.kind == "routers":
        kept += int(ROUTED_STATES * encoder.blocks * passes.states(size))
    if cost.merges:
        yield Entry("gradients", "device", gradients, ("merge", "step"))
    # In one pass gradients of weights take the place of what the backward pass has done with.
    spare = 0 if size < together else gradients
    yield Entry("activations", "device", max(kept - spare, passes.backward(size, bf16=bf16)), ("step",))
    if bf16:
        yield Entry("weights in bfloat16", "device", 2 * encoder.multiplied, ("step",))


def _stages(inputs: Inputs) -> Iterable[Entry]:
    """Yield what a step takes, of the greatest of the stages.

    Tasks run one after another, and weights take no gradients in stages that do not merge.
    """
    encoder, passes, bf16 = inputs.encoder, inputs.transformer, inputs.bf16
    images, kept = 0, 0
    for stage in (stage for stage in inputs.cost.stages if stage.runs):
        batch, widest = inputs.batch_of(stage), inputs.together(stage)
        size = min(inputs.chunk or widest, widest)
        images = max(images, inputs.read * (stage.inner * inputs.batch_size * inputs.batches + batch))
        if stage.merges:
            yield Entry("gradients", "device", encoder.leaves, ("merge", "step"))
            states = passes.saved(size, bf16=bf16, plain=True)
            states = int(SECOND_ORDER * states) if stage.second else states
        else:
            states = passes.saved(size, bf16=bf16, frozen=True)
            states += int(ADAPTER_STATES * encoder.blocks * passes.states(size, 2 if bf16 else WORK))
        kept = max(kept, states + passes.backward(size, bf16=bf16))
    yield Entry("images of a step", "device", passes.inputs(images), ("step",))
    yield Entry("activations", "device", kept, ("step",))
    if bf16:
        yield Entry("weights in bfloat16", "device", 2 * encoder.multiplied, ("step",))


def _mixing(inputs: Inputs, mixture: Mixture) -> Iterable[Entry]:
    """Yield what steps take that run mixtures; others read known features alone."""
    passes, together = inputs.transformer, inputs.batch_size * inputs.batches  # a task at a time
    size = max(1, min(inputs.chunk or together, together, BUDGET[inputs.device] // mixture.every))
    kept = passes.saved(size, bf16=inputs.bf16, frozen=True, plain=True) + passes.backward(size, bf16=inputs.bf16)
    kept += int(mixture.states * inputs.encoder.blocks * passes.states(size, 2 if inputs.bf16 else WORK))
    yield Entry("images of a step", "device", passes.inputs(inputs.images), ("step",))
    yield Entry("activations", "device", kept, ("step",))
    yield Entry("weights summed for examples", "device", 2 * size * mixture.every, ("step",))


def _merging(inputs: Inputs) -> Iterable[Entry]:
    """Yield what a merge, and the way back of its gradient, take for the largest tensor."""
    cost, spot = inputs.cost, spot_of(inputs)
    if not cost.merges:
        return
    largest = max((tensor.components for tensor in cost.tensors), default=0)
    yield Entry("active components", "device", largest, ("merge",))
    products = {"cpu": 1 << 20, "cuda": 1 << 26}[inputs.device]
    product = min(max(products * WORK, largest // inputs.tasks), largest)
    yield Entry("products of components", "device", 2 * product, ("merge",))
    if spot != "device" and inputs.device == "cuda":
        yield Entry("merged tensor and gradient on their way", "cpu", 2 * inputs.encoder.largest * WORK, ("merge",))
    if spot == "disk":
        used = max((max(tensor.vectors, tensor.sums, tensor.components) for tensor in cost.tensors), default=0)
        yield Entry("pages in use", "cpu", used, ("merge",))


def _fitting(encoder: Architecture) -> int:
    """Return how many examples a processor evaluates at once: so many pixels, or places of tokens."""
    return of_images(encoder.image**2) if encoder.image else of_places(PLACES, encoder.tokens)


def evaluation(inputs: Inputs, *, learns: bool = True) -> Iterable[Entry]:
    """Yield what an evaluation takes; features of frozen networks are computed for as many images at once."""
    encoder, passes, bf16 = inputs.encoder, inputs.transformer, inputs.bf16
    size = inputs.eval_batch or (_fitting(encoder) if inputs.device == "cpu" else EVALUATED["cuda"])
    held = inputs.tasks * inputs.held_out
    wide = min(inputs.chunk or held, held)
    images = passes.inputs(size) + passes.inputs(size) // 4  # and their bytes
    # Losses on held-out images are in full precision.
    most = max(passes.forward(size, bf16=bf16) + images, passes.forward(wide) + 2 * passes.inputs(held))
    yield Entry("images and states of an evaluation", "device", most, ("evaluate",))
    if not learns:
        return
    if inputs.cost.mixture is not None:
        largest = inputs.cost.mixture.largest
        once = max(1, min(inputs.chunk or size, size, BUDGET[inputs.device] // largest))
        yield Entry("weights summed for examples", "device", 2 * once * largest, ("evaluate",))
    if inputs.cost.kind in ("features", "adapters", "stages"):
        everywhere = encoder.width * encoder.tokens
        widths = {"features": 2 * encoder.output, "stages": everywhere if inputs.cost.everywhere else encoder.output}
        width = widths.get(inputs.cost.kind, encoder.blocks * encoder.width + encoder.output)
        yield Entry("known features", "device", inputs.test_images * width * 4, ("step", "evaluate"))

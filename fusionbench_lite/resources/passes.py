"""What the passes of a run take: merges, steps, evaluations."""

from __future__ import annotations

from collections.abc import Iterable

from fusionbench_lite.resources.encoder import WORK
from fusionbench_lite.resources.methods import Family, summed
from fusionbench_lite.resources.plan import Entry, Inputs
from fusionbench_lite.resources.tensors import Tensors

EVALUATED = {"cpu": 64, "cuda": 16}
"""Images of an evaluation's pass where its size is found automatically: a processor's at 224 pixels, and the first one on a
GPU, whose later ones take what is free."""

BUDGET = {"cpu": 1 << 26, "cuda": 1 << 30}
"""Bytes of weights that Twin-Merging sums for single examples of one pass, as in `adaptation.engine.lazy_weights`."""

ADAPTER_STATES = 1.0
"""States that an adapter behind a block keeps for its backward pass, in those of the block."""

META_SECOND = 3.0
"""What second-order MetaMerging keeps, in passes with attention that is not fused: an inner pass, its gradient's, the outer."""


def spot_of(inputs: Inputs, family: Family) -> str:
    """Return where the constants of a method go."""
    return inputs.place if family.placeable else "device"


def passes(inputs: Inputs, family: Family, tensors: list[Tensors]) -> Iterable[Entry]:
    """Yield what merges and steps take beside constants and learnables."""
    encoder, bf16 = inputs.encoder, inputs.bf16
    if family.kind == "features":
        yield from _mixing(inputs)
        return
    yield from _merging(inputs, family, tensors)
    if family.kind == "descent" and inputs.values.get("mode") == "distance":
        return
    if family.kind == "meta":
        yield from _meta(inputs)
        return
    together = inputs.images
    size = min(inputs.chunk or together, together)
    yield Entry("images of a step", "device", 2 * encoder.inputs(together), ("step",))  # and side by side
    frozen = family.kind in ("adapters", "routers")
    gradients = 0 if frozen else encoder.leaves
    kept = _activations(inputs, family, size) + encoder.backward(size, bf16=bf16)
    if family.merges:
        yield Entry("gradients", "device", gradients, ("merge", "step"))
    # In one pass gradients of weights take the place of what the backward pass has done with.
    spare = 0 if size < together else gradients
    yield Entry("activations", "device", max(kept - spare, encoder.backward(size, bf16=bf16)), ("step",))
    if bf16:
        yield Entry("weights in bfloat16", "device", 2 * encoder.matrix_elements, ("step",))


def _activations(inputs: Inputs, family: Family, size: int) -> int:
    encoder, bf16 = inputs.encoder, inputs.bf16
    frozen = family.kind in ("adapters", "routers")
    kept = encoder.saved(size, bf16=bf16, frozen=frozen)
    if family.kind == "routers":
        kept += int(8 * encoder.layers * encoder.states(size))  # mixed layers keep their inputs, routers their states
    return kept


def _meta(inputs: Inputs) -> Iterable[Entry]:
    """Yield what a step of MetaMerging takes, of the greater of its stages: on the coefficients, then on the adapters.

    Tasks run one after another, and the second stage's weights take no gradients.
    """
    encoder, bf16, values = inputs.encoder, inputs.bf16, inputs.values
    outer, adapters = inputs.batch_of("outer"), inputs.batch_of("adapter")
    widest, read = max(inputs.batch_size * inputs.batches, outer), inputs.read
    first = read * (int(values.get("inner_steps", 1)) * inputs.batch_size * inputs.batches + outer)
    size, last = min(inputs.chunk or widest, widest), min(inputs.chunk or adapters, adapters)
    plain = encoder.saved(size, bf16=bf16, plain=True)
    kept = int(META_SECOND * plain) if values.get("order", "second") == "second" else plain
    kept += encoder.backward(size, bf16=bf16)
    trained = encoder.saved(last, bf16=bf16, frozen=True) + encoder.backward(last, bf16=bf16)
    trained += int(ADAPTER_STATES * encoder.layers * encoder.states(last, 2 if bf16 else WORK))
    if inputs.learns_coefficients:
        yield Entry("gradients", "device", encoder.leaves, ("merge", "step"))
    else:
        first, kept = 0, 0
    if not inputs.trains_adapters:
        adapters, trained = 0, 0
    yield Entry("images of a step", "device", encoder.inputs(max(first, read * adapters)), ("step",))
    yield Entry("activations", "device", max(kept, trained), ("step",))
    if bf16:
        yield Entry("weights in bfloat16", "device", 2 * encoder.matrix_elements, ("step",))


def _mixing(inputs: Inputs) -> Iterable[Entry]:
    """Yield what steps of Twin-Merging take that run mixtures; those on the numbers of the tasks read known features alone."""
    if inputs.method != "twin_merging" or inputs.values.get("router", "tasks") != "entropy":
        return
    encoder, together = inputs.encoder, inputs.batch_size * inputs.batches  # a task at a time
    every, _ = summed(encoder)
    size = max(1, min(inputs.chunk or together, together, BUDGET[inputs.device] // every))
    states = 8 * inputs.tasks * float(inputs.values.get("rank_ratio", 0.1))  # of the components, before and after their gates
    kept = encoder.saved(size, bf16=inputs.bf16, frozen=True, plain=True) + encoder.backward(size, bf16=inputs.bf16)
    kept += int(states * encoder.layers * encoder.states(size, 2 if inputs.bf16 else WORK))
    yield Entry("images of a step", "device", encoder.inputs(inputs.images), ("step",))
    yield Entry("activations", "device", kept, ("step",))
    yield Entry("weights summed for examples", "device", 2 * size * every, ("step",))


def _merging(inputs: Inputs, family: Family, tensors: list[Tensors]) -> Iterable[Entry]:
    """Yield what a merge, and the way back of its gradient, take for the largest tensor."""
    if not family.merges:
        return
    spot = spot_of(inputs, family)
    largest = max((own.components for own in tensors), default=0)
    yield Entry("active components", "device", largest, ("merge",))
    products = {"cpu": 1 << 20, "cuda": 1 << 26}[inputs.device]
    product = min(max(products * WORK, largest // inputs.tasks), largest)
    yield Entry("products of components", "device", 2 * product, ("merge",))
    if spot != "device" and inputs.device == "cuda":
        yield Entry("merged tensor and gradient on their way", "cpu", 2 * inputs.encoder.largest * WORK, ("merge",))
    if spot == "disk":
        yield Entry("pages in use", "cpu", max(max(own.vectors, own.sums, own.components) for own in tensors), ("merge",))


def evaluation(inputs: Inputs, family: Family) -> Iterable[Entry]:
    """Yield what an evaluation takes; features of frozen networks are computed for as many images at once."""
    encoder, bf16 = inputs.encoder, inputs.bf16
    size = inputs.eval_batch or (min(250, 64 * 224**2 // encoder.image**2) if inputs.device == "cpu" else EVALUATED["cuda"])
    held = inputs.tasks * inputs.held_out
    wide = min(inputs.chunk or held, held)
    images = encoder.inputs(size) + encoder.inputs(size) // 4  # and their bytes
    # Losses on held-out images are in full precision.
    most = max(encoder.forward(size, bf16=bf16) + images, encoder.forward(wide) + 2 * encoder.inputs(held))
    yield Entry("images and states of an evaluation", "device", most, ("evaluate",))
    if inputs.method == "twin_merging":
        _, largest = summed(encoder)
        once = max(1, min(inputs.chunk or size, size, BUDGET[inputs.device] // largest))
        yield Entry("weights summed for examples", "device", 2 * once * largest, ("evaluate",))
    if family.kind in ("features", "adapters", "meta"):
        widths = {"features": 2 * encoder.output, "meta": encoder.output}
        width = widths.get(family.kind, encoder.layers * encoder.width + encoder.output)
        yield Entry("known features", "device", inputs.test_images * width * 4, ("step", "evaluate"))

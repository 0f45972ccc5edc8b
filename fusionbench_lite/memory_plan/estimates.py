"""Bytes and operations of a run, before it starts: from shapes and settings alone."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable

from fusionbench_lite.errors import InputError, did_you_mean
from fusionbench_lite.memory_plan.encoder import WORK
from fusionbench_lite.memory_plan.methods import FAMILIES, Family
from fusionbench_lite.memory_plan.plan import PHASES, Entry, Estimate, Flops, Inputs
from fusionbench_lite.memory_plan.steps import Counts, step_flops
from fusionbench_lite.memory_plan.tensors import Tensors

AFTER = PHASES[2:]
PLACES = ("device", "cpu", "disk")

KNOWN_AT_ONCE = 250
"""Examples of which a run computes frozen features at once."""

EVALUATED = {"cpu": 64, "cuda": 16}
"""Images of an evaluation's pass where its size is found automatically: a processor's at 224 pixels, and the first one on a
GPU, whose later ones take what is free."""

LAZY = {"cpu": 1 << 27, "cuda": 1 << 31}
"""Bytes of weights that Twin-Merging sums for single examples, and of what makes them: twice its budget."""

SHARE = 0.25
"""Sums that only save time take at most this part of a memory, as in `adaptation.engine.memory`."""


def estimate(inputs: Inputs) -> Estimate:
    """Return the bytes by item and phase, and the operations, of a run. Nothing is allocated.

    Methods that need no data count as streamed merges. Raises InputError for an unknown place or device.
    """
    for what, given, choices in (
        ("place", inputs.place, PLACES), ("device", inputs.device, ("cpu", "cuda")),
        ("precision", inputs.precision, ("fp32", "bf16")), ("experts", inputs.experts, (*PLACES, "memory")),
    ):
        if given not in choices:
            raise InputError(f"unknown {what} {given!r} in a memory plan: {did_you_mean(str(given), choices)}")
    family = FAMILIES.get(inputs.method)
    if family is None:
        return Estimate(inputs, tuple(_kept(_streamed(inputs))), _merge_flops(inputs))
    inputs = _decided(inputs)
    tensors = list(family.costs(inputs.encoder, inputs.tasks, inputs.values, inputs.threads))
    entries = [*_weights(inputs, family), *_constants(inputs, family, tensors), *_learned(inputs, family, tensors)]
    entries += [*_passes(inputs, family, tensors), *_evaluation(inputs, family)]
    return Estimate(inputs, tuple(_kept(entries)), _flops(inputs, family, tensors))


def _kept(entries: Iterable[Entry]) -> Iterable[Entry]:
    return (entry for entry in entries if entry.nbytes > 0)


def _decided(inputs: Inputs) -> Inputs:
    """Return the inputs with AdaRank's decision to keep dense sums, where memories are known."""
    total = inputs.device_total if inputs.place == "device" and inputs.device == "cuda" else inputs.cpu_total
    if inputs.place == "disk" or total is None or "keep" in inputs.values:
        return inputs
    keep = inputs.tasks * inputs.encoder.elements * WORK <= SHARE * total
    return dataclasses.replace(inputs, values={**inputs.values, "keep": keep})


def _spot(inputs: Inputs, family: Family) -> str:
    return inputs.place if family.placeable else "device"


def _weights(inputs: Inputs, family: Family) -> Iterable[Entry]:
    encoder, spot = inputs.encoder, _spot(inputs, family)
    beside = "device" if spot == "device" or family.kind == "training" else "cpu"
    yield Entry("model", "device", encoder.stored, PHASES)
    yield Entry("heads", "device", sum(inputs.classes) * encoder.output * 4, PHASES)
    if inputs.experts == "memory":
        yield Entry("pretrained weights", "device", encoder.stored, PHASES)
        yield Entry("experts", "device", inputs.tasks * encoder.stored, PHASES)
        if inputs.device == "cuda" and beside == "cpu" and family.merges:
            yield Entry("origins of the merge", "cpu", encoder.leaves, PHASES[1:])
    else:
        if inputs.experts != "disk":  # else their files are where they were
            phases = PHASES[:2] if family.kind in ("descent", "training") else PHASES
            yield Entry("experts", inputs.experts, inputs.tasks * encoder.stored, phases)
        if family.kind in ("descent", "meta") and not (family.new_origin and inputs.experts == "disk"):
            yield Entry("pretrained weights", beside, encoder.stored, PHASES if inputs.experts != "disk" else PHASES[1:])
    if family.new_origin:
        yield Entry("average of the experts", beside, encoder.leaves, PHASES[1:])
    if family.merges:
        yield Entry("merged weights", "device", encoder.leaves, AFTER)
    elif family.kind != "training":
        yield Entry("merged base", "device", encoder.stored, PHASES)
        yield Entry("copy while merging", "device", encoder.stored + (inputs.tasks + 2) * encoder.largest * WORK, ("load",))
    if family.kind == "meta" and inputs.experts != "memory":
        yield Entry("pretrained weights as a base", "device", encoder.stored, PHASES[1:])
    if family.kind == "routers" or inputs.method == "twin_merging":
        yield Entry("copy of the model", "device", encoder.stored, ("build",))
    if family.kind in ("features", "adapters", "meta") and inputs.method != "twin_merging" and inputs.experts != "memory":
        yield Entry("expert whose features are computed", "device", encoder.stored, ("step", "evaluate"))


def _constants(inputs: Inputs, family: Family, tensors: list[Tensors]) -> Iterable[Entry]:
    """Yield what a method makes once, and the room for making it, tensor after tensor."""
    spot = _spot(inputs, family)
    for what, total in (
        ("task vectors", sum(own.vectors for own in tensors)), ("dense sums", sum(own.sums for own in tensors)),
        ("singular components", sum(own.components for own in tensors)),
    ):
        yield Entry(what, spot, total, PHASES[1:])
    yield Entry("masks and experts' parts", "device", sum(own.own for own in tensors), PHASES[1:])
    if spot == "device" or (spot == "cpu" and inputs.device == "cpu"):
        made, peak = 0, 0
        for own in tensors:
            peak = max(peak, made + own.placed + own.own + own.room)
            made += own.placed + own.own
        yield Entry("room for making them", "device", max(0, peak - made), ("build",))
        return
    room = max((own.placed + own.room for own in tensors), default=0)
    yield Entry("room for making them", "device", room, ("build",))
    if spot == "disk":  # a file's pages are in memory while they are written
        yield Entry("pages being written", "cpu", max((own.placed for own in tensors), default=0), ("build",))


def _learned(inputs: Inputs, family: Family, tensors: list[Tensors]) -> Iterable[Entry]:
    learned = sum(own.learned for own in tensors) * WORK
    yield Entry("learnables", "device", learned, PHASES[1:])
    moments = 2 * learned
    if family.kind == "training":
        yield Entry("gradients", "device", learned, ("merge", "step"))
    elif not inputs.method.startswith("concrete"):  # its logits' gradients take the memory of the weights'
        moments += learned
    yield Entry("optimizer", "device", moments, AFTER)


def _passes(inputs: Inputs, family: Family, tensors: list[Tensors]) -> Iterable[Entry]:
    encoder, bf16 = inputs.encoder, inputs.bf16
    if family.kind == "features":
        return
    yield from _merging(inputs, family, tensors)
    if family.kind == "descent" and inputs.values.get("mode") == "distance":
        return
    per_task = family.kind == "meta"
    together = inputs.batch_size * inputs.batches if per_task else inputs.images
    size = min(inputs.chunk or together, together)
    draws = 1 + int(inputs.values.get("inner_steps", 1)) if per_task else 1
    copies = draws if per_task else 2  # and side by side
    yield Entry("images of a step", "device", copies * encoder.inputs(inputs.images), ("step",))
    frozen = family.kind in ("adapters", "routers")
    gradients = 0 if frozen else encoder.leaves
    kept = _activations(inputs, family, size) + encoder.backward(size, bf16=bf16)
    if family.merges:
        yield Entry("gradients", "device", gradients, ("merge", "step"))
    # In one pass gradients of weights take the place of what the backward pass has done with.
    spare = 0 if size < together or per_task else gradients
    yield Entry("activations", "device", max(kept - spare, encoder.backward(size, bf16=bf16)), ("step",))
    if bf16:
        yield Entry("weights in bfloat16", "device", 2 * encoder.matrix_elements, ("step",))


def _activations(inputs: Inputs, family: Family, size: int) -> int:
    encoder, bf16 = inputs.encoder, inputs.bf16
    if family.kind == "meta":
        plain = encoder.saved(size, bf16=bf16, plain=True)
        second = inputs.values.get("order", "second") == "second" and not inputs.values.get("base")
        return int(META_SECOND * plain) if second else plain
    frozen = family.kind in ("adapters", "routers")
    kept = encoder.saved(size, bf16=bf16, frozen=frozen)
    if family.kind == "routers":
        kept += int(8 * encoder.layers * encoder.states(size))  # mixed layers keep their inputs, routers their states
    return kept


META_SECOND = 3.0
"""What second-order MetaMerging keeps, in passes with attention that is not fused: an inner pass, its gradient's, the outer."""


def _merging(inputs: Inputs, family: Family, tensors: list[Tensors]) -> Iterable[Entry]:
    """Yield what a merge, and the way back of its gradient, take for the largest tensor."""
    if not family.merges:
        return
    spot = _spot(inputs, family)
    largest = max((own.components for own in tensors), default=0)
    yield Entry("active components", "device", largest, ("merge",))
    products = {"cpu": 1 << 20, "cuda": 1 << 26}[inputs.device]
    product = min(max(products * WORK, largest // inputs.tasks), largest)
    yield Entry("products of components", "device", 2 * product, ("merge",))
    if spot != "device" and inputs.device == "cuda":
        yield Entry("merged tensor and gradient on their way", "cpu", 2 * inputs.encoder.largest * WORK, ("merge",))
    if spot == "disk":
        yield Entry("pages in use", "cpu", max(max(own.vectors, own.sums, own.components) for own in tensors), ("merge",))


def _evaluation(inputs: Inputs, family: Family) -> Iterable[Entry]:
    encoder, bf16 = inputs.encoder, inputs.bf16
    size = inputs.eval_batch or (min(250, 64 * 224**2 // encoder.image**2) if inputs.device == "cpu" else EVALUATED["cuda"])
    knows = family.kind in ("features", "adapters", "meta")
    if knows and inputs.test_images:
        size = max(size, min(KNOWN_AT_ONCE, inputs.test_images, inputs.chunk or KNOWN_AT_ONCE))
    held = inputs.tasks * inputs.held_out
    wide = min(inputs.chunk or held, held)
    images = encoder.inputs(size) + encoder.inputs(size) // 4  # and their bytes
    passes = max(encoder.forward(size, bf16=bf16) + images, encoder.forward(wide, bf16=bf16) + 2 * encoder.inputs(held))
    yield Entry("images and states of an evaluation", "device", passes, ("evaluate",))
    if inputs.method == "twin_merging":
        yield Entry("weights summed for examples", "device", LAZY[inputs.device], ("evaluate",))
    if family.kind in ("features", "adapters", "meta"):
        widths = {"features": 2 * encoder.output, "meta": encoder.output}
        width = widths.get(family.kind, encoder.layers * encoder.width + encoder.output)
        yield Entry("known features", "device", inputs.test_images * width * 4, ("step", "evaluate"))


def _streamed(inputs: Inputs) -> Iterable[Entry]:
    """Yield what a merge that needs no data takes: a tensor of every expert, and the result with a copy of it."""
    encoder = inputs.encoder
    yield Entry("model", "device", encoder.stored, PHASES)
    yield Entry("heads", "device", sum(inputs.classes) * encoder.output * 4, PHASES)
    if inputs.experts != "disk":
        where = {"memory": "device"}.get(inputs.experts, inputs.experts)
        yield Entry("experts", where, (inputs.tasks + 1) * encoder.stored, PHASES)
    yield Entry("a tensor of every expert", "device", (inputs.tasks + 4) * encoder.largest * WORK, ("build",))
    yield Entry("merged weights", "device", encoder.stored, PHASES[1:])
    yield Entry("copy of them", "device", encoder.stored, AFTER)
    yield from _evaluation(inputs, Family(FAMILIES["adamerging_layerwise"].costs))


def _merge_flops(inputs: Inputs) -> Flops:
    image, setup = inputs.encoder.forward_flops, 2 * inputs.tasks * inputs.encoder.elements
    evaluation = image * inputs.test_images * inputs.evaluations
    return Flops(image, 0, setup, evaluation, setup + evaluation)


def _flops(inputs: Inputs, family: Family, tensors: list[Tensors]) -> Flops:
    image = inputs.encoder.forward_flops
    setup = sum(own.setup for own in tensors)
    if family.kind in ("features", "adapters", "meta"):  # features of experts, and of what is merged, once per example
        setup += (2 if family.kind == "features" else 1) * image * inputs.test_images
    counts = Counts(
        sum(own.vectors + own.sums for own in tensors) // WORK, sum(own.learned for own in tensors), inputs.images,
        inputs.tasks * inputs.batch_size,
    )
    step = step_flops(inputs.encoder, inputs.method, family.kind, inputs.values, inputs.tasks, counts)
    evaluation = 0 if family.kind == "features" else image * inputs.test_images * inputs.evaluations
    return Flops(image, step, setup, evaluation, setup + step * inputs.steps + evaluation)

"""Bytes and operations of a run, before it starts: from shapes and settings alone."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable

from fusionbench_lite.errors import InputError, did_you_mean
from fusionbench_lite.resources.encoder import WORK
from fusionbench_lite.resources.methods import FAMILIES, Family
from fusionbench_lite.resources.passes import evaluation, passes, spot_of
from fusionbench_lite.resources.plan import AFTER, PHASES, Entry, Estimate, Flops, Inputs
from fusionbench_lite.resources.steps import Counts, run_flops, step_flops
from fusionbench_lite.resources.tensors import Tensors

PLACES = ("device", "cpu", "disk")

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
    entries += [*passes(inputs, family, tensors), *evaluation(inputs, family)]
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


def _weights(inputs: Inputs, family: Family) -> Iterable[Entry]:
    encoder, spot = inputs.encoder, spot_of(inputs, family)
    given = family.kind == "meta" and bool(inputs.values.get("base"))  # adapters on weights that were merged before
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
        if family.kind in ("descent", "meta") and not given and not (family.new_origin and inputs.experts == "disk"):
            yield Entry("pretrained weights", beside, encoder.stored, PHASES if inputs.experts != "disk" else PHASES[1:])
    if family.new_origin:
        yield Entry("average of the experts", beside, encoder.leaves, PHASES[1:])
    if family.merges and not given:
        yield Entry("merged weights", "device", encoder.leaves, AFTER)
    elif family.kind != "training":
        yield Entry("merged base", "device", encoder.stored, PHASES)
        yield Entry("copy while merging", "device", encoder.stored + (inputs.tasks + 2) * encoder.largest * WORK, ("load",))
    if family.kind == "meta" and not given and inputs.experts != "memory":
        yield Entry("pretrained weights as a base", "device", encoder.stored, PHASES[1:])
    if family.kind == "routers" or inputs.method == "twin_merging":
        yield Entry("copy of the model", "device", encoder.stored, ("build",))
    if family.kind in ("features", "adapters", "meta") and inputs.method != "twin_merging" and inputs.experts != "memory":
        yield Entry("expert whose features are computed", "device", encoder.stored, ("step", "evaluate"))


def _constants(inputs: Inputs, family: Family, tensors: list[Tensors]) -> Iterable[Entry]:
    """Yield what a method makes once, and the room for making it, tensor after tensor."""
    spot = spot_of(inputs, family)
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
    yield from evaluation(inputs, Family(FAMILIES["adamerging_layerwise"].costs))


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
        inputs.read * inputs.batch_size, inputs.read * inputs.batch_of("outer"), inputs.read * inputs.batch_of("adapter"),
    )
    step = step_flops(inputs.encoder, inputs.method, family.kind, inputs.values, inputs.tasks, counts)
    evaluation = 0 if family.kind == "features" else image * inputs.test_images * inputs.evaluations
    steps = run_flops(inputs.encoder, family.kind, inputs.values, inputs.steps, step, counts)
    return Flops(image, step, setup, evaluation, setup + steps + evaluation)

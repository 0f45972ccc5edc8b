"""Bytes and operations of a run, before it starts: from shapes and settings alone."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable

from fusionbench_lite.errors import InputError, did_you_mean
from fusionbench_lite.resources.passes import evaluation, passes, spot_of
from fusionbench_lite.resources.plan import AFTER, PHASES, Entry, Estimate, Flops, Inputs
from fusionbench_lite.resources.steps import run_flops, step_flops
from fusionbench_lite.weights.costs import SHARE, WORK

PLACES = ("device", "cpu", "disk")


def estimate(inputs: Inputs) -> Estimate:
    """Return the bytes by item and phase, and the operations, of a run. Nothing is allocated.

    Methods that need no data count as streamed merges. Raises InputError for an unknown place or device, and what the
    registry raises for an unknown method or hyperparameter.
    """
    for what, given, choices in (
        ("place", inputs.place, PLACES), ("device", inputs.device, ("cpu", "cuda")),
        ("precision", inputs.precision, ("fp32", "bf16")), ("experts", inputs.experts, (*PLACES, "memory")),
    ):
        if given not in choices:
            raise InputError(f"unknown {what} {given!r} in a memory plan: {did_you_mean(str(given), choices)}")
    if not inputs.entry.adaptive:
        return Estimate(inputs, tuple(_kept(_streamed(inputs))), _merge_flops(inputs))
    inputs = _decided(inputs)
    entries = [*_weights(inputs), *_constants(inputs), *_learned(inputs), *passes(inputs), *evaluation(inputs)]
    return Estimate(inputs, tuple(_kept(entries)), _flops(inputs))


def _kept(entries: Iterable[Entry]) -> Iterable[Entry]:
    return (entry for entry in entries if entry.nbytes > 0)


def _decided(inputs: Inputs) -> Inputs:
    """Return the inputs with the decision whether sums that only save time are kept, where memories are known."""
    total = inputs.device_total if inputs.place == "device" and inputs.device == "cuda" else inputs.cpu_total
    if inputs.place == "disk" or total is None or inputs.keep is not None:
        return inputs
    return dataclasses.replace(inputs, keep=inputs.tasks * inputs.encoder.parameters * WORK <= SHARE * total)


def _weights(inputs: Inputs) -> Iterable[Entry]:
    encoder, cost, spot = inputs.encoder, inputs.cost, spot_of(inputs)
    merges_later = cost.kind in ("descent", "stages") and not cost.given
    beside = "device" if spot == "device" or cost.kind == "training" else "cpu"
    yield Entry("model", "device", encoder.stored, PHASES)
    yield Entry("heads", "device", sum(inputs.classes) * encoder.output * 4, PHASES)
    if inputs.experts == "memory":
        yield Entry("pretrained weights", "device", encoder.stored, PHASES)
        yield Entry("experts", "device", inputs.tasks * encoder.stored, PHASES)
        if inputs.device == "cuda" and beside == "cpu" and cost.merges:
            yield Entry("origins of the merge", "cpu", encoder.leaves, PHASES[1:])
    else:
        if inputs.experts != "disk":  # else their files are where they were
            phases = PHASES[:2] if cost.kind in ("descent", "training") else PHASES
            yield Entry("experts", inputs.experts, inputs.tasks * encoder.stored, phases)
        if merges_later and not (cost.new_origin and inputs.experts == "disk"):
            yield Entry("pretrained weights", beside, encoder.stored, PHASES if inputs.experts != "disk" else PHASES[1:])
    if cost.new_origin:
        yield Entry("average of the experts", beside, encoder.leaves, PHASES[1:])
    if cost.merges and not cost.given:
        yield Entry("merged weights", "device", encoder.leaves, AFTER)
    elif cost.kind != "training":
        yield Entry("merged base", "device", encoder.stored, PHASES)
        yield Entry("copy while merging", "device", encoder.stored + (inputs.tasks + 2) * encoder.largest * WORK, ("load",))
    yield from _networks(inputs)


def _networks(inputs: Inputs) -> Iterable[Entry]:
    """Yield the further networks whose features, or copies of which, are run."""
    encoder, cost = inputs.encoder, inputs.cost
    if cost.kind == "stages" and not cost.given and inputs.experts != "memory":
        yield Entry("pretrained weights as a base", "device", encoder.stored, PHASES[1:])
    if cost.kind == "routers" or cost.mixture is not None:
        yield Entry("copy of the model", "device", encoder.stored, ("build",))
    if cost.kind in ("features", "adapters", "stages") and cost.mixture is None and inputs.experts != "memory":
        yield Entry("expert whose features are computed", "device", encoder.stored, ("step", "evaluate"))


def _constants(inputs: Inputs) -> Iterable[Entry]:
    """Yield what a method makes once, and the room for making it, tensor after tensor."""
    tensors, spot = inputs.cost.tensors, spot_of(inputs)
    for what, total in (
        ("task vectors", sum(tensor.vectors for tensor in tensors)), ("dense sums", sum(tensor.sums for tensor in tensors)),
        ("singular components", sum(tensor.components for tensor in tensors)),
    ):
        yield Entry(what, spot, total, PHASES[1:])
    yield Entry("masks and experts' parts", "device", sum(tensor.own for tensor in tensors), PHASES[1:])
    if spot == "device" or (spot == "cpu" and inputs.device == "cpu"):
        made, peak = 0, 0
        for tensor in tensors:
            peak = max(peak, made + tensor.placed + tensor.own + tensor.room)
            made += tensor.placed + tensor.own
        yield Entry("room for making them", "device", max(0, peak - made), ("build",))
        return
    room = max((tensor.placed + tensor.room for tensor in tensors), default=0)
    yield Entry("room for making them", "device", room, ("build",))
    if spot == "disk":  # a file's pages are in memory while they are written
        yield Entry("pages being written", "cpu", max((tensor.placed for tensor in tensors), default=0), ("build",))


def _learned(inputs: Inputs) -> Iterable[Entry]:
    learned = inputs.learned * WORK
    yield Entry("learnables", "device", learned, PHASES[1:])
    moments = 2 * learned
    if inputs.cost.kind == "training":
        yield Entry("gradients", "device", learned, ("merge", "step"))
    elif inputs.cost.gradients:
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
    yield from evaluation(inputs, learns=False)


def _merge_flops(inputs: Inputs) -> Flops:
    image, setup = inputs.transformer.forward_flops, 2 * inputs.tasks * inputs.encoder.parameters
    evaluation = image * inputs.test_images * inputs.evaluations
    return Flops(image=image, step=0, setup=setup, evaluation=evaluation, total=setup + evaluation)


def _flops(inputs: Inputs) -> Flops:
    image, kind = inputs.transformer.forward_flops, inputs.cost.kind
    setup = sum(tensor.setup for tensor in inputs.cost.tensors)
    if kind in ("features", "adapters", "stages"):  # features of experts, and of what is merged, once per example
        setup += (2 if kind == "features" else 1) * image * inputs.test_images
    evaluation = 0 if kind == "features" else image * inputs.test_images * inputs.evaluations
    return Flops(
        image=image, step=step_flops(inputs), setup=setup, evaluation=evaluation, total=setup + run_flops(inputs) + evaluation
    )

"""What becomes of one source file: the tensors of its converted file and what their metadata say beside the source."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from fusionbench_lite.checkpoints import reading
from fusionbench_lite.checkpoints.api import Request
from fusionbench_lite.checkpoints.families import Family
from fusionbench_lite.checkpoints.locating import SourceFile
from fusionbench_lite.errors import InputError
from fusionbench_lite.models import clip
from fusionbench_lite.models.clip import ClipSize
from fusionbench_lite.weights import clip_keys
from fusionbench_lite.weights.readers import SafetensorsWeights

if TYPE_CHECKING:
    from torch import Tensor

Converted = tuple[dict[str, "Tensor"], dict[str, str]]


def virtual_zeros(size: ClipSize) -> int:
    """Return the number of text-side elements that an image encoder of the open_clip families carries along."""
    shapes = clip.text_shapes(size)
    total = 0
    for name in clip_keys.TEXT_SIDE:
        elements = 1
        for side in shapes[name]:
            elements *= side
        total += elements
    return total


def base(source: SourceFile, request: Request, family: Family, part: str) -> Converted:
    """Return "pretrained", "text", "leftovers" or "constants" of the family's pretrained model."""
    who, size = f"the pretrained model {source.where}", request.size
    raw = reading.read(source.path)
    if part == "text":
        renamed = clip_keys.text_to_open_clip if family.base == "transformers" else clip_keys.text_of_open_clip
        text = reading.as_float32(renamed(raw.tensors, who), who)
        reading.check_shapes(text, clip.text_shapes(size), (), who)
        return text, {}
    layout = "separate" if family.base == "transformers" else "packed"
    tower = reading.tower(raw, request.model, size, layout, request.layout, who)
    projection = clip_keys.PROJECTION[request.layout]
    if projection not in tower.visual:
        raise InputError(f"{who} lacks its projection {projection!r}: give the file of the whole model")
    if part == "constants":
        return {projection: tower.visual[projection]}, {}
    if part == "leftovers":
        rest = reading.as_float32(tower.rest, who)
        expected = {name: clip.text_shapes(size)[name] for name in clip_keys.TEXT_SIDE}
        kept = {name: tensor for name, tensor in rest.items() if name in expected}
        reading.check_shapes(kept, expected, (), who)
        return kept, {}
    if family.frozen_projection:
        return {name: tensor for name, tensor in tower.visual.items() if name != projection}, tower.said
    return ordered(tower.visual, size, request.layout), tower.said


def expert(source: SourceFile, request: Request, family: Family, task: str, reference: Path, base: str) -> Converted:
    """Return an expert's tower; what lies beside it must be that of the pretrained model, in the file `reference`.

    `base` is the SHA-256 of the pretrained model's source, against which it was compared.
    """
    who = f"the expert of {task!r} {source.where}"
    raw = reading.read(source.path)
    tower = reading.tower(raw, request.model, request.size, family.layout, request.layout, who)
    visual, projection = dict(tower.visual), clip_keys.PROJECTION[request.layout]
    rest = dict(tower.rest)
    if family.frozen_projection and projection in visual:
        rest[projection] = visual.pop(projection)
    if not family.frozen_projection and projection not in visual:
        raise InputError(f"{who} lacks {projection!r}, which this family merges: it is no file of {family.title}")
    count = reading.check_untouched(rest, SafetensorsWeights(reference), who)
    said = {"base": base, **tower.said, "form": raw.form, "leftovers": str(count)}
    return ordered(visual, request.size, request.layout), said


def head(source: SourceFile, request: Request, family: Family, task: str) -> Converted:
    """Return a shipped head as {"weight": [C, d]}."""
    who = f"the head of {task!r} {source.where}"
    return {"weight": reading.head(reading.read(source.path), request.size, classes_of(task, family.variant), who)}, {}


def classes_of(task: str, variant: str) -> int | None:
    """Return the number of classes of a published task; None for another."""
    from fusionbench_lite.models import text_heads

    try:
        return len(text_heads.prompts(task, variant).classnames)
    except InputError:
        return None


def ordered(visual: dict[str, Tensor], size: ClipSize, layout: str) -> dict[str, Tensor]:
    """Return the tensors of a tower in the order of the model's state dict."""
    return {name: visual[name] for name in clip.shapes(size, layout) if name in visual}

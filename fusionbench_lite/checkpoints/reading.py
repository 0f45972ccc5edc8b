"""The towers and heads in source files, and whether they are what they should be."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING

import torch

from fusionbench_lite.checkpoints.opening import Raw, read, whole
from fusionbench_lite.errors import InputError, did_you_mean
from fusionbench_lite.models import clip
from fusionbench_lite.models.clip import ClipSize
from fusionbench_lite.weights import clip_keys, foreign, quantised

if TYPE_CHECKING:
    from torch import Tensor

__all__ = [
    "Raw", "Tower", "as_float32", "check_backbone", "check_shapes", "check_untouched", "head", "looks_like", "parted", "read",
    "tower", "whole",
]

_NAMES = {"packed": "open_clip's names", "separate": "transformers' names"}
_OWNERS = {"packed": "files of Task Arithmetic and TALL-masks", "separate": "files of FusionBench"}
_FAMILIES = {"packed": "ta, tall or ta_tall", "separate": "fusionbench"}
_WIDENED = (torch.float16, torch.bfloat16)
NORMS_ALIKE = 1e-2
"""Relative difference of the row norms of a zero-shot head, which are all the logit scale; half precision keeps 1e-3."""


@dataclasses.dataclass(frozen=True)
class Tower:
    """A checked image tower in float32: tensors in the wanted layout, what else the file held, the dtype it was stored in, and
    what was taken off the names in the file."""

    visual: dict[str, Tensor]
    rest: dict[str, Tensor]
    stored: str
    taken: str = ""

    @property
    def said(self) -> dict[str, str]:
        """What the metadata of a converted file say of it. A file converted by 0.5 or earlier does not tell what was taken off."""
        return {"stored": self.stored, **({"taken_off": self.taken} if self.taken else {})}


def parted(raw: Raw, who: str) -> clip_keys.Split:
    """Return the image tower of a file and what lies beside it. Raises InputError for other towers, half and quantised ones."""
    with whole(raw, who):
        parts = clip_keys.split(raw.tensors, who)
        sign = quantised.sign({name: _spelled(tensor.dtype) for name, tensor in parts.visual.items()})
        if sign is not None:
            raise InputError(f"{who}: {sign[0]!r} is stored quantised ({sign[1]}): {quantised.FIX}")
        shapes = {name: tuple(tensor.shape) for name, tensor in parts.visual.items()}
        wrong = foreign.half(shapes, parts.layout, parts.place)
        if wrong is not None:
            raise InputError(f"{who} {wrong[0]}: {wrong[1]}")
        return parts


def _spelled(dtype: torch.dtype) -> str:
    """Return a dtype as safetensors writes it: F32, BF16, I8, U8, F8_E4M3, BOOL."""
    kind, bits, rest = re.fullmatch(r"torch\.([a-z]+)(\d*)(.*)", str(dtype)).groups()  # type: ignore[union-attr]
    return {"float": "F", "bfloat": "BF", "int": "I", "uint": "U"}.get(kind, kind.upper()) + bits + rest.upper()


def tower(raw: Raw, model: str, size: ClipSize, expected: str | None, wanted: str, who: str) -> Tower:
    """Return the image tower of a file in the `wanted` layout, checked against the model's shapes.

    `expected` is the layout that the files of its family have, None for either. The projection may be missing. Raises
    InputError for a file of another family, an expert of another backbone, missing or unknown tensors, another dtype and
    values that are not finite.
    """
    parts = parted(raw, who)
    if expected is not None and parts.layout != expected:
        raise InputError(
            f"{who} has {_NAMES[parts.layout]}, as {_OWNERS[parts.layout]} have, and {_NAMES[expected]} are needed: "
            f"use checkpoints={_FAMILIES[parts.layout]}, or another file"
        )
    check_backbone(parts.visual, parts.layout, model, size, who)
    stored = _stored(parts.visual, who)
    with whole(raw, who):
        check_shapes(parts.visual, clip.shapes(size, parts.layout), {clip_keys.PROJECTION[parts.layout]}, who)
    visual = as_float32(parts.visual, who)
    visual = clip_keys.as_layout(visual, wanted, who) if parts.layout != wanted else visual
    return Tower(visual, parts.rest, stored, ", ".join(parts.taken))


def looks_like(visual: Mapping[str, Tensor], layout: str) -> tuple[str, tuple[int, int, int]]:
    """Return the model whose patch, width and number of blocks a tower has, or these numbers in words; and the numbers."""
    convolution = visual["conv1.weight" if layout == "packed" else "vision_model.embeddings.patch_embedding.weight"]
    position = 2 if layout == "packed" else 3
    blocks = {name.split(".")[position] for name in visual if ".resblocks." in name or ".encoder.layers." in name}
    numbers = (int(convolution.shape[-1]), int(convolution.shape[0]), len(blocks))
    for name, size in clip.SIZES.items():
        if (size.patch, size.width, size.layers) == numbers:
            return name, numbers
    return "none of " + ", ".join(clip.SIZES), numbers


def check_backbone(visual: Mapping[str, Tensor], layout: str, model: str, size: ClipSize, who: str) -> None:
    """Raise InputError when a tower is another model's."""
    name, numbers = looks_like(visual, layout)
    expected = (size.patch, size.width, size.layers)
    if numbers != expected:
        theirs, ours = ("patch {}, width {}, {} blocks".format(*each) for each in (numbers, expected))
        if name in clip.SIZES and name != model:
            theirs, fix = f"looks like {name} ({theirs})", f"use model={name} or other files"
        else:
            theirs, fix = f"has {theirs}", "use files of the model"
        raise InputError(f"{who} is of another backbone: it {theirs}, and model={model} has {ours}: {fix}")


def check_shapes(
    tensors: Mapping[str, Tensor], expected: Mapping[str, tuple[int, ...]], optional: Iterable[str], who: str
) -> None:
    """Raise InputError for missing, unknown and mis-shaped tensors."""
    optional = set(optional)
    unknown = [name for name in tensors if name not in expected]
    for name, shape in expected.items():
        if name not in tensors:
            if name in optional:
                continue
            hint = f": {did_you_mean(name, unknown)}" if unknown else " of the model: fetch it again"
            raise InputError(f"{who} lacks {name!r}{hint}")
        if tuple(tensors[name].shape) != shape:
            stored = tuple(tensors[name].shape)
            fix = "use files of the model" if tensors[name].dim() == len(shape) else f"if FSDP or ZeRO made it flat, {foreign.FULL}"
            raise InputError(f"{who}: {name!r} has shape {stored}, the model needs {shape}: {fix}")
    if unknown:
        raise InputError(f"{who} has {unknown[0]!r}, which the model lacks: {clip_keys.instead_of(unknown[0], expected, tensors)}")


def as_float32(tensors: Mapping[str, Tensor], who: str) -> dict[str, Tensor]:
    """Return tensors as float32, half precisions widened exactly; raises InputError for other types and values not finite."""
    _stored(tensors, who)
    out = {}
    for name, tensor in tensors.items():
        out[name] = tensor.detach().to(torch.float32).contiguous()
        if not bool(torch.isfinite(out[name]).all()):
            count = int((~torch.isfinite(out[name])).sum())
            raise InputError(f"{who}: {count} of {tensor.numel()} values of {name!r} are not finite: fetch it again, or train anew")
    return out


def _stored(tensors: Mapping[str, Tensor], who: str) -> str:
    for name, tensor in tensors.items():
        if tensor.dtype != torch.float32 and tensor.dtype not in _WIDENED:
            raise InputError(f"{who}: {name!r} has dtype {tensor.dtype}, weights are float32, float16 or bfloat16: convert it")
    half = sorted({str(tensor.dtype).removeprefix("torch.") for tensor in tensors.values() if tensor.dtype in _WIDENED})
    return "+".join(half) or "float32"


def check_untouched(rest: Mapping[str, Tensor], reference: Mapping[str, Tensor], who: str) -> int:
    """Return the number of elements beside the tower; raises InputError where one is not the pretrained model's own.

    Fine-tuning gave the text side no gradient, so that its difference is exactly zero in a file that is what it says.
    """
    count = 0
    for name, tensor in rest.items():
        if name not in reference:
            raise InputError(f"{who} has {name!r} beside its image tower: {did_you_mean(name, reference)}")
        base = reference[name]
        if tuple(tensor.shape) != tuple(base.shape):
            shapes = f"has shape {tuple(tensor.shape)}, the pretrained model's {tuple(base.shape)}"
            raise InputError(f"{who}: {name!r} {shapes}: it is of another model")
        loaded = as_float32({name: tensor}, who)[name]
        if not torch.equal(loaded, base.to(torch.float32)):
            most = float((loaded - base).abs().max())
            raise InputError(
                f"{who}: {name!r} differs from the pretrained model by up to {most:.3g}, and only the "
                "image tower may: it was fine-tuned from another pretrained model, or its text side was trained as well"
            )
        count += tensor.numel()
    return count


def head(raw: Raw, size: ClipSize, classes: int | None, who: str) -> Tensor:
    """Return the weight [C, d] of a zero-shot head, as shipped; raises InputError for what is none of these classes and width."""
    tensors = {name.rsplit(".", 1)[-1]: tensor for name, tensor in raw.tensors.items()}
    if "weight" not in tensors or len(tensors) != len(raw.tensors) or set(tensors) - {"weight", "bias"}:
        names = ", ".join(map(repr, list(raw.tensors)[:3]))
        raise InputError(f"{who} is no head: it holds {len(raw.tensors)} tensors ({names}), a head holds weight and perhaps bias")
    tensors = as_float32(tensors, who)
    weight, bias = tensors["weight"], tensors.get("bias")
    if weight.dim() != 2 or weight.shape[1] != size.output or classes not in (None, weight.shape[0]):
        shape = f"({'C' if classes is None else classes}, {size.output})"
        raise InputError(f"{who}: weight has shape {tuple(weight.shape)}, model and task need {shape}: it is the head of another")
    if raw.attributes.get("normalize", True) is not True:
        said = raw.attributes["normalize"]
        raise InputError(f"{who}: the head does not normalise features (normalize={said!r}), and zero-shot heads do: use one")
    if bias is not None and bool(bias.any()):
        largest = float(bias.abs().max())
        raise InputError(f"{who}: the head has a bias of up to {largest:.3g}, and zero-shot heads have none: give one without")
    norms = weight.double().norm(dim=1)
    low, high = float(norms.min()), float(norms.max())
    if low <= 0 or high - low > NORMS_ALIKE * high:
        raise InputError(f"{who}: the rows have norms from {low:.4g} to {high:.4g}, and a zero-shot head's are all its scale")
    return weight

"""Source files of any supported form as tensors, and whether these are what they should be."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from fusionbench_lite.errors import InputError, did_you_mean
from fusionbench_lite.models import clip
from fusionbench_lite.models.clip import ClipSize
from fusionbench_lite.weights import clip_keys

if TYPE_CHECKING:
    from torch import Tensor

_NAMES = {"packed": "open_clip's names", "separate": "transformers' names"}
_OWNERS = {"packed": "files of Task Arithmetic and TALL-masks", "separate": "files of FusionBench"}
_FAMILIES = {"packed": "ta, tall or ta_tall", "separate": "fusionbench"}
_WIDENED = (torch.float16, torch.bfloat16)
NORMS_ALIKE = 1e-2
"""Relative difference of the row norms of a zero-shot head, which are all the logit scale; half precision keeps 1e-3."""


@dataclasses.dataclass(frozen=True)
class Raw:
    """The tensors of a source file, plain values beside them, and its `form`: "safetensors", "module" or "state_dict"."""

    tensors: dict[str, Tensor]
    attributes: dict[str, Any]
    form: str
    class_name: str = ""


@dataclasses.dataclass(frozen=True)
class Tower:
    """A checked image tower in float32: tensors in the wanted layout, what else the file held, the dtype it was stored in."""

    visual: dict[str, Tensor]
    rest: dict[str, Tensor]
    stored: str


def read(path: Path) -> Raw:
    """Return the tensors of a safetensors file, a pickled module or a pickled state dict; raises InputError."""
    try:
        with path.open("rb") as file:
            start, nbytes = file.read(9), path.stat().st_size
    except OSError as error:
        raise InputError(f"cannot read {path}: {error.strerror or error}") from error
    if start[8:] != b"{" or int.from_bytes(start[:8], "little") > nbytes:  # no length of a header and its beginning
        from fusionbench_lite.weights.pickles import read_pickled

        module = read_pickled(path)
        return Raw(module.tensors, module.attributes, module.kind, module.class_name)
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        return Raw(load_file(path), {}, "safetensors")
    except (OSError, SafetensorError, ValueError) as error:
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise InputError(f"cannot read {path}: {reason}; it is incomplete or damaged, fetch it again") from error


def tower(raw: Raw, model: str, size: ClipSize, expected: str | None, wanted: str, who: str) -> Tower:
    """Return the image tower of a file in the `wanted` layout, checked against the model's shapes.

    `expected` is the layout that the files of its family have, None for either. The projection may be missing. Raises
    InputError for a file of another family, an expert of another backbone, missing or unknown tensors, another dtype and
    values that are not finite.
    """
    parts = clip_keys.split(raw.tensors, who)
    if expected is not None and parts.layout != expected:
        raise InputError(
            f"{who} has {_NAMES[parts.layout]}, as {_OWNERS[parts.layout]} have, and {_NAMES[expected]} are needed: "
            f"use checkpoints={_FAMILIES[parts.layout]}, or another file"
        )
    check_backbone(parts.visual, parts.layout, model, size, who)
    stored = _stored(parts.visual, who)
    check_shapes(parts.visual, clip.shapes(size, parts.layout), {clip_keys.PROJECTION[parts.layout]}, who)
    visual = as_float32(parts.visual, who)
    return Tower(clip_keys.as_layout(visual, wanted, who) if parts.layout != wanted else visual, parts.rest, stored)


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
            raise InputError(f"{who}: {name!r} has shape {stored}, the model needs {shape}: use files of the model")
    if unknown:
        raise InputError(f"{who} has {unknown[0]!r}, which the model lacks: {did_you_mean(unknown[0], expected)}")


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
        read = as_float32({name: tensor}, who)[name]
        if not torch.equal(read, base.to(torch.float32)):
            raise InputError(
                f"{who}: {name!r} differs from the pretrained model by up to {float((read - base).abs().max()):.3g}, and only the "
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
        raise InputError(f"{who}: the head has a bias of up to {largest:.3g}, and zero-shot heads have none: use one")
    norms = weight.double().norm(dim=1)
    low, high = float(norms.min()), float(norms.max())
    if low <= 0 or high - low > NORMS_ALIKE * high:
        raise InputError(f"{who}: the rows have norms from {low:.4g} to {high:.4g}, and a zero-shot head's are all its scale")
    return weight

"""Names of CLIP's tensors: open_clip's ("packed", q, k and v in one matrix) and transformers' ("separate"), both ways.

Every map moves values and computes none: q, k and v are row blocks of `in_proj`, the projections are transposes. A round trip
gives the same bits. Names are matched, never positions.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING

from fusionbench_lite.errors import InputError, did_you_mean, nearest
from fusionbench_lite.lazy import torch
from fusionbench_lite.weights import prefixes
from fusionbench_lite.weights.towers import PROJECTION, Split, split

if TYPE_CHECKING:
    from torch import Tensor

__all__ = [
    "PROJECTION", "TEXT_SIDE", "Split", "as_layout", "instead_of", "split", "text_of_open_clip", "text_to_open_clip",
    "text_to_separate", "to_packed", "to_separate",
]

TEXT_SIDE = (
    "positional_embedding", "text_projection", "logit_scale", "token_embedding.weight", "ln_final.weight", "ln_final.bias",
)
"""What a pickled image encoder of the open_clip families carries beside its visual tensors."""

_BLOCK = {
    "ln_1": "layer_norm1", "attn.out_proj": "self_attn.out_proj", "ln_2": "layer_norm2", "mlp.c_fc": "mlp.fc1",
    "mlp.c_proj": "mlp.fc2",
}
_QKV = ("q_proj", "k_proj", "v_proj")
_KINDS = ("weight", "bias")
_VISUAL = {
    "class_embedding": "embeddings.class_embedding", "conv1.weight": "embeddings.patch_embedding.weight",
    "positional_embedding": "embeddings.position_embedding.weight",
    **{f"{ours}.{kind}": f"{theirs}.{kind}" for ours, theirs in (("ln_pre", "pre_layrnorm"), ("ln_post", "post_layernorm"))
       for kind in _KINDS},
}
_TEXT = {
    "token_embedding.weight": "embeddings.token_embedding.weight",
    "positional_embedding": "embeddings.position_embedding.weight",
    **{f"ln_final.{kind}": f"final_layer_norm.{kind}" for kind in _KINDS},
}
_PACKED_BLOCK = re.compile(r"transformer\.resblocks\.(\d{1,4})\.")
_SEPARATE_BLOCK = re.compile(r"encoder\.layers\.(\d{1,4})\.")


def to_separate(packed: Mapping[str, Tensor], who: str = "the state dict") -> dict[str, Tensor]:
    """Return an open_clip image tower under the names of `CLIPVisionModelWithProjection`; `proj` may be missing.

    Raises InputError for missing, unknown and mis-shaped tensors.
    """
    state = _only(packed, "packed", who)
    blocks = _blocks(state, _PACKED_BLOCK)
    _check_names(state, _packed_names(blocks, _VISUAL), PROJECTION["packed"], who)
    out = {f"vision_model.{theirs}": state[ours] for ours, theirs in _VISUAL.items()}
    for number in range(blocks):
        out |= _separated(state, f"transformer.resblocks.{number}.", f"vision_model.encoder.layers.{number}.", who)
    if PROJECTION["packed"] in state:
        out[PROJECTION["separate"]] = _transposed(state, PROJECTION["packed"], who)
    return out


def to_packed(separate: Mapping[str, Tensor], who: str = "the state dict") -> dict[str, Tensor]:
    """Return an image tower of transformers under open_clip's names, without prefix; the projection may be missing.

    Raises InputError for missing, unknown and mis-shaped tensors.
    """
    state = _only(separate, "separate", who)
    out = _packed_tower(state, "vision_model.", _VISUAL, PROJECTION["separate"], who)
    if PROJECTION["separate"] in state:
        out[PROJECTION["packed"]] = _transposed(state, PROJECTION["separate"], who)
    return out


def as_layout(visual: Mapping[str, Tensor], layout: str, who: str = "the state dict") -> dict[str, Tensor]:
    """Return an image tower in the wanted layout under its plain names, whichever layout it has."""
    present = split(visual, who).layout
    if present == layout:
        other = "separate" if layout == "packed" else "packed"
        visual = as_layout(visual, other, who)  # there and back: names and shapes are checked, the bits are the same
    return to_packed(visual, who) if layout == "packed" else to_separate(visual, who)


def text_to_open_clip(state: Mapping[str, Tensor], who: str = "the state dict") -> dict[str, Tensor]:
    """Return the text side of transformers' full CLIPModel under open_clip's names; the image side is ignored.

    Raises InputError for missing, unknown and mis-shaped tensors.
    """
    names = prefixes.bare(state, who)
    prefix = "text_model."
    before = next((name.partition(prefix)[0] for name in names if f".{name}".count(f".{prefix}")), "")
    bare = {short.removeprefix(before): state[name] for short, name in names.items() if short.startswith(before)}
    text = {name: tensor for name, tensor in bare.items() if name.startswith(prefix)}
    extras = ("text_projection.weight", "logit_scale")
    for name in extras:
        if name not in bare:
            raise InputError(f"{who} lacks {name!r} of transformers' CLIPModel ({_some(bare)}): give the whole model's file")
    out = _packed_tower(text, prefix, _TEXT, None, who)
    out["text_projection"] = _transposed(bare, extras[0], who)
    out["logit_scale"] = bare[extras[1]]
    return out


def text_to_separate(text: Mapping[str, Tensor], who: str = "the state dict") -> dict[str, Tensor]:
    """Return the text side of open_clip's CLIP under the names of transformers' CLIPModel, the inverse of `text_to_open_clip`."""
    out = {f"text_model.{theirs}": text[ours] for ours, theirs in _TEXT.items()}
    for number in range(_blocks(text, _PACKED_BLOCK)):
        out |= _separated(text, f"transformer.resblocks.{number}.", f"text_model.encoder.layers.{number}.", who)
    return {**out, "text_projection.weight": _transposed(text, "text_projection", who), "logit_scale": text["logit_scale"]}


def text_of_open_clip(state: Mapping[str, Tensor], who: str = "the state dict") -> dict[str, Tensor]:
    """Return the text side of a whole open_clip CLIP; raises InputError when it has no text blocks, as experts have none."""
    rest = split(state, who).rest
    _check_names(rest, [*_packed_names(_blocks(rest, _PACKED_BLOCK) or 1, _TEXT), "text_projection", "logit_scale"], None, who)
    return rest


def _packed_tower(
    state: Mapping[str, Tensor], prefix: str, top: Mapping[str, str], optional: str | None, who: str
) -> dict[str, Tensor]:
    blocks = _blocks({name.removeprefix(prefix): None for name in state}, _SEPARATE_BLOCK)
    _check_names(state, [prefix + name for name in _separate_names(blocks, top)], optional, who)
    out = {ours: state[prefix + theirs] for ours, theirs in top.items()}
    for number in range(blocks):
        out |= _fused(state, f"{prefix}encoder.layers.{number}.", f"transformer.resblocks.{number}.", who)
    return out


def _separated(state: Mapping[str, Tensor], ours: str, theirs: str, who: str) -> dict[str, Tensor]:
    out = {f"{theirs}{b}.{kind}": state[f"{ours}{a}.{kind}"] for a, b in _BLOCK.items() for kind in _KINDS}
    for kind in _KINDS:
        name = f"{ours}attn.in_proj_{kind}"
        fused, dimensions = state[name], 2 if kind == "weight" else 1
        if fused.dim() != dimensions or fused.shape[0] % 3:
            raise InputError(
                f"{who}: {name!r} has shape {_shape(fused)}, which is not q, k and v of {dimensions} dimensions one above the other"
            )
        for part, rows in zip(_QKV, fused.chunk(3), strict=True):
            out[f"{theirs}self_attn.{part}.{kind}"] = rows.clone()
    return out


def _fused(state: Mapping[str, Tensor], theirs: str, ours: str, who: str) -> dict[str, Tensor]:
    out = {f"{ours}{a}.{kind}": state[f"{theirs}{b}.{kind}"] for a, b in _BLOCK.items() for kind in _KINDS}
    for kind in _KINDS:
        names = [f"{theirs}self_attn.{part}.{kind}" for part in _QKV]
        first, dimensions = state[names[0]], 2 if kind == "weight" else 1
        for name in names:
            if state[name].shape != first.shape or state[name].dim() != dimensions or state[name].dtype != first.dtype:
                raise InputError(
                    f"{who}: {name!r} is {_shape(state[name])} {state[name].dtype}, {names[0]!r} {_shape(first)} "
                    f"{first.dtype}: q, k and v must be alike and of {dimensions} dimensions"
                )
        out[f"{ours}attn.in_proj_{kind}"] = torch.cat([state[name] for name in names])  # [3d, d] or [3d]
    return out


def _transposed(state: Mapping[str, Tensor], name: str, who: str) -> Tensor:
    if state[name].dim() != 2:
        raise InputError(f"{who}: {name!r} has shape {_shape(state[name])}, a projection has two dimensions")
    return state[name].t().contiguous()


def _packed_names(blocks: int, top: Mapping[str, str]) -> list[str]:
    block = [*(f"{name}.{kind}" for name in _BLOCK for kind in _KINDS), *(f"attn.in_proj_{kind}" for kind in _KINDS)]
    return [*top, *(f"transformer.resblocks.{number}.{name}" for number in range(blocks) for name in block)]


def _separate_names(blocks: int, top: Mapping[str, str]) -> list[str]:
    parts = [*_BLOCK.values(), *(f"self_attn.{part}" for part in _QKV)]
    return [
        *top.values(), *(f"encoder.layers.{number}.{part}.{kind}" for number in range(blocks) for part in parts for kind in _KINDS),
    ]


def _blocks(names: Iterable[str], pattern: re.Pattern[str]) -> int:
    """Return the number of blocks by the number of different indices: a gap shows as a missing name."""
    return len({match.group(1) for name in names if (match := pattern.match(name))})


def _check_names(state: Mapping[str, Tensor], expected: Iterable[str], optional: str | None, who: str) -> None:
    wanted = dict.fromkeys(expected)
    unknown = [name for name in state if name not in wanted and name != optional]
    for name in wanted:
        if name not in state:
            raise InputError(f"{who} lacks {name!r}: {did_you_mean(name, unknown)}" if unknown else f"{who} lacks {name!r}")
    if unknown:
        names = [*wanted, *([optional] if optional else [])]
        raise InputError(f"{who} has {unknown[0]!r}, which is no tensor of this tower: {instead_of(unknown[0], names, state)}")


def instead_of(name: str, names: Iterable[str], present: Iterable[str]) -> str:
    """Return what helps against a tensor that a tower does not know, given those it knows and those that are there."""
    present = set(present)
    known = [each for each in names if name.endswith(f".{each}")]
    if known:
        return "keep one of the two" if known[0] in present else f"did you mean {known[0]!r}?"
    near = nearest(name, [each for each in names if each not in present])
    return f"did you mean {near!r}?" if near else "a tower with it computes something else, give one without"


def _only(state: Mapping[str, Tensor], layout: str, who: str) -> dict[str, Tensor]:
    parts = split(state, who)
    if parts.layout != layout:
        raise InputError(f"{who} has the {parts.layout} layout, not the {layout} one: {_some(parts.visual)}")
    if parts.rest:
        raise InputError(f"{who} has {next(iter(parts.rest))!r} beside its image tower: {_some(parts.rest)}; take those out first")
    return parts.visual


def _shape(tensor: Tensor) -> tuple[int, ...]:
    return tuple(tensor.shape)


def _some(names: Iterable[str]) -> str:
    shown = list(names)
    return f"{len(shown)} tensors" + (f", first {shown[0]!r}" if shown else "")

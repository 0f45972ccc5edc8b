"""The architectures of the encoders by name, from their numbers: names and shapes of tensors. Never imports torch.

Checked against open_clip and transformers in the tests; docs/decisions.md, D13, has what is counted. Language models are in
`language_shapes`.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator

from fusionbench_lite.errors import InputError, did_you_mean
from fusionbench_lite.models import language_shapes
from fusionbench_lite.models.clip_sizes import EMBEDDED, LAYOUTS, SIZES, ClipSize
from fusionbench_lite.weights.architecture import Architecture, Shape

Named = Iterator[tuple[str, Shape]]

TEXT_BLOCKS, TENSORS_PER_BLOCK = 12, 12
"""Of CLIP's text towers."""

PROJECTIONS = ("proj", "visual_projection.weight")
"""CLIP's projection to features in either layout."""


def architecture(model: str) -> Architecture:
    """Return an encoder as papers count it: all that its checkpoints merge. Raises InputError for an unknown one."""
    if model not in MODELS:
        raise InputError(f"unknown model {model!r}: {did_you_mean(model, MODELS)}")
    return MODELS[model](model)


def encoder(model: str, layout: str | None = None, *, tower_alone: bool = False) -> Architecture:
    """Return the encoder that a run of the suite merges: vit_mini, vit_mini_small, vit_b32, vit_b16 or vit_l14.

    `tower_alone`: the projection is not merged, as in FusionBench's checkpoints. Raises InputError for another model.
    """
    if model in EMBEDDED:
        return of_size(model, EMBEDDED[model], "packed")
    if model not in SIZES:
        raise InputError(f"unknown model {model!r}: {did_you_mean(model, [*EMBEDDED, *SIZES])}")
    return of_size(model, SIZES[model], layout or "packed", tower_alone=tower_alone)


def of_size(name: str, size: ClipSize, layout: str, *, tower_alone: bool = False) -> Architecture:
    """Return CLIP's vision transformer of these numbers in a layout, with the names of the built encoder's state dict.

    Raises InputError for another layout.
    """
    makers = dict(zip(LAYOUTS, (_packed, _separate), strict=True))
    if layout not in makers:
        raise InputError(f"unknown layout {layout!r} of a CLIP model: {did_you_mean(str(layout), makers)}")
    tensors = dict(makers[layout](size))
    constants = {name: tensors.pop(name) for name in PROJECTIONS if tower_alone and name in tensors}
    return Architecture(
        name=name, layout=layout, tensors=tensors, blocks=size.layers, width=size.width, output=size.output, constants=constants,
        heads=size.heads, tokens=(size.image // size.patch) ** 2 + 1, image=size.image,
    )


def _affine(name: str, shape: Shape) -> Named:
    yield f"{name}.weight", shape
    yield f"{name}.bias", shape[:1]


def _packed(size: ClipSize) -> Named:
    """open_clip's VisionTransformer."""
    width = size.width
    yield "class_embedding", (width,)
    yield "positional_embedding", ((size.image // size.patch) ** 2 + 1, width)
    yield "proj", (width, size.output)
    yield "conv1.weight", (width, 3, size.patch, size.patch)
    yield from _affine("ln_pre", (width,))
    for number in range(size.layers):
        block = f"transformer.resblocks.{number}"
        yield from _affine(f"{block}.ln_1", (width,))
        yield f"{block}.attn.in_proj_weight", (3 * width, width)
        yield f"{block}.attn.in_proj_bias", (3 * width,)
        yield from _affine(f"{block}.attn.out_proj", (width, width))
        yield from _affine(f"{block}.ln_2", (width,))
        yield from _affine(f"{block}.mlp.c_fc", (4 * width, width))
        yield from _affine(f"{block}.mlp.c_proj", (width, 4 * width))
    yield from _affine("ln_post", (width,))


def _separate(size: ClipSize) -> Named:
    """transformers' CLIPVisionModelWithProjection."""
    root, width = "vision_model", size.width
    yield f"{root}.embeddings.class_embedding", (width,)
    yield f"{root}.embeddings.patch_embedding.weight", (width, 3, size.patch, size.patch)
    yield f"{root}.embeddings.position_embedding.weight", ((size.image // size.patch) ** 2 + 1, width)
    yield from _affine(f"{root}.pre_layrnorm", (width,))
    for number in range(size.layers):
        block = f"{root}.encoder.layers.{number}"
        for part in ("k_proj", "v_proj", "q_proj", "out_proj"):
            yield from _affine(f"{block}.self_attn.{part}", (width, width))
        yield from _affine(f"{block}.layer_norm1", (width,))
        yield from _affine(f"{block}.mlp.fc1", (4 * width, width))
        yield from _affine(f"{block}.mlp.fc2", (width, 4 * width))
        yield from _affine(f"{block}.layer_norm2", (width,))
    yield from _affine(f"{root}.post_layernorm", (width,))
    yield "visual_projection.weight", (size.output, width)


def _text(size: ClipSize) -> Named:
    """What is left of CLIP's text side where its transformer was removed."""
    yield "positional_embedding", (size.context, size.text_width)
    yield "text_projection", (size.text_width, size.output)
    yield "logit_scale", ()
    yield "token_embedding.weight", (size.vocabulary, size.text_width)
    yield from _affine("ln_final", (size.text_width,))


def _released(model: str) -> Architecture:
    """CLIP's image tower in open_clip's layout, with what AdaMerging's ImageEncoder keeps of a text tower."""
    open_clip = encoder(model)
    tensors = {f"model.visual.{name}": shape for name, shape in open_clip.tensors.items()}
    leftovers = {f"model.{name}": shape for name, shape in _text(SIZES[model])}
    return dataclasses.replace(
        open_clip, layout="open_clip ImageEncoder, text transformer removed", tensors={**leftovers, **tensors},
        leftovers=frozenset(leftovers),
    )


def _embedded(model: str) -> Architecture:
    return dataclasses.replace(encoder(model), layout="open_clip VisionTransformer")


def _hugging_face(model: str) -> Architecture:
    """transformers' CLIPVisionModel (FusionBench): separate q, k, v, and a frozen projection that is not merged."""
    open_clip = encoder(model.removesuffix("_hf"), "separate", tower_alone=True)
    return dataclasses.replace(open_clip, name=model, layout="transformers CLIPVisionModel")


def _language(model: str) -> Architecture:
    """The blocks of a language model, and a norm after them, which are what AdaRank counts."""
    return language_shapes.of_size(model, language_shapes.SIZES[model], tensors="blocks")


MODELS: dict[str, Callable[[str], Architecture]] = {
    **dict.fromkeys(EMBEDDED, _embedded), **dict.fromkeys(SIZES, _released),
    **dict.fromkeys((f"{name}_hf" for name in SIZES), _hugging_face), **dict.fromkeys(language_shapes.SIZES, _language),
}

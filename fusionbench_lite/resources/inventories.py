"""Names and shapes of the tensors of an encoder, from the numbers of its architecture: nothing is allocated.

Checked against open_clip and transformers in the tests. Specification of the adaptive methods, §0.1.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass

from fusionbench_lite.errors import InputError, did_you_mean
from fusionbench_lite.models.clip_sizes import SIZES, Size
from fusionbench_lite.weights.matrices import is_factorised

Shape = tuple[int, ...]
Named = Iterator[tuple[str, Shape]]

TEXT_BLOCKS, TENSORS_PER_BLOCK = 12, 12
"""Of CLIP's text towers."""

MINI = Size(32, 8, 128, 4, 4, 64, text_width=0, text_layers=0, text_heads=0)
"""The embedded suite's encoder, which has no text tower."""


@dataclass(frozen=True)
class Inventory:
    """An encoder's tensors: `width` of its blocks, `feature` width of what it returns, `policy` of the masked matrices.

    `leftovers` are tensors of the checkpoint that the forward pass never reads, such as the embeddings of a text tower
    that was cut off.
    """

    model: str
    layout: str
    tensors: Mapping[str, Shape]
    blocks: int
    width: int
    feature: int
    policy: str = "attn_mlp"
    leftovers: frozenset[str] = frozenset()

    @property
    def count(self) -> int:
        """The number of floating-point tensors."""
        return len(self.tensors)

    @property
    def parameters(self) -> int:
        """The number of parameters of the checkpoint."""
        return sum(map(math.prod, self.tensors.values()))

    @property
    def used(self) -> int:
        """The number of parameters that the forward pass reads."""
        return sum(math.prod(shape) for name, shape in self.tensors.items() if name not in self.leftovers)

    @property
    def matrices(self) -> list[Shape]:
        """The shapes of the matrices that carry masks."""
        return [shape for name, shape in self.tensors.items() if is_factorised(name, shape, self.policy)]

    @property
    def components(self) -> int:
        """The number of singular components of these matrices, of one task."""
        return sum(min(shape) for shape in self.matrices)

    @property
    def perceptrons(self) -> int:
        """The number of parameters in modules named mlp."""
        return sum(math.prod(shape) for name, shape in self.tensors.items() if ".mlp." in name)


def inventory(model: str) -> Inventory:
    """Return the inventory of a model; raises InputError for an unknown one."""
    if model not in MODELS:
        raise InputError(f"unknown model {model!r}: {did_you_mean(model, MODELS)}")
    return MODELS[model](model)


def _open_clip(model: str) -> Inventory:
    """CLIP's image tower in open_clip's layout, with what AdaMerging's ImageEncoder keeps of a text tower."""
    size = SIZES.get(model, MINI)
    prefix = "model.visual." if size.text_width else ""
    tensors = {prefix + name: shape for name, shape in _visual(size)}
    leftovers = {f"model.{name}": shape for name, shape in _text(size)} if size.text_width else {}
    layout = "open_clip ImageEncoder, text transformer removed" if size.text_width else "open_clip VisionTransformer"
    return Inventory(
        model, layout, {**leftovers, **tensors}, size.layers, size.width, size.output, leftovers=frozenset(leftovers)
    )


def _visual(size: Size) -> Named:
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


def _text(size: Size) -> Named:
    yield "positional_embedding", (size.context, size.text_width)
    yield "text_projection", (size.text_width, size.output)
    yield "logit_scale", ()
    yield "token_embedding.weight", (size.vocabulary, size.text_width)
    yield from _affine("ln_final", (size.text_width,))


def _affine(name: str, shape: Shape) -> Named:
    yield f"{name}.weight", shape
    yield f"{name}.bias", shape[:1]


def _hugging_face(model: str) -> Inventory:
    """transformers' CLIPVisionModel (FusionBench): separate q, k, v, and a frozen projection that is not merged."""
    size = SIZES[model.removesuffix("_hf")]

    def named() -> Named:
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

    return Inventory(model, "transformers CLIPVisionModel", dict(named()), size.layers, size.width, size.output)


def _roberta(model: str) -> Inventory:
    def named() -> Named:
        for number in range(12):
            block = f"encoder.layer.{number}"
            for part in ("attention.self.query", "attention.self.key", "attention.self.value", "attention.output.dense"):
                yield from _affine(f"{block}.{part}", (768, 768))
            yield from _affine(f"{block}.attention.output.LayerNorm", (768,))
            yield from _affine(f"{block}.intermediate.dense", (3072, 768))
            yield from _affine(f"{block}.output.dense", (768, 3072))
            yield from _affine(f"{block}.output.LayerNorm", (768,))

    return Inventory(model, "encoder blocks alone", dict(named()), 12, 768, 768, policy="all_2d")


def _gpt2(model: str) -> Inventory:
    def named() -> Named:
        for number in range(12):
            block = f"h.{number}"
            yield from _affine(f"{block}.ln_1", (768,))
            yield f"{block}.attn.c_attn.weight", (768, 2304)
            yield f"{block}.attn.c_attn.bias", (2304,)
            yield from _affine(f"{block}.attn.c_proj", (768, 768))
            yield from _affine(f"{block}.ln_2", (768,))
            yield f"{block}.mlp.c_fc.weight", (768, 3072)
            yield f"{block}.mlp.c_fc.bias", (3072,)
            yield f"{block}.mlp.c_proj.weight", (3072, 768)
            yield f"{block}.mlp.c_proj.bias", (768,)
        yield from _affine("ln_f", (768,))

    return Inventory(model, "blocks and ln_f", dict(named()), 12, 768, 768)


MODELS: dict[str, Callable[[str], Inventory]] = {
    **dict.fromkeys(("vit_mini", *SIZES), _open_clip), **dict.fromkeys((f"{name}_hf" for name in SIZES), _hugging_face),
    "roberta_base": _roberta,
    "gpt2": _gpt2,
}

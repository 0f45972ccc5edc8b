"""How the factors of a PEFT LoRA adapter fit the weights of the pretrained model: shapes, ranks, scales, orientation."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from fusionbench_lite.weights.lora.config import AdapterConfig
from fusionbench_lite.weights.lora.files import FLOATING, FOLD, AdapterFile
from fusionbench_lite.weights.lora.keys import Module
from fusionbench_lite.weights.lora.roles import is_vocabulary
from fusionbench_lite.weights.specs import TensorSpec

TensorSpecs = Mapping[str, TensorSpec]


@dataclass(frozen=True)
class Pair:
    """What an adapter adds to one weight: s·B·A, or its transpose."""

    a: str
    b: str
    scale: float
    transposed: bool


def check_shape(file: AdapterFile, key: str, name: str, pretrained: TensorSpecs) -> None:
    """Raise MergeError unless the tensor of the adapter has the shape of the pretrained one, and is a number as it is."""
    ours, theirs = file.shapes[key], pretrained[name].shape
    if ours != theirs:
        raise file.error(f"{key!r} has shape {ours}, {name!r} {theirs}: {_other_model(name, ours, theirs)}")
    if pretrained[name].dtype.is_floating_point and file.dtypes[key] not in FLOATING:
        raise file.error(
            f"{key!r} has dtype {file.dtypes[key]}, {name!r} {pretrained[name].dtype}: a tensor stored quantised; load the "
            f"base in 16 or 32 bits, {FOLD}"
        )


def _other_model(name: str, ours: tuple[int, ...], theirs: tuple[int, ...]) -> str:
    """Return what to do about a tensor of another shape: a vocabulary may have grown."""
    if is_vocabulary(name) and len(ours) == len(theirs) == 2 and ours[1] == theirs[1]:
        return (
            f"the vocabulary was resized; save the pretrained model after resize_token_embeddings({ours[0]}) and give that, or "
            "use the model that the adapter was trained on"
        )
    return "use the model that the adapter was trained on"


def fit(file: AdapterFile, config: AdapterConfig, module: Module, name: str, pretrained: TensorSpecs) -> Pair:
    """Check the factors of a module against its weight, and return how to add their product to it."""
    base, a, b = pretrained[name], file.shapes[module.a], file.shapes[module.b]
    shape, rank = base.shape, config.rank_of(module.name, a[0] if a else 0)
    if not base.dtype.is_floating_point:
        raise file.error(f"{module.a!r} changes {name!r} of dtype {base.dtype}: give a pretrained model in floating point")
    if a[:1] != (rank,) or b[1:2] != (rank,):
        _refuse_rank(file, module, rank)
    product = (b[0], *a[1:])
    straight = product == shape and not module.embedding
    flipped = len(a) == 2 and product[::-1] == shape
    kernels = len(a) == len(b) == len(shape) > 2 and set(b[2:]) == {1}
    if not ((len(a) == len(b) == 2 or kernels) and (straight or flipped)):
        made = product[::-1] if module.embedding else product
        raise file.error(
            f"{module.b!r} {b} times {module.a!r} {a} gives {made}, {name!r} has shape {shape}: {_other_model(name, made, shape)}"
        )
    transposed = _square_is_transposed(file, config, name, pretrained) if straight and flipped else flipped
    return Pair(module.a, module.b, config.scale_of(module.name, rank), transposed)


def _refuse_rank(file: AdapterFile, module: Module, rank: int) -> None:
    a, b = file.shapes[module.a], file.shapes[module.b]
    said = f"{module.a!r} has shape {a} and {module.b!r} {b}, the configuration says rank {rank}"
    if len(a) > 2 and a[0] == rank and len(b) > 2 and 0 < b[1] < rank:
        raise file.error(f"{said}: a convolution in groups, which peft cannot fold either; give the whole fine-tuned model")
    if a and a[:1] == b[1:2]:
        raise file.error(f'{said}: set r to {a[0]}, or add "{module.name}": {a[0]} to rank_pattern')
    raise file.error(f"{said}: mend r or rank_pattern, or save the adapter again")


def _square_is_transposed(file: AdapterFile, config: AdapterConfig, name: str, pretrained: TensorSpecs) -> bool:
    """Say whether a square weight is stored as [in, out]: as its namesakes in other blocks are, else as configured.

    One `fan_in_fan_out` stands for all modules of an adapter, and PEFT writes the one of the module it saw last. The
    bias of a weight that is not square tells its orientation: GPT-2's `attn.c_proj` is square, `mlp.c_proj` is not.
    """
    ending = "." + ".".join(name.split(".")[-2:])
    for other in pretrained:
        bias = other.removesuffix("weight") + "bias"
        if other.endswith(ending) and bias != other and bias in pretrained and len(pretrained[other].shape) == 2:
            rows, columns = pretrained[other].shape
            if rows != columns and pretrained[bias].shape in ((rows,), (columns,)):
                return pretrained[bias].shape == (columns,)
    return config.transposed

"""Which tensors of a PEFT LoRA adapter belong to which weights of the pretrained model, and how they fit."""

from __future__ import annotations

import logging
import re
from collections.abc import Mapping
from dataclasses import dataclass

from fusionbench_lite.errors import nearest
from fusionbench_lite.weights.lora_files import FOLD, AdapterConfig, AdapterFile
from fusionbench_lite.weights.specs import TensorSpec

log = logging.getLogger(__name__)

TensorSpecs = Mapping[str, TensorSpec]

_PREFIX = "base_model.model."
_PART = re.compile(r"(.+)\.(lora_[AB]\.weight|lora_embedding_[AB]|lora_B\.bias)")
_FLOATING = ("F64", "F32", "F16", "BF16")


@dataclass(frozen=True, kw_only=True)
class Module:
    """The LoRA tensors of one module: the keys of A and B, and of the bias of B where it has one."""

    name: str
    a: str
    b: str
    bias: str | None
    embedding: bool


@dataclass(frozen=True)
class Pair:
    """What an adapter adds to one weight: s·B·A, or its transpose."""

    a: str
    b: str
    scale: float
    transposed: bool


def sort_keys(file: AdapterFile) -> tuple[list[Module], dict[str, str]]:
    """Return the LoRA modules of the file, and the keys of its other tensors by name. Raises MergeError for strangers."""
    parts: dict[str, dict[str, str]] = {}
    whole = {}
    for key, dtype in file.dtypes.items():
        name = key.removeprefix(_PREFIX)
        match = _PART.fullmatch(name)
        if match is None and (".lora_" in name or "token_adapter" in name):
            kind = "DoRA" if "lora_magnitude_vector" in name else "no known kind of LoRA"
            raise file.error(f"{key!r} belongs to {kind}, only plain LoRA can be read: {FOLD}")
        if match is None:
            whole[name.replace(".base_layer.", ".").replace(".modules_to_save.", ".")] = key
        elif dtype not in _FLOATING:
            raise file.error(f"{key!r} has dtype {dtype}, a LoRA tensor needs one of {', '.join(_FLOATING)}: {FOLD}")
        else:
            parts.setdefault(match[1], {})[match[2]] = key
    if not parts:
        raise file.error(f"none of its {len(file.dtypes)} tensors is a lora_A or lora_B: save the adapter again")
    return [_module(file, name, keys) for name, keys in parts.items()], whole


def _module(file: AdapterFile, name: str, keys: Mapping[str, str]) -> Module:
    first = next(iter(keys.values()))
    if ".base_layer" in name:
        # peft up to 0.21 adds the factors of out_proj twice, in training as in merging (huggingface/peft #3774).
        raise file.error(
            f"{first!r} is inside another LoRA module (nn.MultiheadAttention), and versions of peft disagree on its "
            f"scale: with the version that trained it, {FOLD}"
        )
    embedding = any(part.startswith("lora_embedding") for part in keys)
    wanted = ("lora_embedding_A", "lora_embedding_B") if embedding else ("lora_A.weight", "lora_B.weight")
    for part in wanted:
        if part not in keys:
            raise file.error(f"{first!r} has no {part} beside it: save the adapter again")
    return Module(name=name, a=keys[wanted[0]], b=keys[wanted[1]], bias=keys.get("lora_B.bias"), embedding=embedding)


def find(file: AdapterFile, key: str, wanted: str, pretrained: TensorSpecs) -> str:
    """Return the name in `pretrained` that a key of the adapter is about. Raises MergeError for none and for several."""
    matches = _matches(wanted, pretrained)
    if len(matches) == 1:
        return matches[0]
    if matches:
        raise file.error(
            f"{key!r} may stand for {matches[0]!r} or {matches[1]!r} of the pretrained model: rename one side, so that the "
            "names agree"
        )
    raise file.error(
        f"{key!r} needs {wanted!r}, which the pretrained model lacks; the nearest of its {len(pretrained)} keys is "
        f"{nearest(wanted, pretrained)!r}: use the model that the adapter was trained on"
    )


def _matches(wanted: str, pretrained: TensorSpecs) -> list[str]:
    """Return the name itself, else the names of `pretrained` that equal it up to a prefix of either."""
    if wanted in pretrained:
        return [wanted]
    return [name for name in pretrained if name.endswith(f".{wanted}") or wanted.endswith(f".{name}")]


def replacements(file: AdapterFile, whole: Mapping[str, str], pretrained: TensorSpecs) -> dict[str, str]:
    """Return the keys of fully trained tensors by the name in `pretrained` that they replace; log those without one."""
    matched = {name: key for name, key in whole.items() if _matches(name, pretrained)}
    skipped = sorted(whole.keys() - matched.keys())
    if skipped:
        log.info("adapter %s: skipped %s, which the pretrained model lacks", file.folder, ", ".join(skipped))
    replaced = {find(file, key, name, pretrained): key for name, key in matched.items()}
    for name, key in replaced.items():
        check_shape(file, key, name, pretrained)
    return replaced


def check_shape(file: AdapterFile, key: str, name: str, pretrained: TensorSpecs) -> None:
    """Raise MergeError unless the tensor of the adapter has the shape of the pretrained one."""
    ours, theirs = file.shapes[key], pretrained[name].shape
    if ours != theirs:
        raise file.error(f"{key!r} has shape {ours}, {name!r} {theirs}: use the model that the adapter was trained on")


def fit(file: AdapterFile, config: AdapterConfig, module: Module, name: str, pretrained: TensorSpecs) -> Pair:
    """Check the factors of a module against its weight, and return how to add their product to it."""
    base, rank = pretrained[name], config.rank_of(module.name)
    a, b, shape = file.shapes[module.a], file.shapes[module.b], base.shape
    if not base.dtype.is_floating_point:
        raise file.error(f"{module.a!r} changes {name!r} of dtype {base.dtype}: give a pretrained model in floating point")
    if a[:1] != (rank,) or b[1:2] != (rank,):
        raise file.error(
            f"{module.a!r} has shape {a} and {module.b!r} {b}, the configuration says rank {rank}: mend r or rank_pattern"
        )
    product = (b[0], *a[1:])
    straight = product == shape and not module.embedding
    flipped = len(a) == 2 and product[::-1] == shape
    if not ((len(a) == len(b) == 2 or (len(a) == 4 and b[2:] == (1, 1))) and (straight or flipped)):
        raise file.error(
            f"{module.b!r} {b} times {module.a!r} {a} gives {product}, {name!r} has shape {shape}: "
            "use the model that the adapter was trained on"
        )
    transposed = _square_is_transposed(file, config, name, pretrained) if straight and flipped else flipped
    return Pair(module.a, module.b, config.scale_of(module.name), transposed)


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

"""What the keys of a PEFT LoRA adapter say: which modules have factors, and which tensors were trained whole.

Source: huggingface/peft, `utils/save_and_load.py` (the form on disk) and `tuners/lora/layer.py` (the names of a live model).
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass

from fusionbench_lite.weights.lora.files import FLOATING, FOLD, AdapterFile

_PEFT = re.compile(r"(?:module\.)*(?:base_model\.model\.)?")
_WRAPPERS = frozenset({"_orig_mod", "_fsdp_wrapped_module", "_checkpoint_wrapped_module"})
_PART = re.compile(r"(.+)\.(?:(lora_[AB])(?:\.([^.]+))?\.(weight|bias)|(lora_embedding_[AB])(?:\.([^.]+))?)")


@dataclass(frozen=True, kw_only=True)
class Module:
    """The LoRA tensors of one module: the keys of A and B, and of the bias of B where it has one."""

    name: str
    a: str
    b: str
    bias: str | None
    embedding: bool


@dataclass(frozen=True)
class Keys:
    """The keys of an adapter by what they are: modules with factors, and tensors trained whole, by their name."""

    modules: list[Module]
    whole: dict[str, str]


def unwrapped(name: str) -> str:
    """Return the name without what torch.compile, FSDP and activation checkpointing insert into it."""
    return ".".join(part for part in name.split(".") if part not in _WRAPPERS) if "_" in name else name


def sort_keys(file: AdapterFile) -> Keys:
    """Return the keys of the file by what they are. Raises MergeError for strangers, several adapters and repeated names.

    Keys of a live model, which name the adapter (`lora_A.default.weight`), are read where they name one.
    """
    parts: dict[str, dict[str, str]] = {}
    rest: dict[str, str] = {}
    adapters: dict[str | None, str] = {}
    for key, dtype in file.dtypes.items():
        name = _PEFT.sub("", unwrapped(key), count=1)
        match = _PART.fullmatch(name)
        if match is None:
            _check_known(file, key, name)
            _add(file, rest, name, key)
            continue
        if dtype not in FLOATING:
            raise file.error(f"{key!r} has dtype {dtype}, a LoRA tensor needs one of {', '.join(FLOATING)}: {FOLD}")
        part = f"{match[2]}.{match[4]}" if match[2] else match[5]
        adapters.setdefault(match[3] or match[6], key)
        _add(file, parts.setdefault(match[1], {}), part, key)
    if not parts:
        raise file.error(f"none of its {len(file.dtypes)} tensors is a lora_A or lora_B: save the adapter again")
    if len(adapters) > 1:
        first, second = list(adapters.values())[:2]
        raise file.error(
            f"{first!r} and {second!r} belong to two adapters: save one alone, with peft's "
            "save_pretrained(..., selected_adapters=[NAME])"
        )
    return Keys([_module(file, name, keys) for name, keys in parts.items()], _whole(file, rest, next(iter(adapters))))


def _check_known(file: AdapterFile, key: str, name: str) -> None:
    if "lora_magnitude_vector" in name:
        raise file.error(f"{key!r} belongs to DoRA, only plain LoRA can be read: {FOLD}")
    if re.search(r"\.lora[._](up|down|mid|linear_layer)\b", name):
        raise file.error(
            f"{key!r} belongs to LoRA as diffusers or kohya write it, only PEFT's keys (lora_A.weight) can be read: fold it "
            "with the library that wrote it and give the whole model"
        )
    if ".lora_" in name or "token_adapter" in name:
        raise file.error(f"{key!r} belongs to no known kind of LoRA, only plain LoRA can be read: {FOLD}")


def _add(file: AdapterFile, names: dict[str, str], name: str, key: str) -> None:
    if names.setdefault(name, key) != key:
        raise file.error(f"{names[name]!r} and {key!r} are two tensors of one name: keep the one that was trained")


def _whole(file: AdapterFile, rest: Mapping[str, str], adapter: str | None) -> dict[str, str]:
    """Return the keys of tensors trained whole by the name of what they replace; untrained copies are left out."""
    whole: dict[str, str] = {}
    for name, key in rest.items():
        parts = name.split(".")
        if "original_module" in parts:
            continue
        if "modules_to_save" in parts:
            place = parts.index("modules_to_save")
            del parts[place : place + (2 if parts[place + 1 :][:1] in ([adapter], ["default"]) else 1)]
        _add(file, whole, ".".join(part for part in parts if part != "base_layer"), key)
    return whole


def _module(file: AdapterFile, name: str, keys: Mapping[str, str]) -> Module:
    first = next(iter(keys.values()))
    if ".base_layer" in name:
        # peft up to 0.21 adds the factors of out_proj twice, in training as in merging (huggingface/peft #3774).
        raise file.error(
            f"{first!r} is inside another LoRA module (nn.MultiheadAttention), and versions of peft disagree on its "
            f"scale: with the version that trained it, {FOLD}"
        )
    if "lora_A.bias" in keys:
        raise file.error(f"{keys['lora_A.bias']!r} belongs to no known kind of LoRA, only plain LoRA can be read: {FOLD}")
    embedding = any(part.startswith("lora_embedding") for part in keys)
    wanted = ("lora_embedding_A", "lora_embedding_B") if embedding else ("lora_A.weight", "lora_B.weight")
    for part in wanted:
        if part not in keys:
            raise file.error(f"{first!r} has no {part} beside it: save the adapter again")
    return Module(name=name, a=keys[wanted[0]], b=keys[wanted[1]], bias=keys.get("lora_B.bias"), embedding=embedding)

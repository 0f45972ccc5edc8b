"""Tensors that an adapter brings whole (`modules_to_save`, biases): what they replace, and which find no place."""

from __future__ import annotations

import re
from collections.abc import Mapping

from fusionbench_lite.weights.lora.config import AdapterConfig
from fusionbench_lite.weights.lora.files import AdapterFile
from fusionbench_lite.weights.lora.names import Names
from fusionbench_lite.weights.lora.pairs import Pair, TensorSpecs, check_shape
from fusionbench_lite.weights.lora.roles import is_vocabulary
from fusionbench_lite.weights.lora.tied import partner, untied


def replacements(
    file: AdapterFile,
    config: AdapterConfig,
    whole: Mapping[str, str],
    names: Names,
    pretrained: TensorSpecs,
    folded: Mapping[str, Pair],
) -> tuple[dict[str, str], dict[str, tuple[str, str]]]:
    """Return the keys of tensors trained whole by the name that they replace, and keys and names that must equal one of them.

    `folded` are the tensors that get factors. The second are heads that the pretrained model ties to an embedding.
    A head that it has no place for is warned of, any other tensor refused. Raises MergeError.
    """
    replaced: dict[str, str] = {}
    missing = []
    for name, key in whole.items():
        target = names.find(name)
        if target is None:
            missing.append(name)
            continue
        if target in replaced:
            raise file.error(f"{replaced[target]!r} and {key!r} both replace {target!r}: keep the one that was trained")
        # peft saves the base of a module with factors as `base_layer`; its old versions saved embeddings under their names.
        if target in folded and ".base_layer." not in key and not is_vocabulary(target):
            raise file.error(
                f"{key!r} replaces {target!r}, which also has factors, {folded[target].a!r}: two changes of one tensor; keep the "
                "one that was trained"
            )
        check_shape(file, key, target, pretrained)
        replaced[target] = key
    equal: dict[str, tuple[str, str]] = {}
    heads = []
    for name in missing:
        key, moved = whole[name], names.moved(name)
        other = partner(moved, file.shapes[key], pretrained)
        if other is not None and other in replaced and other not in folded:
            equal[other] = (key, moved)
        elif other is not None:
            raise untied(file, key, moved, other, "replaces")
        elif _is_inside(config, name, names):
            raise file.error(names.lacking(key, name))
        else:
            heads.append(name)
    _warn_of_heads(file, config, whole, heads)
    _warn_of_absent(file, config, whole, names)
    return replaced, equal


def _is_inside(config: AdapterConfig, name: str, names: Names) -> bool:
    """Say whether a tensor that the pretrained model lacks belongs to a layer or a part of it, and so to another model."""
    saved = next((match for entry in config.saved if (match := _path(entry).search(name))), None)
    before = name[: saved.start()] if saved else name
    tops = {own.split(".")[0] for other in names.known if (own := names.own(other)) is not None}
    return any(part.isdigit() for part in before.split(".")) or name.split(".")[0] in tops


def _warn_of_heads(file: AdapterFile, config: AdapterConfig, whole: Mapping[str, str], heads: list[str]) -> None:
    modules = sorted({name.rpartition(".")[0] or name for name in heads})
    if modules:
        were = "was" if len(modules) == 1 else "were"
        file.warn(
            f"{', '.join(map(repr, modules))} {were} trained whole ({whole[heads[0]]!r}), but the "
            "pretrained model has no such module: the merged model lacks it; take it from the adapter for the task"
        )


def _warn_of_absent(file: AdapterFile, config: AdapterConfig, whole: Mapping[str, str], names: Names) -> None:
    """Warn of modules that the configuration says were trained whole, of which the file holds nothing."""
    absent = [entry for entry in config.saved if not any(_path(entry).search(name) for name in whole)]
    # Of the heads that peft lists for every classifier ("classifier", "score") a model has one.
    absent = [entry for entry in absent if len(absent) == len(config.saved) or any(map(_path(entry).search, names.known))]
    if absent:
        file.warn(
            f"modules_to_save names {', '.join(map(repr, absent))}, but the file holds no tensor of it: the merged model has the "
            "pretrained one; save the adapter again where it was trained"
        )


def _path(module: str) -> re.Pattern[str]:
    return re.compile(rf"(?:^|(?<=\.)){re.escape(module)}(?=\.|$)")

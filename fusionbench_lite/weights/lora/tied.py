"""Heads that share the tensor of an embedding: what an adapter of one means for the other, and what a file can hold of it.

A file of a tied model stores the embedding alone, and a loader gives it to the head. peft's `merge_and_unload` adds LoRA
factors to the shared tensor, so to both; a module that was trained whole (`modules_to_save`) leaves the tie, unless
`ensure_weight_tying` keeps it. Source: huggingface/peft, `tuners/tuners_utils.py`, `utils/other.py`.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping

from fusionbench_lite.errors import MergeError
from fusionbench_lite.weights.lora.config import AdapterConfig
from fusionbench_lite.weights.lora.files import AdapterFile
from fusionbench_lite.weights.lora.pairs import Pair
from fusionbench_lite.weights.lora.roles import is_embedding, is_head, is_vocabulary
from fusionbench_lite.weights.specs import TensorSpec

_LANGUAGE_TASKS = ("CAUSAL_LM", "SEQ_2_SEQ_LM")
_LANGUAGE_CLASSES = re.compile(r"CausalLM|LMHead|ConditionalGeneration|MaskedLM")


def partner(name: str, shape: tuple[int, ...], pretrained: Mapping[str, TensorSpec]) -> str | None:
    """Return the stored tensor to which a head or embedding that the pretrained model lacks is tied, None for others."""
    if is_vocabulary(name):
        for other, spec in pretrained.items():
            if spec.shape == shape and (is_embedding(other) or (is_embedding(name) and is_head(other))):
                return other
    return None


def untied(file: AdapterFile, key: str, name: str, other: str, does: str) -> MergeError:
    """Return the error for a key that would part a head from the embedding that the pretrained model stores for both."""
    return file.error(
        f"{key!r} {does} {name!r}, which is tied to {other!r} and not stored in the pretrained model: store a copy of "
        f"{other!r} as {name!r} in that model"
    )


def warn_of_ties(
    file: AdapterFile,
    config: AdapterConfig,
    pairs: Mapping[str, Pair],
    replaced: Mapping[str, str],
    shared: Mapping[str, Iterable[str]],
    pretrained: Mapping[str, TensorSpec],
) -> None:
    """Warn where a head follows an embedding, or the reverse, though only one of the two was trained.

    `shared` gives the names that share memory with a changed one.
    """
    for name, others in shared.items():
        others = ", ".join(repr(other) for other in others)
        file.warn(
            f"{pairs[name].a!r} changes {name!r}, which is tied to {others}: both change, as in peft's merge_and_unload, "
            "though in training only the one did"
        )
    if not _speaks(config):
        return
    for name, key in (*replaced.items(), *((name, pair.a) for name, pair in pairs.items())):
        spec = pretrained[name]
        if name in shared or not is_embedding(name) or any(is_head(other) for other in pretrained):
            continue
        if name in pairs and name in replaced and key == replaced[name]:
            continue  # said of its factors
        does, as_peft = ("changes", "as in peft's merge_and_unload") if name in pairs else ("replaces", "while peft keeps it")
        file.warn(
            f"{key!r} {does} {name!r} {spec.shape}, and the pretrained model stores no head: a tied one follows, {as_peft}, "
            f"though training did not change it; to keep it, store a copy of {name!r} as 'lm_head.weight' in that model"
        )


def twins(pairs: Mapping[str, Pair], pretrained: Mapping[str, TensorSpec]) -> Iterator[tuple[str, str]]:
    """Yield every changed head or embedding with the tensor that would be its copy, were the head tied and stored twice."""
    for name in filter(is_vocabulary, pairs):
        for other, spec in pretrained.items():
            kinds = is_embedding(other) if is_head(name) else is_head(other)
            if kinds and spec == pretrained[name] and pairs.get(other) is not pairs[name]:
                yield name, other
                break


def stored_twice(name: str, other: str) -> str:
    """Return the sentence about a head that is tied by its values."""
    return (
        f"{name!r} and {other!r} of the pretrained model are equal, as those of a tied head are: they are merged apart, as they "
        "were trained, while peft's merge_and_unload of a tied model adds the factors of either to both"
    )


def _speaks(config: AdapterConfig) -> bool:
    """Say whether the adapter's model may have a language head: where nothing is said, it may."""
    if not config.task and not config.model_class:
        return True
    return config.task in _LANGUAGE_TASKS or _LANGUAGE_CLASSES.search(config.model_class) is not None

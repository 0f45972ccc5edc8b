"""Where in a file an image tower of CLIP is: under which prefix, and which parts of names only wrappers and training scripts add.

Nested dictionaries and lists of a pickle come here as one: an entry `state_dict` of a checkpoint is the prefix `state_dict.`.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import TypeVar

from fusionbench_lite.errors import InputError, did_you_mean

T = TypeVar("T")
WRAPPERS = frozenset({"module", "_orig_mod", "_fsdp_wrapped_module", "_checkpoint_wrapped_module", "_forward_module"})
"""Parts of names by which DataParallel, torch.compile, FSDP, activation checkpointing and Fabric wrap a module, wherever it is."""
_BUFFERS = ("position_ids", "attn_mask", "n_averaged")
"""Last parts of names of buffers that no tower needs; the last is the counter of torch's AveragedModel."""
_OWN = {"packed": "visual.", "separate": "vision_model."}
_SIGNS = {
    "packed": re.compile(r"((?:.+\.)?)(class_embedding|conv1\.weight|ln_pre\.weight|proj|transformer\.resblocks)(?:\.\d.*)?"),
    "separate": re.compile(
        r"((?:.+\.)?)(embeddings\.class_embedding|embeddings\.patch_embedding\.weight|pre_layrnorm\.weight"
        r"|post_layernorm\.weight|encoder\.layers)(?:\.\d.*)?"
    ),
}
"""A prefix and one of the names by which a tower is known; the blocks of a text side have the same names."""
_ENOUGH: dict[str, Sequence[set[str]]] = {
    "packed": ({"class_embedding"}, {"ln_pre.weight"}, {"conv1.weight", "transformer.resblocks"}),
    "separate": ({"embeddings.class_embedding"}, {"embeddings.patch_embedding.weight"}),
}
"""What is enough to know a tower without `visual.` or `vision_model.` before its names."""


@dataclasses.dataclass(frozen=True)
class Root:
    """Where a tower is: `prefix` is all that precedes its own names, `owner` the same without `visual.` or `vision_model.`."""

    layout: str
    prefix: str
    owner: str

    @property
    def name(self) -> str:
        """How a command line names the place; the top of a file is a dot."""
        return self.prefix.rstrip(".") or "."

    def __str__(self) -> str:
        return repr(self.name) if self.prefix else "the top of the file ('.')"


def bare(names: Iterable[str], who: str) -> dict[str, str]:
    """Return {name without the parts that wrappers add: name}, without buffers. Raises InputError where two names become one."""
    out: dict[str, str] = {}
    for name in names:
        short = ".".join(part for part in name.split(".") if part not in WRAPPERS)
        if short.rsplit(".", 1)[-1] in _BUFFERS:
            continue
        if short in out:
            raise InputError(f"{who} has {name!r} and the same tensor under another prefix, {out[short]!r}: keep one of them")
        out[short] = name
    return out


def roots(names: Iterable[str]) -> list[Root]:
    """Return the places of all image towers, whole or in part, in the order of the file; `names` come from `bare`."""
    found: dict[tuple[str, str], set[str]] = {}
    for name in names:
        for layout, pattern in _SIGNS.items():
            match = pattern.fullmatch(name)
            if match is not None:
                found.setdefault((layout, match.group(1)), set()).add(match.group(2))
    out = []
    for (layout, prefix), signs in found.items():
        if prefix.endswith(("embeddings.", "text_model.")):  # the other layout's class embedding, the text side
            continue
        owned = prefix.rpartition(_OWN[layout])[0] if f".{prefix}".endswith(f".{_OWN[layout]}") else None
        if owned is not None or any(enough <= signs for enough in _ENOUGH[layout]):
            out.append(Root(layout, prefix, prefix if owned is None else owned))
    return out


def without(names: Mapping[str, T], root: Root, places: Iterable[Root], twins: bool = False) -> dict[str, T]:
    """Return what does not belong to another tower: to one further down the same prefix, or with `twins` to any."""
    others = tuple(
        other.prefix for other in places
        if other != root and (other.prefix.startswith(root.prefix) or (twins and not root.prefix.startswith(other.prefix)))
    )
    return {name: value for name, value in names.items() if not (others and name.startswith(others))}


def chosen(tensors: Mapping[str, T], choice: str, who: str) -> dict[str, T]:
    """Return what of a file belongs to the tower that a command line names: by its place, or by the beginning of its names.

    A dot is the top of the file. Raises InputError where nothing is there.
    """
    names = bare(tensors, who)
    places = roots(names)
    if choice == ".":
        top = next((place for place in places if place.owner == ""), None)
        kept = without(names, top, places, twins=True) if top else {}
    else:
        kept = {short: name for short, name in names.items() if f"{name}.".startswith(f"{choice.rstrip('.')}.")}
        kept = kept or {short: name for short, name in names.items() if f"{short}.".startswith(f"{choice.rstrip('.')}.")}
    if not kept:
        there = [place.name for place in places]
        raise InputError(f"{who} has nothing at tower={choice}: {did_you_mean(choice, there)}")
    return {name: tensors[name] for name in kept.values()}


def taken_off(names: Mapping[str, str], root: Root) -> tuple[str, ...]:
    """Return what stood before and inside the names of a tower and is no part of them: 'module.' before, '._orig_mod.' inside.

    `names` maps bare names of the tower to those of the file.
    """
    out: dict[str, None] = {}
    kept = root.owner.count(".")
    for name in names.values():
        before, inside, passed = "", [], 0
        for part in name.split("."):
            own = part not in WRAPPERS
            if passed < kept or not (own or passed > kept):
                before += f"{part}."
            elif not own:
                inside.append(f".{part}.")
            passed += own
        out |= dict.fromkeys([*([before] if before else []), *inside])
    return tuple(out)

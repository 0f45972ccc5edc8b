"""An image tower of CLIP taken out of the file that holds it, whatever wraps it and lies beside it."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import TYPE_CHECKING

from fusionbench_lite.errors import InputError
from fusionbench_lite.lazy import torch
from fusionbench_lite.weights import foreign, prefixes

if TYPE_CHECKING:
    from torch import Tensor

PROJECTION = {"packed": "proj", "separate": "visual_projection.weight"}
"""The visual tensor that FusionBench's experts do not have."""


@dataclasses.dataclass(frozen=True)
class Split:
    """A state dict taken apart: `visual` has the names of its `layout` without or with prefix as the layout has them.

    `rest` is everything else under its name without wrappers, such as the text side. `place` is what stood before the tower's
    own names, `taken` what of it and inside them is no part of a model's names, `twins` are further places of the same tensors.
    """

    layout: str
    visual: dict[str, Tensor]
    rest: dict[str, Tensor]
    place: str = ""
    taken: tuple[str, ...] = ()
    twins: tuple[str, ...] = ()


def split(state: Mapping[str, Tensor], who: str = "the state dict") -> Split:
    """Return the visual tensors of a CLIP model or of its image tower, in whichever of the two layouts they are.

    Any prefix may stand before the names, wrappers' parts such as `module.` inside them; buffers of positions and masks are left
    out. Raises InputError for names of neither library, and for two towers whose tensors are not the same.
    """
    names = prefixes.bare(state, who)
    bare = {short: state[name] for short, name in names.items()}
    places = prefixes.roots(bare)
    if not places:
        what, fix = foreign.named({name: tuple(tensor.shape) for name, tensor in bare.items()})
        raise InputError(f"{who} holds no image tower of CLIP ({what}): {fix}")
    towers = {root: _parted(root, prefixes.without(bare, root, places)) for root in places}
    root = max(places, key=lambda place: PROJECTION[place.layout] in towers[place].visual)  # the first of those with a projection
    others = [other for other in places if other != root]
    for other in others:
        if not _equal(towers[root], towers[other]):
            first, second = (each for each in places if each in (root, other))
            raise InputError(
                f"{who} holds two image towers that differ, at {first} and at {second}: keep the one that is meant, `python -m "
                f"fusionbench_lite.convert SOURCE OUT tower={first.name}` or tower={second.name}"
            )
    tower = {short: name for short, name in names.items() if short.startswith(root.prefix)}
    parts = _parted(root, prefixes.without(bare, root, places, twins=True))
    taken = prefixes.taken_off(tower, root)
    return dataclasses.replace(parts, taken=taken, twins=tuple(str(other) for other in others))


def _parted(root: prefixes.Root, bare: Mapping[str, Tensor]) -> Split:
    """Return the tower of a place. Where it has no prefix at all, everything belongs to it that the text side does not have."""
    visual: dict[str, Tensor] = {}
    rest: dict[str, Tensor] = {}
    kept = "vision_model." if root.layout == "separate" else ""
    projection = _projection(root, bare)
    for name, tensor in bare.items():
        inside = name.removeprefix(root.owner) if name.startswith(root.owner) else name
        if name == projection:
            visual[PROJECTION["separate"]] = tensor
        elif name.startswith(root.prefix) and not inside.startswith(("text_model.", "text_projection", "logit_scale")):
            visual[kept + name.removeprefix(root.prefix)] = tensor
        else:
            rest[name if inside in rest or (inside != name and inside in bare) else inside] = tensor
    return Split(root.layout, visual, rest, root.prefix)


def _projection(root: prefixes.Root, bare: Mapping[str, Tensor]) -> str | None:
    """Return the name of the projection that belongs to a tower of transformers: beside it, or nearest above it."""
    if root.layout != "separate":
        return None
    ending = PROJECTION["separate"]
    above = [name for name in bare if name.endswith(ending) and root.prefix.startswith(name.removesuffix(ending))]
    return max(above, key=len, default=None)


def _equal(first: Split, second: Split) -> bool:
    """Whether two towers are the same to the bit; a projection that only one of them has beside it makes no difference."""
    if first.layout != second.layout:
        return False
    odd = set(first.visual) ^ set(second.visual)
    return odd <= {PROJECTION["separate"]} and all(
        tensor.dtype == second.visual[name].dtype and torch.equal(tensor, second.visual[name])
        for name, tensor in first.visual.items() if name not in odd
    )

"""The tensors of a model in the order of its forward pass, grouped by block, from their names alone.

A safetensors file lists its tensors by name, so a picture over depth has to find their order again.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

ATTENTION, PERCEPTRON, NORM, BIAS, OTHER = "Attention matrix", "MLP matrix", "Normalisation", "Bias", "Embedding, projection"
FAMILIES = (ATTENTION, PERCEPTRON, NORM, BIAS, OTHER)
STEM, TAIL, TEXT = "stem", "end", "text"

_STEM = re.compile(r"embed|conv1|patch|pre_|wte|wpe|shared|cls_token", re.IGNORECASE)
_STEM_NORM = re.compile(r"ln_pre|pre_la?y|embeddings\.", re.IGNORECASE)
_WITHIN = tuple(
    re.compile(pattern, re.IGNORECASE) for pattern in (
        r"ln_1|layer_norm1|norm1|input_layernorm|layernorm_before", r"q_proj|query|\.q\.", r"k_proj|key|\.k\.",
        r"v_proj|value|\.v\.", r"in_proj|c_attn|qkv", r"att.*(out_proj|c_proj|proj|output\.dense|\.o\.)",
        r"att.*output\.layernorm", r"ln_2|layer_norm2|norm2|post_attention_layernorm|layernorm_after",
        r"c_fc|fc1|intermediate|\.wi", r"c_proj|fc2|output\.dense|\.wo", r"",
    )
)


@dataclass(frozen=True, kw_only=True)
class Place:
    """Where a tensor sits: `block` is its number, or STEM, TAIL or TEXT; `stack` names the list of blocks.

    `kind` is the name within the block, the same for all blocks; `family` one of FAMILIES.
    """

    name: str
    stack: str
    block: str
    kind: str
    family: str

    @property
    def in_block(self) -> bool:
        return self.block not in (STEM, TAIL, TEXT)


def place(name: str, *, visual: bool = False) -> Place:
    """Say where a tensor sits; `visual` says that the model has an image tower, so that other tensors are leftovers."""
    numbered = re.fullmatch(r"(.*?)\.?\b(\d+)\.(.*)", name)
    if numbered:
        return Place(name=name, stack=numbered[1], block=numbered[2], kind=numbered[3], family=_family(numbered[3]))
    if visual and "visual" not in name:
        return Place(name=name, stack="", block=TEXT, kind=name, family=_family(name))
    first = _STEM.search(name) or _STEM_NORM.search(name)
    return Place(name=name, stack="", block=STEM if first else TAIL, kind=name, family=_family(name))


def arrange(names: Iterable[str], order: Sequence[str] = ()) -> list[Place]:
    """Return the places of tensors in model order; `order` is that of the state dict where it is known.

    An alphabetical order is that of a file and says nothing.
    """
    names = list(names)
    visual = any("visual." in name for name in names)
    places = [place(name, visual=visual) for name in names]
    stages = {STEM: 0, TAIL: 2, TEXT: 3}
    numbers = {name: number for number, name in enumerate(order)} if list(order) != sorted(order) else {}
    stacks = sorted({place.stack for place in places}, key=lambda stack: ("decoder" in stack, stack))

    def key(one: Place) -> tuple[int, int, int, int, int, str]:
        number = int(one.block) if one.in_block else 0
        stage = stages.get(one.block, 1)
        return stage, stacks.index(one.stack), number, numbers.get(one.name, len(numbers)), _within(one), one.name

    return sorted(places, key=key)


def groups(places: Sequence[Place]) -> list[tuple[str, int, int]]:
    """Return the runs of tensors of one block as (label, first, one past the last), for tensors in model order."""
    several = len({place.stack for place in places if place.in_block}) > 1
    runs: list[tuple[str, int, int]] = []
    last = None
    for number, place in enumerate(places):
        if (place.stack, place.block) == last:
            runs[-1] = (*runs[-1][:2], number + 1)
        else:
            label = f"{place.stack.split('.')[0][:3]} {place.block}" if several and place.in_block else place.block
            runs.append((label, number, number + 1))
            last = (place.stack, place.block)
    return runs


def short(kind: str) -> str:
    """A kind of matrix for a panel's title: attn.in_proj_weight without its last part where that says nothing."""
    return re.sub(r"(\.|_)weight$", "", kind)


def _within(place: Place) -> int:
    if not place.in_block:
        return int(place.block == STEM and place.family == NORM)
    rank = next(number for number, pattern in enumerate(_WITHIN) if pattern.search(f".{place.kind}"))
    return 2 * rank + place.kind.endswith("bias")


def _family(kind: str) -> str:
    lower = kind.lower()
    if re.search(r"(^|\.|_)ln|norm|layrnorm", lower):
        return NORM
    if lower.endswith("bias"):
        return BIAS
    if "att" in lower:
        return ATTENTION
    return PERCEPTRON if re.search(r"mlp|fc|intermediate|densere|output\.dense|ffn", lower) else OTHER

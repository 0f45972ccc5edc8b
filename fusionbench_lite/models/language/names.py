"""The tensors in a checkpoint's file under the names that the model's class has for them."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import NamedTuple


class Naming(NamedTuple):
    """The prefix of the body, the beginnings of names that it does not stand before, and what a file may hold that is no
    weight of the class: buffers of masks and positions, and heads of pretraining."""

    prefix: str
    own: tuple[str, ...]
    no_weight: re.Pattern[str]


_POSITIONS = r"(.*\.)?position_ids"
NAMINGS: Mapping[str, Naming] = {
    "gpt2": Naming("transformer.", ("score.",), re.compile(r".*\bh\.\d+\.attn\.(bias|masked_bias)|lm_head\..*")),
    "roberta": Naming(
        "roberta.", ("classifier.",), re.compile(rf"{_POSITIONS}|(roberta\.)?(pooler|lm_head)\..*|(.*\.)?token_type_ids")
    ),
    "bert": Naming("bert.", ("classifier.",), re.compile(rf"{_POSITIONS}|cls\..*")),
    "t5": Naming("", (), re.compile(
        r"(encoder|decoder)\.embed_tokens\.weight|decoder\.block\.\d+\.layer\.1\.EncDecAttention\.relative_attention_bias\.weight"
    )),
    "llama": Naming("", (), re.compile(r".*rotary_emb\.inv_freq")),
}
"""T5's stacks share `shared.weight`; the relative bias of its cross attention is a leftover that no version reads."""
HEADS = {"gpt2": "score.weight", "roberta": "classifier.out_proj.weight", "bert": "classifier.weight"}
"""The tensor [C, d] whose first dimension is the number of classes."""


def canonical(kind: str, names: Iterable[str]) -> dict[str, str]:
    """Return {name in the file: name of the class}, without what is no weight of it; files of the bare model lack its prefix."""
    prefix, own, no_weight = NAMINGS[kind]
    kept = [name for name in names if not no_weight.fullmatch(name)]
    return {name: name if name.startswith((prefix, *own)) else f"{prefix}{name}" for name in kept}

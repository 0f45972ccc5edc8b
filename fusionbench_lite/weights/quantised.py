"""Whether a model is stored quantised, told from the names and types of its tensors: codes beside the scales they need."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping

from fusionbench_lite.errors import MergeError

FIX = "load it in 16 or 32 bits first"
"""What helps against a quantised model: how it is done depends on the library that made it."""

_TINY = re.compile(r"F[468](_.*)?")
_INTEGERS = ("I8", "U8", "I16", "U16", "I32", "U32", "I64", "U64")
_BYTES = ("I8", "U8")
_MINE = re.compile(
    r"([._:]?_?(weight_)?(scales?|scale_inv|scale_2|zeros?|zero_points?|absmax|scb|codebooks?)|\.(nested_)?(quant_map|absmax)"
    r"|\.quant_state\b.*)", re.IGNORECASE,
)
"""What follows a tensor's whole name in the names of its scales: `weight.absmax`, `weight_scale`, `weight._scale`, `weight.SCB`."""
_SIBLINGS = re.compile(
    r"(weight_|q_|w_)?(scales?|scale_inv|scale_2|scale_max|zeros?|zero_points?|absmax|scb|codebooks?|centroids)"
    r"|qzeros|SU|SV|.*_scales?_inv|quant_state.*", re.IGNORECASE,
)
"""The last part of the names of scales that lie in the module of their codes: `fc.SCB` and `fc.scales` beside `fc.weight`."""
_CODES = re.compile(r"(.*_)?(q_?weight|weight|w_q|packed|codes|qidxs|q?data|int_data|blocks)", re.IGNORECASE)
_ALONE = re.compile(r"(.*_)?(qweight|w_q|weight_packed|qidxs)|quant_state.*", re.IGNORECASE)
"""Last parts of names that no library uses for anything but codes."""
_PLAIN = re.compile(
    r".*(ids?|ind(ex|ices)|masks?|bias|buckets?|count(er)?s?|steps?|tracked|shape|version|lengths?|positions?"
    r"|initiali[sz]ed|inited|flags?)|num_.*", re.IGNORECASE,
)
"""Last parts of names of integer buffers that may lie beside a learned scale at full precision; GPT-2's mask is its `bias`."""


def sign(dtypes: Mapping[str, str]) -> tuple[str, str] | None:
    """Return (tensor, evidence) of the first tensor of a model that is stored quantised, None where there is none.

    `dtypes` are the names of all tensors with their types as safetensors writes them ("I8", "F8_E4M3", "F32"); values are
    not needed. Quantised are floats of 8 bits and less, and integers beside their own scales, as bitsandbytes, GPTQ, AWQ,
    HQQ, compressed-tensors, torchao, quanto, MLX and MXFP4 store them, or bytes in the place of a `weight`, as GGUF does.
    Position ids, masks, index tables and BatchNorm's counters are none of these.
    """
    modules: dict[str, list[str]] | None = None
    for name, dtype in dtypes.items():
        if _TINY.fullmatch(dtype):
            return name, f"{dtype} values"
        if dtype not in _INTEGERS:
            continue
        if modules is None:
            modules = {}
            for other in dtypes:
                modules.setdefault(_split(other)[0], []).append(other)
        scale = next(_scales(name, dtype, dtypes, modules), None)
        if scale is not None:
            return name, f"{dtype} values beside {scale!r}"
        leaf = _split(name)[1]
        if _ALONE.fullmatch(leaf) or (leaf == "weight" and dtype in _BYTES):
            return name, f"{dtype} values in the place of weights"
    return None


def check(dtypes: Mapping[str, str], who: str) -> None:
    """Raise MergeError where a model, which `who` names, is stored quantised (see `sign`)."""
    found = sign(dtypes)
    if found is not None:
        raise MergeError(f"{who}: {found[0]!r} ({found[1]}) is quantised: {FIX}")


def _scales(name: str, dtype: str, dtypes: Mapping[str, str], modules: Mapping[str, list[str]]) -> Iterator[str]:
    """Yield the tensors that are scales of this one, by their names: the module's, and those below the tensor's own name."""
    module, leaf = _split(name)
    for other in (*modules.get(module, ()), *modules.get(name, ())):
        if other != name and other.startswith(name) and _MINE.fullmatch(other[len(name) :]):
            yield other
    if not (_CODES.fullmatch(leaf) or (dtype != "I64" and not _PLAIN.fullmatch(leaf))):
        return
    stem = re.sub(r"(weight|blocks|packed|qdata|int_data)$", "", leaf)
    for other in modules.get(module, ()):
        ending = _split(other)[1]
        rest = ending.removeprefix(stem) if stem else ending  # in_proj_scale of in_proj_weight
        if other != name and (_SIBLINGS.fullmatch(ending.lstrip("_")) or _SIBLINGS.fullmatch(rest.lstrip("_"))):
            yield other


def _split(name: str) -> tuple[str, str]:
    """Return the module and the last part of a name; torchao joins them by a colon."""
    module, _, leaf = name.replace(":", ".").rpartition(".")
    return module, leaf
